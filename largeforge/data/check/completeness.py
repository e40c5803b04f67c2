"""Texts that say nothing, answers that were cut off, fields that some rows lack. Knows nothing of whether a text is good."""

from __future__ import annotations

from largeforge.data.check.base import Check, Finding, Seen, rows_said, share_said
from largeforge.data.check.config import CompletenessConfig
from largeforge.data.check.spill import Lines
from largeforge.data.rows import TURNS

ENDINGS = tuple(".!?…。！？;:)]}>\"'`”’»|*_~")  # how a text ends that was not cut off: sentences, brackets, code, tables, emphasis
MARKS = " \t\r\n.!:*_#()[]{}<>\"'`"
MAX_SHAPES = 256  # sets of further fields that are told apart


class Completeness(Check):
    """Counts placeholders by the words they are, endings of long answers, and rows by which further fields they have."""

    config: CompletenessConfig

    def __init__(self, config: CompletenessConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.names = {name for word in config.placeholders for name in (word.casefold(), word.casefold().strip(MARKS)) if name}
        self.phrases = [phrase.casefold() for phrase in config.phrases]
        self.rows = 0
        self.empty: tuple[int, list[str]] = (0, [])
        self.placeholder: tuple[int, list[str]] = (0, [])
        self.words: dict[str, int] = {}
        self.ended = 0
        self.cut: tuple[int, list[str]] = (0, [])
        self.shapes: dict[tuple[str, ...], tuple[int, list[str]]] = {}

    def add(self, seen: Seen) -> None:
        self.rows += 1
        row = seen.row
        texts = list(row.texts())
        if not all(text.strip() for text in texts):
            self.empty = self._more(self.empty, row.origin)
        else:
            word = next((word for word in map(self.placeholder_in, texts) if word), "")
            if word:
                self.placeholder = self._more(self.placeholder, row.origin)
                self.words[word] = self.words.get(word, 0) + 1
        if row.kind != "text":
            for answer in seen.answers[:1]:
                if len(answer) >= self.config.truncated_characters:
                    ending = answer.rstrip()[-1:]
                    if ending.isalnum() or ending in {",", "-", "(", "["}:
                        self.cut = self._more(self.cut, row.origin)
                    elif ending in ENDINGS:
                        self.ended += 1
        turns = TURNS[row.kind] or ("text",)
        shape = tuple(sorted(name for name, value in row.content.items() if name not in turns and value is not None and value != ""))
        if shape in self.shapes or len(self.shapes) < MAX_SHAPES:
            self.shapes[shape] = self._more(self.shapes.get(shape, (0, [])), row.origin)

    def placeholder_in(self, text: str) -> str:
        """The placeholder that a text is or holds; "" for none."""
        folded = text.casefold().strip()
        if len(folded) < 60:
            core = folded.strip(MARKS)
            if folded in self.names or core in self.names:
                return core or folded
        return next((phrase for phrase in self.phrases if phrase in folded), "")

    def merge(self, other: Completeness, first: int) -> None:
        self.rows += other.rows
        self.ended += other.ended
        self.empty, self.placeholder, self.cut = (
            self._sum(mine, theirs) for mine, theirs in ((self.empty, other.empty), (self.placeholder, other.placeholder), (self.cut, other.cut))
        )
        for word, count in other.words.items():
            self.words[word] = self.words.get(word, 0) + count
        for shape, counted in other.shapes.items():
            if shape in self.shapes or len(self.shapes) < MAX_SHAPES:
                self.shapes[shape] = self._sum(self.shapes.get(shape, (0, [])), counted)

    def findings(self, origins: Lines) -> list[Finding]:
        found = []
        count, where = self.empty
        if count:
            found.append(self.found("error", f"an empty text: {rows_said(count)}", count=count, examples=where, mend="leave these rows out, or fill them"))
        count, where = self.placeholder
        if count:
            told = ", ".join(f"{word!r}: {number:,}" for word, number in sorted(self.words.items(), key=lambda item: (-item[1], item[0]))[:5])
            message = f"a placeholder where a text should be: {rows_said(count)} ({told})"
            mend = "leave these rows out; where such a text is meant, take it off check.completeness.placeholders"
            found.append(self.found("warning", message, count=count, examples=where, mend=mend))
        count, where = self.cut
        if count and self.ended >= self.config.truncated_unless * (self.ended + count):
            message = (
                f"an answer of {self.config.truncated_characters} characters or more that ends within a sentence, where others end in a mark: "
                + rows_said(count)
            )
            found.append(
                self.found("warning", message, count=count, examples=where, mend="make these answers again with a higher max_tokens, or leave them out")
            )
        for name in sorted({name for shape in self.shapes for name in shape}):
            having = sum(count for shape, (count, _) in self.shapes.items() if name in shape)
            total = sum(count for count, _ in self.shapes.values())
            if self.config.field_share * total <= having < total:
                lacking = [origin for shape, (_, examples) in self.shapes.items() if name not in shape for origin in examples]
                message = f"field {name} is missing or empty in {rows_said(total - having)}; {share_said(having, total)} have it"
                found.append(self.found("warning", message, count=total - having, examples=lacking, mend=f"fill {name}, or leave it out of all rows"))
        return found

    def metrics(self) -> dict[str, float]:
        return {"rows_empty": float(self.empty[0]), "rows_placeholder": float(self.placeholder[0])}

    def _more(self, counted: tuple[int, list[str]], origin: str) -> tuple[int, list[str]]:
        count, where = counted
        return count + 1, where if len(where) >= self.examples else [*where, origin]

    def _sum(self, mine: tuple[int, list[str]], theirs: tuple[int, list[str]]) -> tuple[int, list[str]]:
        return mine[0] + theirs[0], [*mine[1], *theirs[1]][: self.examples]
