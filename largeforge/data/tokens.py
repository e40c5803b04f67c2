"""Checked rows -> linted, tokenized rows in a cache entry, in one streaming pass. Knows nothing about where rows come from or how they are batched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from largeforge.contract import TokenizedRow
from largeforge.data.cache import TableWriter
from largeforge.data.lint import TokenFacts, lint
from largeforge.data.mask import ChatTokenizer, Rendered, UnclearAnswer
from largeforge.data.rows import BadRow, BadRows, ChatRow
from largeforge.errors import RowError

if TYPE_CHECKING:
    from largeforge.contract import Bar

CHUNK = 256
# Rows whose prompt is tokenized once more by itself, to see that a running model is given the same ids.
PROMPTS_CHECKED = 64


@dataclass
class Tally:
    """What one pass over the rows has seen."""

    rows_in: int = 0
    bad: BadRows = field(default_factory=BadRows)
    prompts_checked: int = 0
    prompts_differ: int = 0


class RowTokenizer:
    """Tokenizes and lints rows.

    Args:
        chat: tokenizer and template.
        facts: what the lint knows about them.
        train_on: "answer" (the assistant's turns) or "all" (every token after the first).
        max_length: tokens a row is cut to.
    """

    def __init__(self, chat: ChatTokenizer, facts: TokenFacts, *, train_on: Literal["answer", "all"], max_length: int) -> None:
        self.chat = chat
        self.facts = facts
        self.train_on = train_on
        self.max_length = max_length

    def __call__(self, rows: Iterable[ChatRow | BadRow], tally: Tally) -> Iterator[tuple[ChatRow, TokenizedRow] | BadRow]:
        """Yield each row with its tokens, cut to `max_length`, or what is wrong with it; in order.

        Raises:
            RowError: the template or the tokenizer is at fault, so that no row could be trained on.
        """
        stream = iter(rows)
        while chunk := list(islice(stream, CHUNK)):
            tally.rows_in += len(chunk)
            rendered = [self._rendered(row) if isinstance(row, ChatRow) else row for row in chunk]
            tokens = iter(self.chat.tokenize([item for item in rendered if isinstance(item, Rendered)]))
            for row, item in zip(chunk, rendered, strict=True):
                if isinstance(row, BadRow):
                    yield row
                    continue
                if isinstance(item, BadRow):
                    yield item
                    continue
                token_row = next(tokens)
                self._check_prompt(row, token_row.token_ids, tally)
                whole = TokenizedRow(token_row.token_ids, [False, *token_row.answer[1:]], row.origin)
                yield self._faulty(row, whole) or (row, self._trained(whole))

    def _rendered(self, row: ChatRow) -> Rendered | BadRow:
        try:
            return self.chat.rendered(row)
        except UnclearAnswer as fault:
            return BadRow(row.origin, "messages", str(fault), "take another model.chat_template, or mend the row")

    def _faulty(self, row: ChatRow, whole: TokenizedRow) -> BadRow | None:
        """What the lint says about a row; `whole` has its answers marked, whatever is trained on."""
        bos = self.facts.bos_text
        if self.facts.bos_per_turn and any(bos in message.content for message in row.messages):
            message = f"two BOS: the row's own text says {bos}, which the chat template adds by itself"
            return BadRow(row.origin, "two_bos", message, f"take {bos} out of the row's text")
        for fault in lint([whole], self.facts, max_length=self.max_length):
            if fault.whole_data:
                raise RowError(f"{fault.origin}  {fault.rule}: {fault.message}. The same holds for every row.", next_step=fault.mend)
            return BadRow(fault.origin, fault.rule, fault.message, fault.mend, fault.needs_length)
        return None

    def _trained(self, row: TokenizedRow) -> TokenizedRow:
        """The row as it is trained on: cut to length, with the tokens marked that `train_on` asks for."""
        ids = row.token_ids[: self.max_length]
        supervised = row.supervised[: self.max_length] if self.train_on == "answer" else [False, *[True] * (len(ids) - 1)]
        return TokenizedRow(ids, supervised, row.origin)

    def _check_prompt(self, row: ChatRow, token_ids: list[int], tally: Tally) -> None:
        if tally.prompts_checked < PROMPTS_CHECKED:
            tally.prompts_checked += 1
            tally.prompts_differ += not self.chat.prompt_agrees(row, token_ids)


def is_validation(row: ChatRow, share: float) -> bool:
    """Whether a row is set aside: decided by what it says, so the split is the same in any order and twins stay together."""
    return int(row.content_hash()[:16], 16) < share * 2**64


def fill(
    draft: Path,
    *,
    rows: Iterable[ChatRow | BadRow],
    validation_rows: Iterable[ChatRow | BadRow] | None,
    share: float,
    tokenizer: RowTokenizer,
    skip: bool,
    skippable: bool,
    bar: Bar,
) -> dict[str, Any]:
    """Tokenize every row into `draft` and return the facts; holds one chunk of rows in memory.

    Args:
        draft: gets train.arrow, validation.arrow and bad_rows.jsonl.
        rows: to train on.
        validation_rows: to validate on; None sets a share of `rows` aside.
        share: of the rows to set aside, by their content.
        tokenizer: does the work.
        skip: leave bad rows out; otherwise they are all told in one error.
        skippable: whether the user could say so.
        bar: counts rows.

    Raises:
        RowError: bad rows where they may not be skipped, or no row left.
    """
    tally = Tally()
    counts = {"train": 0, "validation": 0}
    tokens = supervised = longest = 0
    writers = {name: TableWriter(draft / f"{name}.arrow") for name in counts}
    try:
        with (draft / "bad_rows.jsonl").open("w", encoding="utf-8") as bad_rows:
            for name, source in (("train", rows), ("validation", validation_rows)):
                for item in tokenizer(source or (), tally):
                    bar.advance()
                    if isinstance(item, BadRow):
                        tally.bad.add(item)
                        bad_rows.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
                        continue
                    row, token_row = item
                    table = "validation" if name == "validation" or is_validation(row, share) else "train"
                    writers[table].add(token_row)
                    counts[table] += 1
                    if table == "train":
                        tokens += len(token_row.token_ids)
                        supervised += sum(token_row.supervised)
                        longest = max(longest, len(token_row.token_ids))
    finally:
        for writer in writers.values():
            writer.close()
    if tally.bad.count and (not skip or not counts["train"]):
        raise tally.bad.error(tally.rows_in, skippable=skippable and not skip)
    if not counts["train"]:
        raise RowError(f"No row is left to train on: {tally.rows_in} read, {counts['validation']} set aside for validation.", next_step="lower data.validation")
    return {
        "rows_in": tally.rows_in,
        "rows_kept": counts["train"] + counts["validation"],
        "rows_bad": tally.bad.count,
        "bad_rows": [str(bad) for bad in tally.bad.shown],
        "num_rows": counts["train"],
        "num_validation_rows": counts["validation"],
        "tokens": tokens,
        "supervised_tokens": supervised,
        "mean_tokens": round(tokens / counts["train"], 1),
        "longest_row": longest,
        "prompts_checked": tally.prompts_checked,
        "prompts_differ": tally.prompts_differ,
    }
