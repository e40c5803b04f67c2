"""A JSON Schema of recipe files, from the typed configs: with it an editor completes groups, choices, keys and literals.

No key is required, since a recipe is an override; every value may also be an interpolation `${key}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from largeforge.config.fields import RefusedTarget, config_class, group_of, part_class, typed_member
from largeforge.config.gather import SEVERAL
from largeforge.config.help import title_of
from largeforge.config.places import Library
from largeforge.config.refusals import LISTS
from largeforge.config.typed import PartConfig, Typed
from largeforge.config.yaml_file import read_yaml, target_of
from largeforge.task.config import RootConfig

_INTERPOLATION = {"type": "string", "pattern": r"^\$\{[^}]+\}$"}


def recipe_schema_text(config_dirs: Sequence[str] = ()) -> str:
    """Return the schema as JSON text."""
    return json.dumps(recipe_schema(config_dirs), indent=2)


def recipe_schema(config_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """Return a schema (draft 2020-12) that every recipe meets."""
    library = Library(tuple(config_dirs))
    roots = list(_classes(library, "task", RootConfig, "largeforge.task"))
    properties: dict[str, Any] = {"defaults": _defaults(library)}
    for root in roots:
        for name, info in root.model_fields.items():
            if name in {"task", "trust", "folder"}:
                continue
            base = part_class(info)
            if base is None:
                properties[name] = _merged(properties.get(name), _value(info, root, name))
            else:  # tasks may each take other choices of a group
                group = group_of(base).removeprefix("largeforge.").replace(".", "/")
                part = properties.setdefault(name, _part(library, group, base, info.description or ""))
                for key, value in _part(library, group, base, "")["properties"].items():
                    known = part["properties"].get(key)
                    part["properties"][key] = value if known is None or "anyOf" not in known else _merged(known, value)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LargeForge recipe",
        "description": "Values over those of a task; run it with python -m largeforge recipe=<its name>.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _defaults(library: Library) -> dict[str, Any]:
    """What a recipe chooses: one group and choice an item, or another recipe that it extends."""
    groups: dict[str, Any] = {}
    for group in library.groups():
        described = [{"const": name, "description": title_of(library.file_of(f"{group}/{name}"))} for name in library.choices(group)]
        names = [one["const"] for one in described if one["const"] not in (SEVERAL, "none")]
        several = [{"type": "array", "items": {"enum": names}, "minItems": 1, "uniqueItems": True}] if group in LISTS else []
        for key in (f"override /{group}", group):
            groups[key] = {"oneOf": [*described, *several], "description": f"Choice of {group}."}
    repeated = {"^(override )?/?[a-z][a-z0-9_/]*(@[a-z][a-z0-9_]*)?$": {"type": ["string", "null"]}}
    item = {"type": "object", "minProperties": 1, "maxProperties": 1, "properties": groups, "patternProperties": repeated, "additionalProperties": False}
    recipes = [f"/recipe/{name}" for name in library.recipes()]
    words = {"type": "string", "examples": recipes, "description": "/recipe/<name>: the recipe that this one extends; or _self_."}
    return {"type": "array", "description": "What is chosen, and the recipe that this one extends.", "items": {"anyOf": [item, words]}}


def _classes(library: Library, group: str, base: type[Typed], package: str) -> list[type[Typed]]:
    found: dict[type[Typed], None] = {}
    for choice in library.choices(group):
        path = library.file_of(f"{group}/{choice}")
        target = read_yaml(path).values.get("task", {}).get("_target_") if group == "task" and path else target_of(path)
        try:
            found[config_class(target, base=base, package=package, trust=())] = None
        except RefusedTarget:
            continue
    return list(found)


def _part(library: Library, group: str, base: type[PartConfig], description: str) -> dict[str, Any]:
    """Merge the keys of all choices of a group: which one is in use, `defaults` says."""
    properties: dict[str, Any] = {"_target_": {"type": "string", "description": "The class that this choice builds."}}
    for cls in _classes(library, group, base, group_of(base)):
        _add_fields(properties, cls)
    return {"type": "object", "description": description, "additionalProperties": False, "properties": properties}


def _add_fields(properties: dict[str, Any], cls: type[Typed]) -> None:
    for name, info in cls.model_fields.items():
        if name != "target":
            properties[name] = _merged(properties.get(name), _value(info, cls, name))


def _value(info: Any, cls: type[Typed], name: str) -> dict[str, Any]:
    nested = typed_member(info.annotation)
    if nested is not None:
        inner: dict[str, Any] = {}
        _add_fields(inner, nested)
        alternatives: list[dict[str, Any]] = [{"type": "object", "additionalProperties": False, "properties": inner}]
        if nested is not info.annotation:
            alternatives.append({"type": "null"})
    else:
        whole = TypeAdapter(cls).json_schema(by_alias=True)["properties"][info.alias or name]
        alternatives = whole.pop("anyOf", None) or [{key: value for key, value in whole.items() if key not in {"title", "description"}}]
    return {"description": info.description or "", "anyOf": [*alternatives, _INTERPOLATION]}


def _merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that allows what either allows."""
    if old is None:
        return new
    return {**old, "anyOf": [*old["anyOf"], *(one for one in new["anyOf"] if one not in old["anyOf"])]}
