"""What a file from elsewhere may not do (law 4): refused before anything in it is used.

Pure functions on one parsed file. Where a `_target_` may point is judged later, on the composed config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from largeforge.config.command_line import SHORT
from largeforge.config.finding import Finding
from largeforge.config.places import Library, shown
from largeforge.config.yaml_file import YamlFile

LISTS = ("tracker",)
"""Groups of which a recipe may choose several, as a list."""
USERS_OWN = {"trust": "only the command line or ~/.largeforge/settings.yaml may trust a package", "folder": "only the command line may say where a run goes"}
PROGRAMS = {"python", "arguments"}
"""Keys of an engine that name a program of this machine and the words it is given: vLLM's can have it import any module."""
_KEY = re.compile(r"\.*[A-Za-z_]\w*(?:\.\w+|\[\d+\])*")
_CHOICE = re.compile(r"[A-Za-z0-9_][\w.+-]*(?:/[A-Za-z0-9_][\w.+-]*)*")
_GROUP = re.compile(r"[a-z][a-z0-9_]*(?:/[a-z][a-z0-9_]*)*")
_PACKAGE = re.compile(r"[a-z][a-z0-9_]*")


def refuse(file: YamlFile, *, recipe: bool, root: bool) -> tuple[dict[str, Any], list[Any], list[Finding]]:
    """Return the values and the defaults list that may be used, and what was refused.

    Args:
        file: the parsed file.
        recipe: whether it is a recipe; else a choice of --config-dir.
        root: it stands at the root, as recipes and tasks do; other choices stand below their group.
    """
    findings: list[Finding] = []
    name = shown(file.path)

    def tell(path: tuple[str, ...], value: Any, why: str) -> None:
        findings.append(Finding(".".join(path), value, why, f"{name}:{file.lines.get(path, 1)}"))

    for keyword, (value, line) in file.header.items():
        if not (keyword == "package" and value == "_global_" and root):
            findings.append(
                Finding(
                    f"# @{keyword}",
                    value,
                    "it stands at the root; it may not choose its package" if root else "a choice may not choose its package",
                    f"{name}:{line}",
                )
            )
    values = {key: value for key, value in file.values.items() if key != "defaults"}
    for key in list(values):
        word = str(key)
        if word.split(".")[0].split("/")[0] == "hydra" or word.startswith("hydra"):
            tell((word,), values.pop(key), "Hydra's own settings may not be touched by a file from elsewhere")
        elif word in USERS_OWN and root:
            tell((word,), values.pop(key), USERS_OWN[word])
        elif "." in word:
            tell((word,), values.pop(key), f"write it nested: {word.replace('.', ': {', 1)}: ...}}")
    engine: Any = values.get("engine") if root else values if file.path.parent.name == "engine" else None
    for key in sorted(PROGRAMS & set(engine if isinstance(engine, dict) else ())):
        tell(("engine", key) if root else (key,), engine.pop(key), "only the command line may say which program runs, and with which words")
    for path, text in _scalars(values, ()):
        if {"_args_", "_partial_", "_recursive_", "_convert_"} & set(path):
            tell(path, text, "not known here: LargeForge builds its parts itself")
            _cut(values, path)
        elif isinstance(text, str) and "${" in text and not _plain(text):
            tell(path, text, "a file from elsewhere may interpolate ${key} only, no resolvers")
            _cut(values, path)
    defaults, more = _defaults(file, recipe=recipe, name=name)
    return values, defaults, findings + more


def _plain(text: str) -> bool:
    """True where every interpolation in a text is the name of a key, and not of Hydra's node."""
    inner = re.findall(r"\$\{([^${}]*)\}", text)
    if text.count("${") != len(inner):
        return False
    return all(_KEY.fullmatch(key.strip()) and key.strip().lstrip(".").split(".")[0].split("[")[0] not in {"hydra", "trust"} for key in inner)


def _defaults(file: YamlFile, *, recipe: bool, name: str) -> tuple[list[Any], list[Finding]]:
    """Check a defaults list; a recipe's groups become overrides, whether it wrote `override` or not, and stand last."""
    findings: list[Finding] = []
    raw = file.values.get("defaults", [])
    first: list[Any] = []
    last: list[Any] = []

    def tell(position: str, value: Any, why: str) -> None:
        path = ("defaults", position) if position else ("defaults",)
        findings.append(Finding("defaults", value, why, f"{name}:{file.lines.get(path, file.lines.get(('defaults',), 1))}"))

    if not isinstance(raw, list):
        tell("", raw, "a list, such as [override /model: nano]")
        return [], findings
    for position, item in enumerate(raw):
        place = str(position)
        if isinstance(item, str):
            path = item.lstrip("/")
            if path.split("/")[0].split("@")[0] == "hydra":
                tell(place, item, "Hydra's own settings may not be touched by a file from elsewhere")
            elif item != "_self_" and not _CHOICE.fullmatch(path):
                tell(place, item, "the name of a recipe, as /recipe/other" if recipe else "the name of another choice of this group")
            else:
                first.append(item)
        elif isinstance(item, dict) and len(item) == 1:
            (key, choice), *_ = item.items()
            named = str(key).split(" ")[-1].lstrip("/")
            group, _, package = SHORT.get(named, named).partition("@")
            keywords = str(key).split(" ")[:-1]
            if group.split("/")[0] == "hydra" or package.split(".")[0] == "hydra":
                tell(place, item, "Hydra's own settings may not be touched by a file from elsewhere")
            elif package and (not _PACKAGE.fullmatch(package) or package in USERS_OWN):
                tell(place, item, "a group may be used a second time under a plain name, such as model@teacher")
            elif not _GROUP.fullmatch(group) or not set(keywords) <= {"override", "optional"}:
                tell(place, item, "no group; write override /model: nano")
            elif (
                recipe
                and isinstance(choice, list)
                and group in LISTS
                and not package
                and all(isinstance(one, str) and _CHOICE.fullmatch(one) for one in choice)
            ):
                last.append({f"override /{group}": "several"})
                # the others by null: a list is taken whole, over that of a recipe which this one extends
                last.extend({f"override /{group}@{group}.{one}": one if one in choice else None} for one in dict.fromkeys([*choice, *Library().choices(group)]))
            elif choice is not None and not (isinstance(choice, str) and _CHOICE.fullmatch(choice)):
                tell(place, item, f"the name of one choice of {group}")
            elif recipe and group == "recipe":
                first.append(f"/recipe/{choice}")
            elif recipe:
                last.append({f"override /{group}{'@' + package if package else ''}": choice})
            else:
                (last if "override" in keywords else first).append(item)
        else:
            tell(place, item, "one group and its choice, such as override /model: nano")
    return [*first, *last], findings


def _scalars(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, child in list(value.items()):
            if isinstance(key, str) and "${" in key:
                yield (*path, key), key + "${:}"
            else:
                yield from _scalars(child, (*path, str(key)))
    elif isinstance(value, list):
        for position, child in enumerate(value):
            yield from _scalars(child, (*path, str(position)))
    else:
        yield path, value


def _cut(values: Any, path: tuple[str, ...]) -> None:
    """Take a refused value out, so that nothing reads it; a list it stood in is emptied of it."""
    node = values
    for key in path[:-1]:
        node = node[int(key)] if isinstance(node, list) else node[key]
    if isinstance(node, list):
        node[int(path[-1])] = ""
    else:
        node.pop(path[-1], None)
