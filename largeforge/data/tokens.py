"""Checked rows -> linted, tokenized rows in a cache entry, in one streaming pass. Knows nothing about where rows come from or how they are batched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from largeforge.batch import TokenizedRow
from largeforge.data.cache import TableWriter
from largeforge.data.lint import TokenFacts, lint
from largeforge.data.mask import ChatTokenizer, Rendered, UnclearAnswer
from largeforge.data.rows import BadRow, BadRows, ChatRow, LearntRow, PairRow, TextRow
from largeforge.errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from largeforge.contract import Bar
    from largeforge.data.mask import TokenRow

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
    """Tokenizes and lints rows of chat, of pairs and of labelled answers.

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

    def __call__(self, rows: Iterable[LearntRow | BadRow], tally: Tally) -> Iterator[tuple[LearntRow, list[TokenizedRow]] | BadRow]:
        """Yield each row with the tokens of its conversations, cut to `max_length`, or what is wrong with it; in order.

        Raises:
            RowError: the template or the tokenizer is at fault, so that no row could be trained on.
        """
        stream = iter(rows)
        while chunk := list(islice(stream, CHUNK)):
            tally.rows_in += len(chunk)
            rendered = [[self._rendered(part) for part in row.parts()] if isinstance(row, (ChatRow, PairRow)) else [] for row in chunk]
            tokens = iter(self.chat.tokenize([item for items in rendered for item in items if isinstance(item, Rendered)]))
            for row, items in zip(chunk, rendered, strict=True):
                if not isinstance(row, (ChatRow, PairRow)):
                    yield row if isinstance(row, BadRow) else BadRow(row.origin, "", "is a text, of which no turn is an answer")
                    continue
                found = [
                    item if isinstance(item, BadRow) else self._tokenized(part, next(tokens), tally) for part, item in zip(row.parts(), items, strict=True)
                ]
                bad = next((item for item in found if isinstance(item, BadRow)), None)
                yield bad or (row, [item for item in found if isinstance(item, TokenizedRow)])

    def _tokenized(self, row: ChatRow, tokens: TokenRow, tally: Tally) -> TokenizedRow | BadRow:
        self._check_prompt(row, tokens.token_ids, tally)
        whole = TokenizedRow(tokens.token_ids, [False, *tokens.answer[1:]], row.origin, row.desirable)
        return self._faulty(row, whole) or self._trained(whole)

    def _rendered(self, row: ChatRow) -> Rendered | BadRow:
        try:
            rendered = self.chat.rendered(row)
            return Rendered(rendered.text, rendered.answers[row.num_asked :]) if row.num_asked else rendered
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
        return TokenizedRow(ids, supervised, row.origin, row.desirable)

    def _check_prompt(self, row: ChatRow, token_ids: list[int], tally: Tally) -> None:
        if tally.prompts_checked < PROMPTS_CHECKED:
            tally.prompts_checked += 1
            tally.prompts_differ += not self.chat.prompt_agrees(row, token_ids)


class TextTokenizer:
    """Tokenizes texts for learning from every token: what the tokenizer puts around a text (BOS), the text, its EOS.

    A text longer than `max_length` is cut into windows; each begins with the last token of the one before, so that every token but
    the first of the text is predicted once.

    Args:
        tokenizer: a fast tokenizer.
        max_length: tokens of a window at most, >= 2.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, rows: Iterable[LearntRow | BadRow], tally: Tally) -> Iterator[tuple[LearntRow, list[TokenizedRow]] | BadRow]:
        """Yield each text with its windows, or what is wrong with it; in order."""
        stream = iter(rows)
        while chunk := list(islice(stream, CHUNK)):
            tally.rows_in += len(chunk)
            texts = [row.text for row in chunk if isinstance(row, TextRow)]
            encoded = iter(self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"] if texts else [])
            for row in chunk:
                if isinstance(row, BadRow):
                    yield row
                elif not isinstance(row, TextRow):
                    yield BadRow(row.origin, "", "holds turns; a text is needed")
                else:
                    windows = self._windows(list(next(encoded)), row.origin)
                    yield (row, windows) if windows else BadRow(row.origin, "text", "one token long, so nothing can be predicted")

    def _windows(self, ids: list[int], origin: str) -> list[TokenizedRow]:
        eos = self.tokenizer.eos_token_id
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
        starts = range(0, max(len(ids) - 1, 0), self.max_length - 1)
        cuts = [ids[start : start + self.max_length] for start in starts]
        where = [f"{origin} from token {start}" if len(cuts) > 1 else origin for start in starts]
        return [TokenizedRow(cut, [False, *[True] * (len(cut) - 1)], origin) for cut, origin in zip(cuts, where, strict=True)]


def is_validation(row: LearntRow, share: float) -> bool:
    """Whether a row is set aside: decided by what it says, so the split is the same in any order and twins stay together."""
    return int(row.content_hash()[:16], 16) < share * 2**64


def fill(
    draft: Path,
    *,
    rows: Iterable[LearntRow | BadRow],
    validation_rows: Iterable[LearntRow | BadRow] | None,
    share: float,
    tokenizer: RowTokenizer | TextTokenizer,
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
        tokenizer: does the work; the tokenized rows of one row (a pair's two answers, a text's windows) stand behind one another.
        skip: leave bad rows out; otherwise they are all told in one error.
        skippable: whether the user could say so.
        bar: counts rows.

    Raises:
        RowError: bad rows where they may not be skipped, or no row left.
    """
    tally = Tally()
    counts = {"train": 0, "validation": 0}
    num_rows = dict(counts)
    tokens = supervised = longest = validation_bytes = validation_tokens = 0
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
                    row, token_rows = item
                    table = "validation" if name == "validation" or is_validation(row, share) else "train"
                    counts[table] += 1
                    num_rows[table] += len(token_rows) if isinstance(row, TextRow) else 1
                    if isinstance(row, TextRow) and table == "validation":
                        validation_bytes += len(row.text.encode())
                        validation_tokens += sum(sum(token_row.supervised) for token_row in token_rows)
                    for token_row in token_rows:
                        writers[table].add(token_row)
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
        "num_rows": num_rows["train"],
        "num_validation_rows": num_rows["validation"],
        "validation_bytes_per_token": validation_bytes / max(1, validation_tokens),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "mean_tokens": round(tokens / num_rows["train"], 1),
        "longest_row": longest,
        "prompts_checked": tally.prompts_checked,
        "prompts_differ": tally.prompts_differ,
    }
