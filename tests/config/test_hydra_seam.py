"""The one file that touches Hydra's private names, and that those names are what we think they are."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import hydra

import largeforge
from largeforge.config.hydra_seam import Loaded, order_files, read_value

PACKAGE = Path(largeforge.__file__).parent


def test_hydras_private_names_stand_in_one_file() -> None:
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if re.search(r"hydra\._internal", path.read_text(encoding="utf-8"))]
    assert files == ["config/hydra_seam.py"]


def test_private_names_are_what_we_rely_on() -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.defaults_list import Overrides, _create_defaults_list
    from hydra._internal.hydra import Hydra

    assert hydra.__version__ == "1.3.8"
    assert list(inspect.signature(_create_defaults_list).parameters) == ["repo", "config_name", "overrides", "prepend_hydra", "skip_missing"]
    assert list(inspect.signature(ConfigLoaderImpl._load_configuration_impl).parameters)[1:] == [
        "config_name",
        "overrides",
        "run_mode",
        "from_shell",
        "validate_sweep_overrides",
    ]
    assert list(inspect.signature(Overrides.add_override).parameters) == ["self", "parent_config_path", "default"]
    assert list(inspect.signature(Hydra.multirun).parameters)[1:] == ["config_name", "task_function", "overrides", "with_log_configuration"]


def test_instantiate_is_used_nowhere() -> None:
    assert not [
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(from|import).*(\binstantiate\b|hydra\.utils)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_order_of_files() -> None:
    files = {
        "config": Loaded(None, ["_self_", {"task": None}, {"recipe": None}]),
        "task/t": Loaded("_global_", [{"/a": "x"}, {"/b": "y"}]),
        "a/x": Loaded(None, []),
        "b/y": Loaded(None, [{"override /a": "z"}]),
        "a/z": Loaded(None, ["x"]),
        "recipe/r": Loaded("_global_", [{"override /task": "t"}]),
    }
    order = order_files({"recipe": "r"}, load=files.get, is_group=lambda name: name in {"task", "recipe", "a", "b"})
    assert [(layer.config_path, layer.package) for layer in order.layers] == [
        ("config", ""),
        ("a/x", "a"),
        ("a/z", "a"),
        ("b/y", "b"),
        ("task/t", ""),
        ("recipe/r", ""),
    ]
    assert order.choices["a"] == "z"
    assert order.unused == {}


def test_values() -> None:
    assert read_value("[1, a]", multirun=False).value == [1, "a"]
    assert read_value("a,b", multirun=False).value == "a,b"
    assert read_value("a,b", multirun=True).sweep == ("a", "b")
    assert read_value("range(1,4)", multirun=True).sweep == ("1", "2", "3")
    assert read_value("What? 2+2=4", multirun=True).value == "What? 2+2=4"
    assert read_value("'quoted'", multirun=False).value == "quoted"
