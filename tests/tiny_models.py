"""What tests of models share: typed configs from the YAML that ships, and a nano made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from largeforge.build import build
from largeforge.config.typed import PartConfig

CONF = Path(__file__).parents[1] / "conf"


def values(group: str, choice: str) -> dict[str, Any]:
    """A choice's YAML, its bases underneath."""
    found: dict[str, Any] = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    for base in found.pop("defaults", []):
        found = {**values(group, base), **found}
    return found


def config(group: str, choice: str, **changes: Any) -> PartConfig:
    """The typed config of a choice, with changes."""
    import importlib

    found = {**values(group, choice), **changes}
    kind = getattr(importlib.import_module(f"largeforge.{group}.config"), found["_target_"].rpartition(".")[2] + "Config")
    typed: PartConfig = kind.model_validate(found)
    return typed


def part(group: str, choice: str, *, live: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A choice, built."""
    return build(config(group, choice, **changes), **(live or {}))
