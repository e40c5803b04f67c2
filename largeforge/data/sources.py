"""What the paths of a config mean: files here, files fetched from a storage, a data artifact, a Hub data set. Knows nothing about what rows say.

A source is one entry of `data.path`; sources are read one after another, or mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from largeforge.artifact import MANIFEST, is_artifact, sha256_of
from largeforge.contract import Reference
from largeforge.data.files import SUFFIXES, count_rows, files_hash, is_data, is_hub_id, locate, records, rows_first
from largeforge.data.hub import HubRows
from largeforge.data.mix import mixed
from largeforge.data.record import Record
from largeforge.data.rows import BadRow
from largeforge.errors import InputError

if TYPE_CHECKING:
    from largeforge.contract import Storage
    from largeforge.data.config import MixConfig, SourceConfig
    from largeforge.data.shards import DataFolder

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One entry of a config's paths; one of files, hub and artifact is there.

    Args:
        name: as the user wrote it.
        files: local files, in order.
        hub: a Hub data set.
        artifact: a data artifact.
        fetched: whether the files are copies in the cache, whose names mean nothing to the user.
    """

    name: str
    files: tuple[Path, ...] = ()
    hub: HubRows | None = None
    artifact: DataFolder | None = None
    fetched: bool = False

    def reference(self) -> Reference:
        """The source with the hash of its bytes: one file's own, several files' in order, an artifact's id."""
        if self.artifact is not None:
            return Reference(kind="data", name=self.name, sha256=self.artifact.artifact.id)
        if self.hub is not None:
            return Reference(kind="data", name=self.name, revision=self.hub.revision or "", sha256=self.hub.fingerprint())
        return Reference(kind="data", name=self.name, sha256=sha256_of(self.files[0]) if len(self.files) == 1 else files_hash(self.files))

    def pieces(self) -> Iterator[Path | HubRows]:
        """What is read one after another, each with a layout of its own."""
        if self.hub is not None:
            yield self.hub
        yield from self.files

    def shown(self, file: Path) -> str:
        """What origins call a file: its path, or the URL it was fetched from."""
        if not self.fetched:
            return str(file)
        return self.name if len(self.files) == 1 else f"{self.name.rstrip('/*')}/{file.name}"

    def count(self) -> int | None:
        """Rows, where that is quick to know."""
        if self.artifact is not None:
            return sum(self.artifact.splits.values())
        if self.hub is not None:
            return None if self.hub.streaming else len(self.hub)
        counts = [count_rows(file) for file in self.files]
        return None if None in counts else sum(count for count in counts if count is not None)


def find_sources(config: SourceConfig, paths: Sequence[str], *, storage: Storage | None, key: str = "data.path", artifacts: bool = True) -> list[Source]:
    """Look every path up, before the first row is read.

    Args:
        config: says which split, subset and revision of a Hub data set is meant.
        paths: what is looked up.
        storage: brings what is elsewhere.
        key: what the user set to the paths.
        artifacts: whether rows of a data artifact can be used.

    Raises:
        InputError: a path that means nothing.
    """
    found = [_find(path, config, storage, key) for path in paths]
    for source in found:
        if source.artifact is not None and not artifacts:
            raise InputError(f"{key} = {source.name} is a data artifact.", next_step=f"data=artifact data.path={source.name}")
    return found


def paths_of(config: SourceConfig) -> list[str]:
    """The config's paths, one or many."""
    return [config.path] if isinstance(config.path, str) else list(config.path)


def refuse_unused(config: SourceConfig, *more: str) -> None:
    """No setting is ignored: one that none of the config's paths (and `more`) has a use for is refused. Raises InputError."""
    names = paths_of(config)
    if not any(is_hub_id(name) for name in (*names, *more)):
        for key, usual in (("revision", None), ("split", "train"), ("subset", None), ("streaming", False)):
            if (value := getattr(config, key)) != usual:
                said = f"data.{key} = {str(value).lower() if value is True else value} is for a Hub data set (org/name)"
                raise InputError(f"{said}; data.path = {', '.join(names)} are files.", next_step=f"leave data.{key} out")
    mix = config.mix
    for key, values in (("weights", mix.weights), ("caps", mix.caps)):
        if isinstance(values, list) and len(values) != len(names):
            raise InputError(
                f"data.mix.{key} has {len(values)} values; data.path has {len(names)} path{'s' if len(names) != 1 else ''}.",
                next_step=f"one value for each path, in order: data.mix.{key}=[{','.join(map(str, islice([*values, *[1] * len(names)], len(names))))}]",
            )
    if mix.weights is None:
        for key, neutral in (("temperature", 1.0), ("exhausted", "stop"), ("seed", 0)):
            if getattr(mix, key) != neutral:
                said = f"data.mix.{key} = {getattr(mix, key)} is for paths that are mixed by weight"
                raise InputError(f"{said}.", next_step="data.mix.weights=rows, or a weight for each path")


