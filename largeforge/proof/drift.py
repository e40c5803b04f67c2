"""What differs between the machine that a lock was written on and this one; reads no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge.config.lock import surroundings
from largeforge.contract import Reference

HARMLESS = ("hydra-core", "omegaconf", "pydantic")  # they read the config, and the lock holds what they made of it


@dataclass(frozen=True)
class Drift:
    """One thing that is not as it was.

    Args:
        kind: what `allow` calls it: "package", "data" ...
        what: which one.
        locked: in the lock; "-" where it holds none.
        here: on this machine.
        matters: whether it can change the result.
    """

    kind: str
    what: str
    locked: str
    here: str
    matters: bool = True

    def cells(self) -> tuple[str, str, str, str]:
        """A row of the table."""
        return (self.what, self.locked, self.here, "yes" if self.matters else "no")


COLUMNS = ("what", "in the lock", "here", "can change the result")


def of_surroundings(lock: Mapping[str, Any]) -> list[Drift]:
    """Packages, Python, machine; what an older lock does not hold is passed over."""
    here = surroundings()
    found = [
        Drift(kind, name, str(lock[name]), str(here[name]))
        for kind, name in (("largeforge", "largeforge"), ("python", "python"), ("machine", "machine"))
        if name in lock and lock[name] != here[name]
    ]
    locked = lock.get("processor") or {}
    found += [
        Drift("machine", name.replace("_", " "), _said(locked[name]), _said(value))
        for name, value in here["processor"].items()
        if name in locked and locked[name] != value
    ]
    packages = lock.get("packages") or {}
    found += [
        Drift("package", name, _said(packages[name]), _said(version), name not in HARMLESS)
        for name, version in here["packages"].items()
        if name in packages and packages[name] != version
    ]
    return found


def of_device(lock: Mapping[str, Any], *, device: str, precision: str) -> list[Drift]:
    """Where it would run, and how it would calculate."""
    facts = lock.get("facts") or {}
    return [
        Drift(name, name, str(facts[name]), here) for name, here in (("device", device), ("precision", precision)) if name in facts and str(facts[name]) != here
    ]


def of_template(lock: Mapping[str, Any], sha256: str) -> list[Drift]:
    """The chat template."""
    locked = str(lock.get("template_sha256", ""))
    return [Drift("template", "chat template", locked[:12], sha256[:12])] if locked and locked != sha256 else []


def of_sources(lock: Mapping[str, Any], here: Sequence[Reference]) -> list[Drift]:
    """Model and data, by the hash of their content."""
    return list(_sources(lock.get("sources") or [], here))


def _sources(locked: Sequence[Mapping[str, Any]], here: Sequence[Reference]) -> Iterator[Drift]:
    known = {_place(one.kind, one.name): one for one in here}
    for was in locked:
        kind, name = str(was.get("kind")), str(was.get("name"))
        now = known.get(_place(kind, name))
        hashes = str(was.get("sha256", "")), now.sha256 if now is not None else ""
        if hashes[0] != hashes[1]:
            yield Drift(_place(kind, name)[0], f"{kind} {name}", hashes[0][:12] or "-", hashes[1][:12] or "-")


def _place(kind: str, name: str) -> tuple[str, str]:
    return ("data" if kind == "data" else "model", name)


def _said(value: Any) -> str:
    return "-" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
