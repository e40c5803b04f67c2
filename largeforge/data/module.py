"""From checked rows to steps of batches: what every kind of rows to learn from shares.

Knows nothing about files or formats. A source plugs in by deriving from `RowsModule` and giving its rows:

    class Demo(RowsModule):
        def rows(self) -> Iterator[LearntRow | BadRow]:     # streamed, the same ones in the same order at every call; as `self.learns` asks
            for number, messages in enumerate(...):
                yield ChatRow(messages=(Message("user", wish), Message("assistant", command)), origin=f"demo row {number + 1}")

        def fingerprint(self) -> str:                       # changes whenever the rows would change
            return sha256_of_everything_that_decides_the_rows

        @property
        def source(self) -> Reference:
            return Reference(kind="data", name="demo", sha256=self.fingerprint())

        def heldout(self) -> list[Example]: ...

Everything else (`prepare`, `annotate`, `num_rows`, `facts`, `train_steps`, `validation_batches`, `shapes`, `sample`) stands here. A source
with validation rows of its own overrides `validation_rows` too; a share of `rows()` is set aside by the base.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from largeforge.batch import Annotation, BatchShape, Learns, StepWindow, TokenizedRow
from largeforge.contract import Reference
from largeforge.data.annotations import AnnotationTable, annotate
from largeforge.data.cache import CacheEntry, TokenTable, cache_key, code_hash, tokenizer_hash
from largeforge.data.learnt import example_of
from largeforge.data.lint import token_facts
from largeforge.data.mask import ChatTokenizer
from largeforge.data.rows import BadRow, BadRows, LearntRow
from largeforge.data.steps import MicroBatches, Pacing, Steps, compare, loader, make_batch, step_shapes
from largeforge.data.tokens import RowTokenizer, TextTokenizer, fill, is_validation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from largeforge.chat import Example
    from largeforge.contract import Method, Progress, Storage, Trainer
    from largeforge.data.config import TokensConfig

ANNOTATED_AT_ONCE = 8  # rows of one forward pass that computes annotations


class RowsModule:
    """Rows to learn from as a DataModule (largeforge/contract.py); a source derives from it.

    Args:
        config: of the data.
        tokenizer: None where rows are only counted.
        template: chat template in use; None takes the tokenizer's own.
        train_on: "answer" or "all"; of texts every token is learnt.
        learns: what the method learns from.
        progress: shows the tokenizing.
        storage: brings files from elsewhere.
    """

    def __init__(
        self,
        config: TokensConfig,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str | None = None,
        train_on: Literal["answer", "all"] = "answer",
        learns: Learns = "chat",
        progress: Progress | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.template = template
        self.train_on = train_on
        self.learns = learns
        self.progress = progress
        self.storage = storage
        self._annotated: dict[str, list[tuple[Annotation, Path]]] = {}
        self._facts: dict[str, Any] = {}
        self._entry: CacheEntry | None = None

    # ---- what a source gives ----

    def rows(self) -> Iterator[LearntRow | BadRow]:
        """Stream the rows, the same ones in the same order at every call: of the kind that `learns` asks for."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """sha256 of everything that decides `rows` and `validation_rows`."""
        raise NotImplementedError

    @property
    def source(self) -> Reference:
        """The training rows."""
        raise NotImplementedError

    def heldout(self) -> list[Example]:
        """The validation rows as questions: every turn before the last answer, and that answer."""
        rows = self.validation_rows()
        if rows is None:
            share = self._share
            rows = (row for row in self.rows() if not isinstance(row, BadRow) and is_validation(row, share)) if share else iter(())
        examples = (example_of(row) for row in rows if not isinstance(row, BadRow))
        return [example for example in examples if example is not None]

    def validation_rows(self) -> Iterator[LearntRow | BadRow] | None:
        """Rows to validate on; None sets the share `data.validation` of `rows` aside."""
        return None

    def expected_rows(self) -> int | None:
        """Rows that will be read, for a progress bar; None where that is not known without reading."""
        return None

    @property
    def skips_bad_rows(self) -> bool:
        """Whether bad rows are left out; otherwise they end the run."""
        return bool(getattr(self.config, "on_bad_row", "error") == "skip")

    # ---- DataModule ----

    def prepare(self) -> None:
        """Read, check, lint and tokenize into the cache, or find it there. Raises RowError with every bad row's place."""
        if self._facts:
            return
        if self.tokenizer is None:
            self._facts = self._count()
            return
        tokenizer, template = self._tokenizer(self.tokenizer)
        key = cache_key(
            {
                "rows": self.fingerprint(),
                "validation": str(self._share),
                "skip": self.skips_bad_rows,
                "tokenizer": tokenizer_hash(self.tokenizer),
                "template": template,
                "train_on": self.train_on,
                "learns": self.learns,
                "max_length": self.config.max_length,
                "code": code_hash(),
            }
        )
        entry = CacheEntry.at(key)
        facts = entry.facts()
        hit = facts is not None
        if facts is None:
            facts = self._tokenize(entry, tokenizer)
        self._entry = entry
        self._facts = {**facts, "cache_key": key, "cache_hit": hit, "packing": self.config.packing, "train_on": self.train_on, "learns": self.learns}
        self._tell()

    @property
    def num_rows(self) -> int:
        """Training rows that are kept."""
        self.prepare()
        return int(self._facts["num_rows"])

    @property
    def facts(self) -> dict[str, Any]:
        """What is known about the rows; `packing` is the choice made once steps or shapes have been asked for."""
        self.prepare()
        return dict(self._facts)

    def annotate(self, method: Method, *, trainer: Trainer) -> None:
        """Have the method compute what it wants to know about every row, or find it in the cache; every batch carries it from now on."""
        method.bytes_per_token = float(self.facts.get("validation_bytes_per_token", 0.0))
        wanted = list(method.annotations())
        if self.config.curriculum == "loss":
            wanted.append(method.difficulty())
        for annotation in wanted:
            what = {"annotation": annotation.name, "key": annotation.key, "columns": annotation.columns, "precision": f"{trainer.device} {trainer.precision}"}
            key = cache_key({"tokens": self.facts["cache_key"], **what})
            for split in ("train", "validation"):
                self._annotate(annotation, key, split, lambda: trainer.computing(method))

    def train_steps(self, window: StepWindow) -> Iterable[list[Any]]:
        """A DataLoader of whole optimizer steps, from `window.start_step` on."""
        if self.config.num_workers:
            # Tokenizing has used the tokenizer's threads; workers are forked but never tokenize, so its warning means nothing.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        return loader(self._steps(window), range(window.start_step, window.num_steps), num_workers=self.config.num_workers)

    def validation_batches(self, micro_batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterable[list[Any]] | None:
        """A DataLoader over one rank's share of the validation rows, longest first, one padded micro-batch in a list each; None where there are none.

        Every rank has as many micro-batches as any other; the last ones may be empty.
        """
        table = self._table("validation")
        if not len(table):
            return None
        units = [range(at, at + self._per_row) for at in range(0, len(table), self._per_row)]
        units.sort(key=lambda unit: (-max(int(table.lengths[row]) for row in unit), unit.start))
        micros = [tuple(row for unit in units[at : at + micro_batch_size] for row in unit) for at in range(0, len(units), micro_batch_size)]
        mine = micros[rank::world_size]
        mine += [()] * (-(-len(micros) // world_size) - len(mine))
        batches = MicroBatches(table, tuple(mine), self._pad_id, self.learns, self._notes("validation"), self.config.max_length)
        return loader(batches, range(len(batches)), num_workers=self.config.num_workers)

    def origins(self, window: StepWindow, step: int) -> list[str]:
        """Where the rows of one optimizer step (counted from 0) came from, over all ranks."""
        table = self._table("train")
        return [table.origin(row * self._per_row) for row in self._steps(window).rows(step)]

    def shapes(self, window: StepWindow) -> Iterator[list[BatchShape]]:
        """The shapes of what `train_steps` would yield, from lengths alone."""
        return step_shapes(self._steps(window))

    def sample(self, count: int) -> list[TokenizedRow]:
        """The first training rows, as they are trained on."""
        table = self._table("train")
        return [table.row(index) for index in range(min(count * self._per_row, len(table)))]

    def bad_rows(self) -> Iterator[str]:
        """Every row that was left out, one JSON object a line: origin, field, message, mend."""
        self.prepare()
        if self._entry is not None:
            with (self._entry.folder / "bad_rows.jsonl").open(encoding="utf-8") as lines:
                yield from (line.rstrip("\n") for line in lines)

    # ---- inside ----

    def _tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> tuple[RowTokenizer | TextTokenizer, str]:
        """What makes tokens of rows, and the chat template it uses."""
        if self.learns == "text":
            return TextTokenizer(tokenizer, max_length=self.config.max_length), ""
        chat = ChatTokenizer(tokenizer, self.template)
        return RowTokenizer(chat, token_facts(chat), train_on=self.train_on, max_length=self.config.max_length), chat.template

    def _annotate(self, annotation: Annotation, key: str, split: str, computing: Callable[[], AbstractContextManager[None]]) -> None:
        assert self._entry is not None
        table = self._table(split)
        path = self._entry.folder / "annotations" / f"{key}.{split}.arrow"
        if not path.is_file() and len(table):
            bar = self.progress.bar(annotation.name, total=len(table), unit="rows") if self.progress else SilentBar()
            learns, pad_id = self.learns, self._pad_id
            try:
                with computing():
                    annotate(
                        path,
                        annotation,
                        table,
                        batch_of=lambda rows: make_batch(table, [[row] for row in rows], pad_id=pad_id, learns=learns),
                        rows_per_batch=ANNOTATED_AT_ONCE,
                        per_row=self._per_row,
                        bar=bar,
                    )
            finally:
                bar.close()
        if len(table):
            self._annotated.setdefault(split, []).append((annotation, path))

    def _notes(self, split: str) -> AnnotationTable | None:
        found = [path for _, path in self._annotated.get(split, [])]
        return AnnotationTable(found) if found else None

    def _pacing(self, table: TokenTable) -> Pacing | None:
        if self.config.curriculum == "none":
            return None
        by_loss = self.config.curriculum == "loss"
        difficulty = next((AnnotationTable([path]) for one, path in self._annotated.get("train", []) if by_loss and "difficulty" in one.columns), None)
        return Pacing(table, difficulty, self._per_row)

    def _tokenize(self, entry: CacheEntry, tokenizer: RowTokenizer | TextTokenizer) -> dict[str, Any]:
        draft = entry.draft()
        bar = self.progress.bar("tokenizing", total=self.expected_rows(), unit="rows") if self.progress else SilentBar()
        try:
            facts = fill(
                draft,
                rows=self.rows(),
                validation_rows=self.validation_rows(),
                share=self._share,
                tokenizer=tokenizer,
                skip=self.skips_bad_rows,
                skippable=self._can_skip,
                bar=bar,
            )
            entry.seal(draft, facts)
        finally:
            bar.close()
            shutil.rmtree(draft, ignore_errors=True)
        return facts

    def _count(self) -> dict[str, Any]:
        """Read and check without a tokenizer: nothing is known about tokens then."""
        bad, rows_in, kept, validation = BadRows(), 0, 0, 0
        for row in self.rows():
            rows_in += 1
            if isinstance(row, BadRow):
                bad.add(row)
            elif is_validation(row, self._share):
                validation += 1
            else:
                kept += 1
        for row in self.validation_rows() or ():
            rows_in += 1
            if isinstance(row, BadRow):
                bad.add(row)
            else:
                validation += 1
        if bad.count and not (self.skips_bad_rows and kept):
            raise bad.error(rows_in, skippable=self._can_skip and not self.skips_bad_rows)
        return {
            "rows_in": rows_in,
            "rows_kept": kept + validation,
            "rows_bad": bad.count,
            "bad_rows": [str(row) for row in bad.shown],
            "num_rows": kept,
            "num_validation_rows": validation,
        }

    def _steps(self, window: StepWindow) -> Steps:
        table = self._table("train")
        fills = compare(table.lengths, window, width=self.config.max_length, per_row=self._per_row)
        packing = fills.packing if self.config.packing == "auto" else bool(self.config.packing)
        self._facts.update(packing=packing, fill_packed=round(fills.packed, 4), fill_sorted=round(fills.length_sorted, 4))
        return Steps(table, window, self.config.max_length, packing, self._pad_id, self.learns, self._notes("train"), self._pacing(table))

    def _table(self, name: str) -> TokenTable:
        self.prepare()
        if self._entry is None:
            raise RuntimeError("tokens were asked for, but no tokenizer was given")
        return self._entry.table(name)

    @property
    def _per_row(self) -> int:
        """Rows of a table for each row of the data."""
        return 2 if self.learns == "pairs" else 1

    @property
    def _can_skip(self) -> bool:
        """Whether the config has the key at all; rows that LargeForge makes itself have none."""
        return hasattr(self.config, "on_bad_row")

    @property
    def _share(self) -> float:
        share = getattr(self.config, "validation", 0.0)  # an artifact has a split for it
        return 0.0 if isinstance(share, str) else float(share)

    @property
    def _pad_id(self) -> int:
        pad = None if self.tokenizer is None else self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def _tell(self) -> None:
        if self.progress is None:
            return
        facts = self._facts
        if facts["rows_bad"]:
            self.progress.say(f"{facts['rows_bad']} of {facts['rows_in']} rows left out; the first: {facts['bad_rows'][0]}")
        if facts["prompts_differ"]:
            self.progress.say(
                f"{facts['prompts_differ']} of {facts['prompts_checked']} prompts get other token ids alone than before their answer: "
                "the chat template ends its generation prompt where the tokenizer would go on."
            )


class SilentBar:
    """A bar that nobody looks at."""

    def advance(self, count: int = 1, **fields: Any) -> None:
        """Count nothing."""

    def close(self) -> None:
        """Nothing to close."""
