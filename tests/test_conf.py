"""Every YAML under conf/ and recipes/ composes and checks, and stands where its class stands (laws 1, 2 and 8)."""

from __future__ import annotations

import ast
import importlib
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge.config.compose import compose
from largeforge.config.composed import Composed
from largeforge.config.fields import config_class, part_class
from largeforge.config.places import Library, shipped
from largeforge.config.typed import PartConfig
from largeforge.config.yaml_file import read_yaml, target_of
from largeforge.errors import ConfigError
from largeforge.task.config import RootConfig

CONF, RECIPES = shipped("conf"), shipped("recipes")
PACKAGE = Path(importlib.import_module("largeforge").__file__ or "").parent
LIBRARY = Library()
CHOICES = [(group, choice) for group in LIBRARY.groups() for choice in LIBRARY.choices(group)]
PARTS = [(group, choice) for group, choice in CHOICES if group != "task"]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def given(argv: list[str]) -> list[str]:
    """Add what has no default (data.path), as a user would."""
    try:
        compose(argv)
    except ConfigError as error:
        missing = [f"{problem.key}=given" for problem in error.problems if problem.value == "???"]
        missing += ["teacher=nano" for problem in error.problems if problem.key == "teacher"]
        assert missing, str(error)
        return [*argv, *missing]
    return argv


@lru_cache(maxsize=1)
def slots() -> list[tuple[str, str]]:
    """Every (task, key) under which a group can be chosen: ("sft", "data"), ("prepare", "model@teacher"), ("prepare", "data/step@step.length")."""
    return [(task, key) for task in LIBRARY.choices("task") for key in compose(given([f"task={task}"])).choices if key != "task"]


def composed_with(group: str, choice: str) -> tuple[Composed, str]:
    """Compose a choice where some task takes it; return that, and where it stands."""
    told = []
    likely_first = sorted(slots(), key=lambda slot: not choice.startswith(slot[1].rpartition(".")[2]))  # step.augment for augment_simplify
    for task, key in likely_first:
        if key.partition("@")[0] == group:
            try:
                composed = compose(given([f"task={task}", f"{key}={choice}"]))
            except (ConfigError, AssertionError) as refused:
                told.append(str(refused))
                continue
            return composed, key
    raise AssertionError(f"no task takes {group}={choice}: " + "\n".join(told))


def test_every_file_is_counted() -> None:
    """No YAML stands where nothing sees it."""
    assert len(list(CONF.rglob("*.yaml"))) == len(CHOICES) + 1
    assert len(list(RECIPES.rglob("*.yaml"))) == len(LIBRARY.recipes())
    assert len(CHOICES) >= 22
    assert len(LIBRARY.recipes()) >= 3


@pytest.mark.parametrize("task", LIBRARY.choices("task"))
def test_every_task_composes(task: str) -> None:
    assert compose(given([f"task={task}"])).task == task


@pytest.mark.parametrize(("group", "choice"), PARTS)
def test_every_choice_composes(group: str, choice: str) -> None:
    composed, key = composed_with(group, choice)
    assert composed.choices[key] == choice
    node: Any = composed.config
    for name in (key.partition("@")[2] or key.replace("/", ".")).split("."):
        node = getattr(node, name)
    assert type(node).__name__ == f"{node.target.rpartition('.')[2]}Config"


@pytest.mark.parametrize(("group", "choice"), PARTS)
def test_the_mirror(group: str, choice: str) -> None:
    """conf/G/x.yaml names largeforge.G.<file>.<Class>, and that file has that class (law 1)."""
    target = target_of(CONF / group / f"{choice}.yaml") or ""
    *package, file, name = target.split(".")
    assert package == ["largeforge", *group.split("/")]
    path = PACKAGE.joinpath(*group.split("/"), f"{file}.py")
    assert path.is_file(), f"{target}: there is no {path.relative_to(PACKAGE.parent)}"
    classes = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    assert name in classes


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_has_a_title_and_a_comment_a_key(group: str, choice: str) -> None:
    """Help reads them (law 2): the first line says what the choice is, a key's comment or its field's description what it does."""
    file = read_yaml(CONF / group / f"{choice}.yaml")
    assert file.title, f"{group}/{choice}.yaml starts without a comment"
    assert len(file.title) <= 140


def test_no_typed_config_has_a_default_and_every_field_is_described() -> None:
    """Law 2: every default stands once, in YAML; a description for every field."""
    seen = 0
    for path in PACKAGE.rglob("*config.py"):
        module = importlib.import_module(".".join(["largeforge", *path.relative_to(PACKAGE).with_suffix("").parts]))
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, (PartConfig, RootConfig)) and cls.__module__ == module.__name__:
                for field, info in cls.model_fields.items():
                    seen += 1
                    assert info.is_required(), f"{name}.{field} has a default in Python"
                    inherited = any(
                        (base.model_fields[field].description or "") for base in cls.__mro__ if hasattr(base, "model_fields") and field in base.model_fields
                    )
                    assert inherited, f"{name}.{field} has no description"
    assert seen > 60


def test_every_group_is_typed_by_name() -> None:
    for task in LIBRARY.choices("task"):
        target = read_yaml(CONF / "task" / f"{task}.yaml").values["task"]["_target_"]
        root = config_class(target, base=RootConfig, package="largeforge.task", trust=())
        groups = [name for name, info in root.model_fields.items() if part_class(info) is not None]
        assert "task" in groups


@pytest.mark.parametrize("name", LIBRARY.recipes())
def test_every_recipe_runs_by_its_first_line(name: str) -> None:
    """Proves SYS-U-003: example configurations that compose as their first line says; at most 25 lines."""
    path = RECIPES / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    program, *argv = shlex.split(lines[0].removeprefix("# "))[2:]
    assert (lines[0].startswith("# python -m largeforge "), program) == (True, "largeforge")
    assert f"recipe={name}" in argv
    composed = compose(argv)
    assert composed.recipe == name
    assert yaml.safe_load(path.read_text(encoding="utf-8"))