def records_of(source: Source, piece: Path | HubRows) -> Iterator[Record | BadRow]:
    """Stream the records of one piece; one that holds none is told as a bad row."""
    if isinstance(piece, HubRows):
        name, items = piece.name, iter(piece.records())
    else:
        name, items = source.shown(piece), called(records(piece), piece, source.shown(piece))
    first = next(items, None)
    if first is None:
        yield BadRow(name, "", "holds no rows", "give a file with rows")
        return
    yield first
    yield from items


def called(items: Iterator[Any], file: Path, shown: str) -> Iterator[Any]:
    """The same items, whose origins call the file what the user calls it."""
    if shown == str(file):
        yield from items
        return
    for item in items:
        yield replace(item, origin=shown + item.origin[len(str(file)) :])


def in_one_stream(
    sources: Sequence[Source], mix: MixConfig, read: Callable[[Source], Iterator[T | BadRow]], *, limit: int | None = None
) -> Iterator[T | BadRow]:
    """The rows of every source, mixed as the config says, or one after another; at most `limit` good ones."""
    rows = _mixed(sources, mix, read)
    kept = 0
    for row in rows:
        yield row
        kept += not isinstance(row, BadRow)
        if kept == limit:
            return


def is_mixed(mix: MixConfig) -> bool:
    """Whether rows come in another order, or fewer, than they stand in."""
    return mix.weights is not None or mix.caps is not None


# ---- inside ----


def _mixed(sources: Sequence[Source], mix: MixConfig, read: Callable[[Source], Iterator[T | BadRow]]) -> Iterator[T | BadRow]:
    if mix.weights is None:
        for source, cap in zip(sources, mix.caps or [None] * len(sources), strict=True):
            kept = 0
            for row in read(source):
                yield row
                kept += not isinstance(row, BadRow)
                if kept == cap:
                    break
        return
    weights = [float(_size(source, read)) for source in sources] if mix.weights == "rows" else list(mix.weights)

    def reader(source: Source) -> Callable[[], Iterator[T | BadRow]]:
        return lambda: read(source)

    yield from mixed([reader(s) for s in sources], weights, temperature=mix.temperature, caps=mix.caps, exhausted=mix.exhausted, seed=mix.seed)


def _size(source: Source, read: Callable[[Source], Iterator[Any]]) -> int:
    count = source.count()
    return max(1, sum(1 for _ in read(source)) if count is None else count)


def _find(name: str, config: SourceConfig, storage: Storage | None, key: str) -> Source:
    if storage is not None and storage.is_remote(name):
        files = storage.fetch(name)
        manifests = sorted((file for file in files if file.name == MANIFEST), key=lambda file: len(file.parts))
        if manifests:
            return Source(name, artifact=_opened(manifests[0].parent))
        kept = tuple(rows_first([file for file in files if is_data(file)])) if len(files) > 1 else tuple(locate(str(files[0]), key=key))
        if not kept:
            raise InputError(f"{key} = {name} holds no data file (looked for: {', '.join(SUFFIXES)}).", next_step=f"{key}=URL of a file")
        return Source(name, files=kept, fetched=True)
    here = Path(name).expanduser()
    for folder in (here, here / "artifact"):  # the artifact itself, or the run that left it
        if is_artifact(folder):
            return Source(name, artifact=_opened(folder))
    if is_hub_id(name):
        return Source(name, hub=HubRows(name, split=config.split, revision=config.revision, subset=config.subset, streaming=config.streaming))
    return Source(name, files=tuple(locate(name, key=key)))


def _opened(folder: Path) -> DataFolder:
    from largeforge.data.shards import open_data

    return open_data(folder)
