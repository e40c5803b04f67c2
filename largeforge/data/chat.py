"""Rows of chat from the user's files or a Hub data set, as a DataModule. Knows nothing about tokens: `RowsModule` does the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.contract import Reference
from largeforge.data.formats import BadField, Format, detect_chat, explain_unknown, kind, read_messages
from largeforge.data.hub import HubRows
from largeforge.data.module import RowsModule
from largeforge.data.rows import BadRow, ChatRow
from largeforge.data.sources import Source, find_sources, in_one_stream, is_mixed, paths_of, records_of, refuse_unused

if TYPE_CHECKING:
    from largeforge.data.config import ChatConfig


class Chat(RowsModule):
    """Conversations from JSONL, JSON, CSV, Parquet or Arrow files, or from the Hub."""

    config: ChatConfig

    def __init__(self, config: ChatConfig, **live: Any) -> None:
        super().__init__(config, **live)
        refuse_unused(config, *([config.validation] if isinstance(config.validation, str) else []))

    def rows(self) -> Iterator[ChatRow | BadRow]:
        """Stream the rows of every path in order, or mixed; at most `data.limit` good ones."""
        return in_one_stream(self._sources, self.config.mix, self._read, limit=self.config.limit)

    def validation_rows(self) -> Iterator[ChatRow | BadRow] | None:
        """Rows of `data.validation` where it is a path."""
        return (row for source in self._validation for row in self._read(source)) if self._validation else None

    def fingerprint(self) -> str:
        """sha256 of the rows' bytes and of how they are read."""
        suffixes = [file.suffix.lower() for source in (*self._sources, *self._validation) for file in source.files]
        how: list[Any] = [suffixes, self._rows_hash, self._validation_hash, self.config.format, self.config.limit]
        if is_mixed(self.config.mix):
            how += [source.reference().sha256 for source in self._sources] + [self.config.mix.model_dump()]
        return hashlib.sha256(repr(how).encode()).hexdigest()

    @property
    def source(self) -> Reference:
        """The files or the Hub data set, with the hash of the bytes."""
        return Reference(kind="data", name=", ".join(paths_of(self.config)), revision=self.config.revision or "", sha256=self._rows_hash)

    def expected_rows(self) -> int | None:
        """Rows of every source, where each is quick to count."""
        if is_mixed(self.config.mix):
            return self.config.limit
        counts = [source.count() for source in self._sources]
        known = None if None in counts else sum(count for count in counts if count is not None)
        return known if known is None or self.config.limit is None else min(known, self.config.limit)

    # ---- inside ----

    @cached_property
    def _sources(self) -> list[Source]:
        return find_sources(self.config, paths_of(self.config), storage=self.storage, artifacts=False)

    @cached_property
    def _validation(self) -> list[Source]:
        paths = [self.config.validation] if isinstance(self.config.validation, str) else []
        return find_sources(self.config, paths, storage=self.storage, key="data.validation", artifacts=False)

    @cached_property
    def _rows_hash(self) -> str:
        parts = [source.reference().sha256 for source in self._sources]
        return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def _validation_hash(self) -> str:
        return "".join(source.reference().sha256 for source in self._validation)

    def _read(self, source: Source) -> Iterator[ChatRow | BadRow]:
        for piece in source.pieces():
            yield from self._checked(source, piece)

    def _checked(self, source: Source, piece: Path | HubRows) -> Iterator[ChatRow | BadRow]:
        """Detect the format on the first record that shows one, then read every record in it."""
        layout: Format | None = None if self.config.format == "auto" else self.config.format
        for item in records_of(source, piece):
            if isinstance(item, BadRow):
                yield item
                continue
            if not isinstance(item.value, dict):
                yield BadRow(item.origin, "", f"is {kind(item.value)}; an object with fields is needed")
                continue
            layout = layout or detect_chat(item.value)
            yield _row(item.value, item.origin, layout)


def _row(record: dict[str, Any], origin: str, layout: Format | None) -> ChatRow | BadRow:
    if layout is None:
        return BadRow(origin, "", explain_unknown(record), "rename the fields, or name the format: data.format=messages")
    try:
        return ChatRow(read_messages(record, layout), origin)
    except BadField as fault:
        return BadRow(origin, fault.field, fault.message)
