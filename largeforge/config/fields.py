"""What keys a typed config has, and what each may hold, in words: for errors, help, schema and completion alike.

Reads pydantic classes; knows nothing about values in use or where they came from.
"""

from __future__ import annotations

import importlib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from largeforge.config.typed import PartConfig, Typed

_OWN = re.compile(r"largeforge(?:\.[a-z][a-z0-9_]*){2,}\.[A-Za-z]\w*")


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Args:
        path: dotted, from the root.
        kind: the type, as pydantic sees it.
        metadata: ranges.
        part: the base class of the group's choices, where the key is a group.
    """

    path: str
    kind: Any
    metadata: tuple[Any, ...]
    description: str
    part: type[PartConfig] | None = None

    @property
    def allowed(self) -> str:
        return in_words(self.kind, self.metadata)

    @property
    def literals(self) -> list[str]:
        return literals(self.kind)

    @property
    def takes_null(self) -> bool:
        return type(None) in members(self.kind)


def keys_of(cls: type[Typed], prefix: str = "", *, parts: dict[str, type[PartConfig]] | None = None) -> Iterator[Key]:
    """Yield every key below a class, its groups and nested classes included.

    Args:
        cls: a root, a part's config, or a nested class.
        parts: path of a group -> the class of the choice in use; the base class where it is not known.
    """
    for name, info in cls.model_fields.items():
        if name == "target":
            continue
        path = f"{prefix}{name}"
        part = part_class(info)
        yield Key(path, info.annotation, tuple(info.metadata), info.description or "", part)
        nested = (parts or {}).get(path) if part else typed_member(info.annotation)
        if nested is not None:
            yield from keys_of(nested, f"{path}.", parts=parts)


def part_class(info: FieldInfo) -> type[PartConfig] | None:
    """Return the base class of a group, where a field holds a choice."""
    found = typed_member(info.annotation)
    return found if found is not None and issubclass(found, PartConfig) else None


def typed_member(annotation: Any) -> type[Any] | None:
    """Return the nested class of a field: `Shape` of `Shape | None`."""
    for member in members(annotation):
        if isinstance(member, type) and issubclass(member, Typed):
            return member
    return None


def members(annotation: Any) -> list[Any]:
    """Return the alternatives of a type, `Annotated` stripped."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in members(member)]
    if origin is typing.Annotated:
        return members(typing.get_args(annotation)[0])
    return [annotation]


def literals(annotation: Any) -> list[str]:
    """Return the words a key can be completed with: literals, true and false, null."""
    found: list[str] = []
    for member in members(annotation):
        if typing.get_origin(member) is Literal:
            found.extend(str(value) for value in typing.get_args(member))
        elif member is bool:
            found.extend(["true", "false"])
        elif member is type(None):
            found.append("null")
    return found


def is_secret(annotation: Any) -> bool:
    return SecretStr in members(annotation)


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Say what a type allows: "a whole number, 1 or more", "one of: auto, fp32", "text or a list of text"."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = typing.get_args(annotation)
        words = [in_words(member, metadata) for member in inner if member is not type(None)]
        if type(None) in inner:
            words.append("null")
        listed = [word for word in words if word.startswith("one of: ")]
        if listed and len(listed) == 1:
            extra = ["true, false" if word == "true or false" else word for word in words if word not in listed]
            return f"{listed[0]}, {', '.join(extra)}" if extra else listed[0]
        return " or ".join(dict.fromkeys(words))
    if origin is typing.Annotated:
        base, *more = typing.get_args(annotation)
        inner_metadata = [part for item in more for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return in_words(base, inner_metadata)
    if origin is Literal:
        return f"one of: {', '.join(str(value) for value in typing.get_args(annotation))}"
    if origin in (list, tuple):
        inner = typing.get_args(annotation)
        return f"a list of {in_words(inner[0]).removeprefix('a ')}" if inner else "a list"
    if origin is dict or annotation is dict:
        return "keys and values"
    if annotation is bool:
        return "true or false"
    if annotation is int:
        return _ranged("a whole number", metadata)
    if annotation is float:
        return _ranged("a number", metadata)
    if annotation in (str, SecretStr):
        return "text"
    if isinstance(annotation, type) and issubclass(annotation, Typed):
        return "keys and values" if not issubclass(annotation, PartConfig) else "a choice"
    return str(getattr(annotation, "__name__", annotation))


def _ranged(noun: str, metadata: Sequence[Any]) -> str:
    low, high = "", ""
    for item in metadata:
        for name in ("ge", "gt", "le", "lt"):
            bound = getattr(item, name, None)
            if bound is None:
                continue
            if name == "ge":
                low = f"{bound:g} or more"
            elif name == "gt":
                low = f"above {bound:g}"
            elif name == "le":
                high = f"at most {bound:g}"
            else:
                high = f"below {bound:g}"
    return ", ".join(part for part in (noun, " and ".join(part for part in (low, high) if part)) if part)


def group_of(base: type[PartConfig]) -> str:
    """Return the dotted package of a group: "largeforge.model" for `largeforge.model.config.ModelConfig`."""
    return base.__module__.rpartition(".")[0]


class RefusedTarget(Exception):
    """A `_target_` that law 4 or the mirror refuses; the message says what is allowed."""


def config_class(target: Any, *, base: type[Typed], package: str, trust: Sequence[str]) -> type[Typed]:
    """Return the class that types a `_target_`, found by name alone: no heavy module is imported.

    Args:
        target: `largeforge.<group>.<file>.<Class>`, or of a package that the user trusts.
        base: what the class must derive from.
        package: the group's own package, "largeforge.model".
        trust: packages the user trusts.

    Raises:
        RefusedTarget: it points elsewhere, or has no `<Class>Config`.
    """
    own = f"{package}.<file>.<Class>"
    if not isinstance(target, str):
        raise RefusedTarget(own)
    root = target.partition(".")[0]
    if root == "largeforge":
        if not _OWN.fullmatch(target) or target.rpartition(".")[0].rpartition(".")[0] != package:
            raise RefusedTarget(f"{own}; nothing else may be built here")
        where = package
    elif root in trust and re.fullmatch(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*){2,}", target):
        where = target.rpartition(".")[0].rpartition(".")[0]
    else:
        raise RefusedTarget(f"{own}; to trust the package {root or target!r} of your own add trust=[{root}]")
    name = target.rpartition(".")[2]
    try:
        module = importlib.import_module(f"{where}.config")
    except ImportError as fault:
        raise RefusedTarget(f"{where}.config cannot be imported ({fault})") from fault
    cls = getattr(module, f"{name}Config", None)
    if not (isinstance(cls, type) and issubclass(cls, base)) or (not cls.__module__.startswith(f"{where}.") and root == "largeforge"):
        raise RefusedTarget(f"a class with a {name}Config (derived from {base.__name__}) in {where}/config.py")
    return cls
