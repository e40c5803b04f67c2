"""argv -> flags and settings: flags may stand anywhere, and free text needs no escaping.

Imports neither Hydra nor pydantic until a setting's value needs Hydra's grammar.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from largeforge.config.nearest import nearest
from largeforge.errors import LargeForgeError

FLAGS = {
    "--help, -h": "show this help, or with task=... every key of that task",
    "--version": "show the version",
    "--cfg job|hydra|all": "show the composed and checked config as YAML, and stop",
    "--origins": "show where every value was set, and stop",
    "--multirun, -m": "run once for every combination of the values separated by commas",
    "--metric NAME": "with -m and optuna: the metric of result.json to lower (default loss)",
    "--config-dir DIR": "take choices (DIR/<group>/x.yaml) and recipes (DIR/recipes/x.yaml) from here too",
    "--schema": "write a JSON Schema with which an editor completes recipe files",
    "--completion bash|zsh|fish": "write a script for tab completion",
}


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: exit code 2, with the next command to type."""

    def error(self, message: str) -> NoReturn:
        raise LargeForgeError(message[:1].upper() + message[1:] + ".", next_step="python -m largeforge --help")


SHORT = {
    "teacher": "model@teacher",
    "reference": "model@reference",
    "assistant": "model@assistant",
    "generator": "data/generator@generator",
    "check": "data/check@check",
    "step.augment": "data/step@step.augment",
}
"""What a group is called where it stands under another name: teacher=mistral7b means model@teacher=mistral7b."""


@dataclass(frozen=True)
class Flags:
    """What was asked for.

    Args:
        words: settings as typed, `key=value`.
        argv: everything as typed.
        trial: what a proof gives its own processes: a recipe that was checked as it is, with changes. Keys that `none` does not have, and settings
            that nothing would look at any more, are let pass.
    """

    words: tuple[str, ...]
    argv: tuple[str, ...]
    help: bool = False
    version: bool = False
    schema: bool = False
    multirun: bool = False
    origins: bool = False
    cfg: str | None = None
    metric: str = "loss"
    completion: str | None = None
    config_dirs: tuple[str, ...] = ()
    trial: bool = False


def read_flags(argv: Sequence[str]) -> Flags:
    """Tell flags from settings. Raises LargeForgeError for a flag that does not exist."""
    parser = _Parser(prog="largeforge", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--schema", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--origins", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--metric", default="loss")
    parser.add_argument("--completion", choices=["bash", "zsh", "fish"])
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    parser.add_argument("--trial", action="store_true")  # no user's: the help does not show it
    parser.add_argument("words", nargs="*")
    known = [name for action in parser._actions for name in action.option_strings]
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in known:
            setting = name.lstrip("-")
            near = nearest(setting, [flag[2:] for flag in known if flag.startswith("--")])
            mend = f"--{near}" if near else f"write {setting}=..., settings have no dashes"
            raise LargeForgeError(f"There is no flag {name}.", next_step=mend)
    found = vars(parser.parse_intermixed_args(list(argv)))
    return Flags(
        words=tuple(found["words"]),
        argv=tuple(argv),
        help=found["help"],
        version=found["version"],
        schema=found["schema"],
        multirun=found["multirun"],
        origins=found["origins"],
        cfg=found["cfg"],
        metric=found["metric"],
        completion=found["completion"],
        config_dirs=tuple(found["config_dir"]),
        trial=found["trial"],
    )


@dataclass(frozen=True)
class Setting:
    """One `key=value`.

    Args:
        word: as typed.
        key: without + or ~.
        sign: "", "+", "++" or "~".
        text: the value as typed; None where there is no "=".
        value: as Hydra's grammar reads it; the text itself where the grammar refuses it.
        sweep: the values of a sweep, None where it is none; an interval gives its two ends.
        line: `key=value` with the value quoted where Hydra's grammar needs it.
        origin: "command line" or the name of an environment variable.
    """

    word: str
    key: str
    sign: str
    text: str | None
    value: Any = None
    sweep: tuple[str, ...] | None = None
    interval: bool = False
    line: str = ""
    origin: str = "command line"


_PLAIN = re.compile(r"[A-Za-z_/.][\w/.-]*")
_INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d*)")
_FLOAT = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?\d+[eE][+-]?\d+")


def read_setting(word: str, *, multirun: bool, origin: str = "command line") -> Setting:
    """Read one word. A comma means a sweep under --multirun, and is plain text otherwise."""
    key, equals, text = word.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    key = key.strip()[len(sign) :]
    if not equals:
        return Setting(word, key, sign, None, origin=origin)
    lowered = text.lower()
    value: Any
    if _PLAIN.fullmatch(text) and lowered not in {"null", "true", "false", "nan", "inf"}:
        value = text
    elif lowered in {"true", "false"}:
        value = lowered == "true"
    elif lowered == "null":
        value = None
    elif _INTEGER.fullmatch(text):
        value = int(text)
    elif _FLOAT.fullmatch(text):
        value = float(text)
    elif text == "":
        value = ""
    else:
        from largeforge.config.hydra_seam import read_value

        read = read_value(text, multirun=multirun)
        return Setting(word, key, sign, text, read.value, read.sweep, read.interval, f"{key}={read.line}", origin)
    return Setting(word, key, sign, text, value, line=f"{key}={text}", origin=origin)
