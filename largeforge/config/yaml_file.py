"""One YAML file, read once: its values, and the line, text and comment of every key.

Broken YAML is a finding with line and column, never an exception. Knows nothing about groups or what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from largeforge.config.places import first_comment

_HEADER = re.compile(r"^\s*#\s*@(\S+)\s*(.*?)\s*$")
_NODES_AT_MOST = 5_000
Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Broken:
    """Why a file could not be read; line and column count from 1."""

    message: str
    line: int
    column: int


@dataclass
class YamlFile:
    """A file of values.

    Args:
        values: plain values; {} where the file is broken or empty.
        lines: line of every key, by path; list items have their position as a word.
        texts: what was written, for every scalar.
        header: `# @package x` lines, by keyword.
        title: the first comment line, what help prints.
        anchors: True where the file uses anchors or aliases.
    """

    path: Path
    text: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path_, int] = field(default_factory=dict)
    texts: dict[Path_, str] = field(default_factory=dict)
    header: dict[str, tuple[str, int]] = field(default_factory=dict)
    title: str = ""
    broken: Broken | None = None

    @cached_property
    def rows(self) -> list[str]:
        return self.text.splitlines()

    def comment(self, path: Path_) -> str:
        """Return the comment that stands on a key's line."""
        line = self.lines.get(path)
        if line is None:
            return ""
        found = re.search(r"(?:^|\s)#\s*(.*)$", self.rows[line - 1])
        return found.group(1).strip() if found else ""


def read_yaml(path: Path) -> YamlFile:
    """Read a file; the same file is parsed once as long as it does not change."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


def target_of(path: Path | None) -> str | None:
    """Return the `_target_` of a choice, its own or that of the choice of the same folder which it extends."""
    for _ in range(8):
        if path is None or not path.is_file():
            return None
        values = read_yaml(path).values
        if "_target_" in values:
            return str(values["_target_"])
        raw = values.get("defaults", [])
        parents = [item for item in (raw if isinstance(raw, list) else []) if isinstance(item, str) and item != "_self_"]
        path = path.parent / f"{parents[-1]}.yaml" if parents else None
    return None


@lru_cache(maxsize=512)
def _read(path: Path, _mtime_ns: int, _size: int) -> YamlFile:
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as fault:
        return YamlFile(path, "", broken=Broken(f"cannot be read: {fault}", 1, 1))
    file = YamlFile(path, text, title=first_comment(text))
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        found = _HEADER.match(line)
        if found:
            file.header[found.group(1)] = (found.group(2), number)
    try:
        loader = _loader()(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return file
            _walk(node, (), file, [0], ())
            values = loader.construct_document(node)
        finally:
            loader.dispose()
        if not isinstance(values, dict):
            raise yaml.MarkedYAMLError(problem=f"expected keys and values, found {type(values).__name__}", problem_mark=node.start_mark)
        file.values = values
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        message = " ".join(part for part in (fault.context, fault.problem) if part)
        file.broken = Broken(message, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1)
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        file.broken = Broken(str(fault).splitlines()[0] if str(fault) else type(fault).__name__, 1, 1)
    if file.broken:
        file.values, file.lines, file.texts = {}, {}, {}
    return file


@lru_cache(maxsize=1)
def _loader() -> Any:
    """OmegaConf's rules of what a scalar is (1e5 is a number, no dates), on libyaml where it is there."""
    from omegaconf._utils import get_yaml_loader

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return type("Loader", (base,), {"yaml_implicit_resolvers": get_yaml_loader().yaml_implicit_resolvers})


def _walk(node: yaml.Node, path: Path_, file: YamlFile, count: list[int], above: tuple[int, ...]) -> None:
    """Note line and text of every key; refuse duplicate keys, keys that are no text, and files that unfold without end."""
    count[0] += 1
    if id(node) in above or count[0] > _NODES_AT_MOST:
        raise yaml.MarkedYAMLError(problem="the file unfolds into too many values (anchors)", problem_mark=node.start_mark)
    above = (*above, id(node))
    file.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        file.texts[path] = str(node.value)
    for key, child, mark in _children(node):
        below = (*path, key)
        if below in file.lines and isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem=f"found duplicate key {key}", problem_mark=mark)
        file.lines[below] = mark.line + 1
        _walk(child, below, file, count, above)


def _children(node: yaml.Node) -> Iterator[tuple[str, yaml.Node, yaml.Mark]]:
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            yield str(position), child, child.start_mark
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            yield str(key.value), child, key.start_mark
