"""Imports run one way (law 8): read with `ast`, so that nothing needs to be imported to know it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import largeforge
from largeforge.config.places import Library

PACKAGE = Path(largeforge.__file__).parent
WORDS = {"errors", "artifact", "asgi", "batch", "call", "chat", "process", "contract", "build", "run", "rank", "report", "console", "config", "threads"}
STORIES = {"task"}
HEAVY = {"torch", "transformers", "datasets", "lightning", "peft", "trl", "accelerate", "pandas", "pyarrow", "numpy", "bitsandbytes", "matplotlib"}


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Yield the modules a file imports at run time; with `top_only`, those it imports when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(other, top_only=top_only)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            yield from imports(node, top_only=top_only)


def trespasses(relative: str, text: str) -> list[str]:
    """Return what a file imports and may not, given where it stands."""
    place = relative.split("/")[0].removesuffix(".py")
    tree = ast.parse(text)
    found: list[str] = []
    if place in WORDS | {"__init__"} or relative.endswith("/config.py") or relative.endswith("__init__.py") and place not in STORIES:
        found += [name for name in imports(tree, top_only=True) if name.split(".")[0] in HEAVY]
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] != "largeforge" or len(parts) < 2:
            continue
        other = parts[1]
        if other in WORDS | {"__version__", place}:
            continue
        typed = len(parts) > 2 and parts[-1] == "config" or "config" in parts[2:]
        if place in STORIES and typed or place == "config" and typed:
            continue
        found.append(name)
    return found


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_imports_run_one_way() -> None:
    """Proves SYS-M-001: parts import no sibling part, words import no part and nothing heavy, stories meet parts through `build`."""
    found = {name: trespasses(name, (PACKAGE / name).read_text(encoding="utf-8")) for name in files()}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("data/x.py", "from largeforge.model.nano import Nano"),
        ("data/x.py", "import largeforge.trainer.device"),
        ("data/x.py", "def f():\n    from largeforge.model.nano import Nano"),
        ("data/x.py", "from largeforge.model.config import NanoConfig"),
        ("task/x.py", "from largeforge.model.nano import Nano"),
        ("task/x.py", "def f():\n    import largeforge.trainer.device"),
        ("artifact.py", "import torch"),
        ("config/x.py", "from transformers import AutoModel"),
        ("config/x.py", "from largeforge.trainer.device import Auto"),
        ("model/config.py", "import torch"),
        ("build.py", "try:\n    import numpy\nexcept ImportError:\n    pass"),
        ("plan/x.py", "from largeforge.task.train import Train"),
    ],
)
def test_the_law_can_be_broken(where: str, text: str) -> None:
    assert trespasses(where, text)


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("data/x.py", "import torch\nfrom largeforge.data.config import ChatConfig\nfrom largeforge.chat import Message"),
        ("task/x.py", "from largeforge.task.config import TrainConfig\nfrom largeforge.build import build"),
        ("artifact.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("run.py", "def f():\n    import torch"),
    ],
)
def test_the_law_can_be_kept(where: str, text: str) -> None:
    assert trespasses(where, text) == []


def test_every_group_is_a_part_and_no_drawer_is_opened() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {group.split("/")[0] for group in Library().groups()} <= names
    stems = {Path(name).stem for name in files()}
    assert not stems & {"utils", "util", "common", "helpers", "helper", "misc", "manager", "managers"}
