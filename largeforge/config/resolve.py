"""Interpolations: `${key}` becomes the value of that key. What cannot be resolved is a finding, never an exception."""

from __future__ import annotations

import copy
from typing import Any

from largeforge.config.composition import Composition, leaves
from largeforge.config.finding import Finding


def resolve(it: Composition) -> dict[str, Any]:
    """Return the values with interpolations resolved; one that cannot be is a finding and `unsound`."""
    if not any(isinstance(value, str) and "${" in value for _, value in leaves(it.values)):
        return copy.deepcopy(it.values)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain = copy.deepcopy(it.values)
    sound = copy.deepcopy(it.values)
    open_ones: list[tuple[tuple[str, ...], str]] = []
    for path, value in leaves(it.values):
        if not (isinstance(value, str) and "${" in value):
            continue
        try:
            OmegaConf.create({"value": value})
            open_ones.append((path, value))
        except (OmegaConfBaseException, RecursionError):
            dotted = ".".join(path)
            _replace(sound, path, "")
            if not any(setter.word for setter in it.setters.get(dotted, [])[-1:]):  # free text of the command line stays what it is
                it.findings.append(Finding(dotted, value, "an interpolation is written ${key}", it.origin(dotted)))
                it.unsound.add(dotted)
    whole = OmegaConf.create(sound)
    for path, value in open_ones:
        dotted = ".".join(path)
        try:
            node: Any = whole
            for key in path:
                node = node[int(key)] if OmegaConf.is_list(node) else node[key]
            found = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        except (OmegaConfBaseException, RecursionError, ValueError, KeyError) as fault:
            reason = "it points at itself" if isinstance(fault, RecursionError) else str(fault).strip().splitlines()[0]
            it.findings.append(Finding(dotted, value, reason, it.origin(dotted)))
            it.unsound.add(dotted)
            found = None
        _replace(plain, path, found)
    return plain


def _replace(values: Any, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        values = values[int(key)] if isinstance(values, list) else values[key]
    values[int(path[-1]) if isinstance(values, list) else path[-1]] = value
