"""Which requirements are met: every id of docs/requirements.yaml with the tests that prove it.

A test proves an id by its docstring ("Proves SYS-F-011."), which is read without importing it; that the test passes is
the suite's business.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ID = re.compile(r"\b(?:SR|SYS)-(?:[A-Z]+-)?\d{3}\b")
CLAIM = re.compile(r"\bProves\b([^.:]*)")
MARKERS = ("slow", "gpu", "peer")
FIELDS = {"says", "so_far", "not_here"}


@dataclass(frozen=True)
class Requirement:
    """One id in our own words.

    Args:
        so_far: what stands of it, where no test may claim it yet.
        not_here: why no test on our machines could prove it.
    """

    id: str
    says: str
    so_far: str = ""
    not_here: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/requirements", description=__doc__)
    parser.add_argument("--open", action="store_true", help="only what is not met yet")
    only_open = parser.parse_args(argv).open
    required = requirements()
    proofs = claims(ROOT / "tests")
    met = [one for one in required if one.id in proofs]
    unprovable = [one for one in required if one.not_here]
    for one in required:
        if not only_open or (one not in met and not one.not_here):
            print("\n".join(entry(one, proofs.get(one.id, []))))
    provable = len(required) - len(unprovable)
    print(
        f"\n{len(met)} of {len(required)} are met ({len(met) / len(required):.0%}; {len(met) / provable:.0%} of the {provable} that can be proven here). "
        f"{provable - len(met)} are not yet; {len(unprovable)} are not provable here."
    )
    return 0


def requirements(path: Path = ROOT / "docs" / "requirements.yaml") -> list[Requirement]:
    """Every entry, in the file's order.

    Raises:
        ValueError: an id twice, an unknown field, a sentence missing.
    """
    text = path.read_text(encoding="utf-8")
    ids = re.findall(r"^([A-Za-z][^:\s]*):", text, flags=re.MULTILINE)
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise ValueError(f"{path}: {', '.join(twice)} stands there twice")
    entries: dict[str, Any] = yaml.safe_load(text)
    found = []
    for key, value in entries.items():
        fields = {"says": value} if isinstance(value, str) else value
        if not ID.fullmatch(key) or not isinstance(fields, dict) or set(fields) - FIELDS or not all(isinstance(word, str) and word for word in fields.values()):
            raise ValueError(f"{path}: {key}: {value!r} is no requirement (a sentence, or says with so_far or not_here)")
        found.append(Requirement(key, **fields))
    return found


def claims(folder: Path) -> dict[str, list[str]]:
    """Id -> the tests whose docstrings say that they prove it, as pytest names them, with their markers."""
    found: dict[str, list[str]] = {}
    for test, docstring in docstrings(folder):
        for claim in CLAIM.findall(docstring):
            for one in ID.findall(claim):
                found.setdefault(one, []).append(test)
    return found


def docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """Every test function under a folder with its docstring; nothing is imported."""
    for path in sorted(folder.rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        shared = [node.value for node in module.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"]
        for node in ast.walk(module):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                said = " ".join(ast.unparse(mark) for mark in [*shared, *node.decorator_list])
                marks = [marker for marker in MARKERS if f"mark.{marker}" in said]
                name = f"{path.relative_to(folder.parent).as_posix()}::{node.name}"
                yield name + (f" ({', '.join(marks)})" if marks else ""), ast.get_docstring(node) or ""


def entry(one: Requirement, tests: Sequence[str]) -> list[str]:
    status = "met" if tests else "not provable here" if one.not_here else "not yet"
    lines = [f"{one.id:<12} {status:<18} {one.says}"]
    if one.not_here:
        lines.append(f"{'':<31} because: {one.not_here}")
    if one.so_far and not tests:
        lines.append(f"{'':<31} so far: {one.so_far}")
    return lines + [f"{'':<31} {test}" for test in tests]


if __name__ == "__main__":
    sys.exit(main())
