"""The JSON Schema of recipe files: what an editor completes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge.__main__ import main
from largeforge.config.places import Library, shipped
from largeforge.config.schema import recipe_schema


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """A validator of the few words that our schema uses (the library jsonschema may not be there)."""
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(fits(value, one) for one in schema["oneOf"]) != 1:
        return False
    if "const" in schema and value != schema["const"] or "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None), "integer": int, "number": (int, float)}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(isinstance(value, kinds[one]) and not (isinstance(value, bool) and one in {"integer", "number"}) for one in wanted):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < schema.get("minimum", value) or value > schema.get("maximum", value):
            return False
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"] or "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
            return False
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if isinstance(value, list):
        return all(fits(item, schema.get("items", {})) for item in value)
    if isinstance(value, dict):
        for key, item in value.items():
            patterns = [one for pattern, one in schema.get("patternProperties", {}).items() if re.search(pattern, key)]
            if key in schema.get("properties", {}):
                if not fits(item, schema["properties"][key]):
                    return False
            elif patterns:
                if not all(fits(item, one) for one in patterns):
                    return False
            elif schema.get("additionalProperties") is False:
                return False
    return True


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return recipe_schema()


def test_every_recipe_that_ships_fits(schema: dict[str, Any]) -> None:
    """Proves SYS-U-003."""
    files = sorted(shipped("recipes").rglob("*.yaml"))
    assert files
    for path in files:
        assert fits(yaml.safe_load(path.read_text(encoding="utf-8")), schema), path


def test_it_completes_choices_keys_and_literals(schema: dict[str, Any]) -> None:
    properties = schema["properties"]
    assert "required" not in json.dumps(schema)
    groups = schema["properties"]["defaults"]["items"]["anyOf"][0]["properties"]
    assert {one["const"] for one in groups["override /model"]["oneOf"]} == set(Library().choices("model"))
    assert "bf16" in json.dumps(properties["trainer"]["properties"]["precision"])
    assert "description" in properties["adapter"]["properties"]["r"]
    assert "num_rows" in properties["data"]["properties"]
    assert "path" in properties["data"]["properties"]
    assert "every_steps" in json.dumps(properties["trainer"]["properties"]["checkpoint"])
    assert not {"trust", "folder"} & set(properties)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("adapter: {r: 8}", True),
        ("adapter: {r: '${seed}'}", True),
        ("adapter: {r: eight}", False),
        ("adapter: {rnk: 8}", False),
        ("trainer: {precision: bf8}", False),
        ("trainer: {checkpoint: {every_steps: 3}}", True),
        ("trainer: {checkpoint: {every_step: 3}}", False),
        ("defaults: [override /model: nano]", True),
        ("defaults: [model: nano, /recipe/sft_chat]", True),
        ("defaults: [override /model: nanoo]", False),
        ("defaults: [override /model@teacher: nano]", True),
        ("trust: [os]", False),
        ("hydra: {}", False),
        ("prompt: hello", True),
        ("{}", True),
    ],
)
def test_it_knows_good_from_bad(schema: dict[str, Any], text: str, good: bool) -> None:
    assert fits(yaml.safe_load(text), schema) is good


def test_the_flag_writes_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "LargeForge recipe"
