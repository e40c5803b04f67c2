"""A YAML file of the user's own (a template set, a domain), read and typed: every fault in one answer, each with file and line.

Knows nothing about what the files mean; the classes given say that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from largeforge.config.nearest import nearest
from largeforge.config.yaml_file import YamlFile, read_yaml
from largeforge.errors import InputError

Kind = TypeVar("Kind", bound=BaseModel)
SHIPPED = Path(__file__).parent


class Faults:
    """Collects what is wrong with one file, by the path of the key at fault."""

    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.lines: list[tuple[int, str]] = []

    def add(self, where: Sequence[Any], message: str, *, below: int = 0) -> None:
        """Note one fault.

        Args:
            where: keys and positions from the top; parts that the file does not have are passed over.
            below: lines below the key's own.
        """
        path: tuple[str, ...] = ()
        for part in where:
            if (*path, str(part)) in self.file.lines:
                path = (*path, str(part))
        line = self.file.lines.get(path, 1) + below
        self.lines.append((line, f"  {self.file.path}:{line}  {'.'.join(path) or 'file'}: {message}"))

    def told(self) -> None:
        """Raise InputError where there is a fault."""
        if self.lines:
            count = len(self.lines)
            head = f"{count} problem{'s' if count != 1 else ''} in {self.file.path}"
            raise InputError("\n".join([head, *(text for _, text in sorted(self.lines))]), next_step=f"mend {self.file.path} where the lines say")


def read_typed(path: Path, kind: type[Kind]) -> tuple[Kind, Faults]:
    """Read a file as `kind`; returns it with a collector for further faults. Raises InputError with every fault."""
    file = read_yaml(path)
    faults = Faults(file)
    if file.broken is not None:
        raise InputError(f"{path}:{file.broken.line}:{file.broken.column}  is no YAML: {file.broken.message}", next_step=f"mend {path}")
    try:
        return kind.model_validate(file.values), faults
    except ValidationError as error:
        for problem in error.errors():
            faults.add(problem["loc"], _words(problem))
        faults.told()
        raise AssertionError("a validation error without a problem") from error


def set_path(name: str, *, folder: str, key: str) -> Path:
    """Return the file that a name or a path means.

    Args:
        name: as the user gave it: the name of a shipped one, or a path.
        folder: where shipped ones lie, below this package.
        key: what the user set to it.

    Raises:
        InputError: there is none; names the nearest.
    """
    shipped = {path.stem: path for path in sorted((SHIPPED / folder).glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        near = nearest(path.name, [other.name for other in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else None
        raise InputError(f"{key}={name}: there is no such file.", next_step=f"{key}={path.parent / near}" if near else f"ls {path.parent}")
    near = nearest(name, shipped) or next(iter(shipped))
    raise InputError(f"{key}={name} is not known (there are: {', '.join(shipped)}; or the path of your own .yaml).", next_step=f"{key}={near}")


def _words(problem: Any) -> str:
    """One problem of pydantic in plain words."""
    kind, given = problem["type"], problem.get("input")
    if kind == "missing":
        return f"{problem['loc'][-1]} is missing"
    if kind == "extra_forbidden":
        return f"{problem['loc'][-1]} is no key here"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{message[0].lower()}{message[1:]} (it is {str(given)[:60]!r})" if isinstance(given, (str, int, float)) else f"{message[0].lower()}{message[1:]}"
