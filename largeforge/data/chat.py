"""Rows of chat from the user's files or a Hub data set, as a DataModule. Knows nothing about tokens: `RowsModule` does the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from largeforge.chat import Example
from largeforge.contract import Reference
from largeforge.data.files import Record, count_rows, files_hash, is_hub_id, locate, records
from largeforge.data.formats import BadField, Format, detect_chat, explain_unknown, kind, read_messages
from largeforge.data.hub import HubRows
from largeforge.data.module import RowsModule
from largeforge.data.rows import BadRow, ChatRow
from largeforge.data.tokens import is_validation
from largeforge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from largeforge.contract import Progress
    from largeforge.data.config import ChatConfig


class Chat(RowsModule):
    """Conversations from JSONL, JSON, CSV, Parquet or Arrow files, or from the Hub."""

    config: ChatConfig

    def __init__(
        self,
        config: ChatConfig,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str | None = None,
        train_on: Literal["answer", "all"] = "answer",
        progress: Progress | None = None,
    ) -> None:
        super().__init__(config, tokenizer=tokenizer, template=template, train_on=train_on, progress=progress)
        paths = [*self._paths, *([config.validation] if isinstance(config.validation, str) else [])]
        if not any(is_hub_id(path) for path in paths) and (config.revision is not None or config.split != "train"):
            key, value = ("data.revision", config.revision) if config.revision is not None else ("data.split", config.split)
            raise InputError(f"{key} = {value} is for a Hub data set (org/name); data.path = {', '.join(self._paths)} are files.", next_step=f"leave {key} out")

    def rows(self) -> Iterator[ChatRow | BadRow]:
        """Stream the rows of every path in order, at most `data.limit` good ones."""
        return self._limited(self._read(self._paths))

    def validation_rows(self) -> Iterator[ChatRow | BadRow] | None:
        """Rows of `data.validation` where it is a path."""
        return self._read([self.config.validation]) if isinstance(self.config.validation, str) else None

    def fingerprint(self) -> str:
        """sha256 of the rows' bytes and of how they are read."""
        return hashlib.sha256(repr((self._rows_hash, self._validation_hash, self.config.format, self.config.limit)).encode()).hexdigest()

    @property
    def source(self) -> Reference:
        """The files or the Hub data set, with the hash of the bytes."""
        return Reference(kind="data", name=", ".join(self._paths), revision=self.config.revision or "", sha256=self._rows_hash)

    def heldout(self) -> list[Example]:
        """The validation rows as questions: every turn before the last answer, and that answer."""
        if isinstance(self.config.validation, str):
            rows = self._read([self.config.validation])
        else:
            share = self.config.validation
            rows = (row for row in self.rows() if isinstance(row, ChatRow) and is_validation(row, share)) if share else iter(())
        return [_example(row) for row in rows if isinstance(row, ChatRow)]

    def expected_rows(self) -> int | None:
        """Rows of every source, where each is quick to count."""
        counts = [len(source) if isinstance(source, HubRows) else count_rows(source) for source in self._sources(self._paths)]
        known = None if None in counts else sum(count for count in counts if count is not None)
        return known if known is None or self.config.limit is None else min(known, self.config.limit)

    # ---- inside ----

    @property
    def _paths(self) -> list[str]:
        return [self.config.path] if isinstance(self.config.path, str) else list(self.config.path)

    @cached_property
    def _rows_hash(self) -> str:
        return self._hash(self._paths)

    @cached_property
    def _validation_hash(self) -> str:
        return self._hash([self.config.validation]) if isinstance(self.config.validation, str) else ""

    def _hash(self, paths: list[str]) -> str:
        parts = [self._hub(path).fingerprint() if is_hub_id(path) else files_hash(self._files(path)) for path in paths]
        return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _hub(self, path: str) -> HubRows:
        return HubRows(path, split=self.config.split, revision=self.config.revision)

    def _read(self, paths: list[str]) -> Iterator[ChatRow | BadRow]:
        for source in self._sources(paths):
            found = False
            for row in self._checked(source.records() if isinstance(source, HubRows) else records(source)):
                found = True
                yield row
            if not found:
                yield BadRow(str(source.name if isinstance(source, HubRows) else source), "", "holds no rows", "give a file with rows")

    def _sources(self, paths: list[str]) -> list[HubRows | Path]:
        """Every file and data set that is meant, looked up before the first row is read."""
        sources: list[HubRows | Path] = []
        for path in paths:
            sources.extend([self._hub(path)] if is_hub_id(path) else self._files(path))
        return sources

    def _files(self, path: str) -> list[Path]:
        return locate(path, key="data.validation" if path == self.config.validation else "data.path")

    def _checked(self, source: Iterable[Record | BadRow]) -> Iterator[ChatRow | BadRow]:
        """Detect the format on the first record that shows one, then read every record in it."""
        layout: Format | None = None if self.config.format == "auto" else self.config.format
        for item in source:
            if isinstance(item, BadRow):
                yield item
                continue
            if not isinstance(item.value, dict):
                yield BadRow(item.origin, "", f"is {kind(item.value)}; an object with fields is needed")
                continue
            layout = layout or detect_chat(item.value)
            yield _row(item.value, item.origin, layout)

    def _limited(self, rows: Iterator[ChatRow | BadRow]) -> Iterator[ChatRow | BadRow]:
        kept = 0
        for row in rows:
            yield row
            kept += isinstance(row, ChatRow)
            if kept == self.config.limit:
                return


def _row(record: dict[str, Any], origin: str, layout: Format | None) -> ChatRow | BadRow:
    if layout is None:
        return BadRow(origin, "", explain_unknown(record), "rename the fields, or name the format: data.format=messages")
    try:
        return ChatRow(read_messages(record, layout), origin)
    except BadField as fault:
        return BadRow(origin, fault.field, fault.message)


def _example(row: ChatRow) -> Example:
    last = max(index for index, message in enumerate(row.messages) if message.role == "assistant")
    return Example(prompt=row.messages[:last], answer=row.messages[last].content, note=row.origin)
