"""Rows that repeat a test set, left out: by runs of words, as GPT-3's training data was cleaned. Knows no paraphrase.

Brown et al. 2020 ("Language models are few-shot learners", appendix C) take what shares 13 words in a row with a test set, in lower case and without
punctuation, for contaminated; and 8 words of a shorter test row. The index of the test sets is built once and read from disk by every worker: it holds
12 bytes a word of the test sets, and nothing of the rows.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from largeforge.data.files import files_hash, locate, records
from largeforge.data.formats import PROMPTS, detect, read_row
from largeforge.data.rows import TURNS, BadRow, Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import DecontaminateConfig
from largeforge.errors import InputError, RowError

FEWEST = 8  # words of a test row that may stand inside a longer text; a shorter one must be a whole turn
FEWEST_ALONE = 4  # words of a question that is looked for without its answer; "Go on." is in every chat
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff"  # written without spaces: each counts as a word
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")


class Decontaminate(Step):
    """Drops rows that hold runs of words of a test row, or a short test row whole; says which test row that was."""

    config: DecontaminateConfig

    def ready(self) -> None:
        """Read every test set and write the index. Raises InputError without a test set, RowError for a test row that cannot be read."""
        assert self.folder is not None, "an index is kept in the step's folder"
        if self.config.n < FEWEST:
            message = f"step.decontaminate.n = {self.config.n}: runs of fewer than {FEWEST} words stand in texts that have nothing to do with each other."
            raise InputError(message, next_step="step.decontaminate.n=13")
        write_index(self.config, self.folder)

    def made_of(self) -> dict[str, str]:
        """The test sets' bytes."""
        return {path: files_hash(locate(path, key="step.decontaminate.against")) for path in self.config.against}

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Give on what no test row is found in."""
        for row in rows:
            found = self._index.found_in(row, self.config.threshold)
            yield Dropped(row, "contaminated", found) if found else row

    @cached_property
    def _index(self) -> Index:
        if self.folder is not None:
            return Index(self.folder)
        with tempfile.TemporaryDirectory() as place:  # a step that is tried alone
            write_index(self.config, Path(place))
            return Index(Path(place), in_memory=True)


class Index:
    """What the test sets say, as hashes.

    Args:
        folder: holds grams.npy (uint64, sorted), owners.npy (int32: the test row of each), about.json.
        in_memory: read it whole; otherwise the system's page cache shares it between workers.
    """

    def __init__(self, folder: Path, *, in_memory: bool = False) -> None:
        import numpy as np

        mode: Literal["r"] | None = None if in_memory else "r"
        self.grams = np.load(folder / "grams.npy", mmap_mode=mode)
        self.owners = np.load(folder / "owners.npy", mmap_mode=mode)
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.lengths: list[int] = about["lengths"]
        self.origins: list[str] = about["origins"]
        self.sizes: list[int] = about["sizes"]

    def found_in(self, row: Row, threshold: float) -> str:
        """Name the test row that a row holds most of, and how much of it; "" where it holds none, or no more than the threshold."""
        import numpy as np

        asked = {gram_hash(words, whole=True) for words in _pieces(row)}
        words = words_of(row.text())
        asked.update(gram for length in self.lengths for gram in grams(words, length))
        wanted = np.array(sorted(asked), dtype=np.uint64)
        first, last = np.searchsorted(self.grams, wanted, side="left"), np.searchsorted(self.grams, wanted, side="right")
        hits: Counter[int] = Counter()
        for begin, end in zip(first[first < last].tolist(), last[first < last].tolist(), strict=True):
            hits.update(self.owners[begin:end].tolist())
        shares = [(hits[owner] / self.sizes[owner], -owner) for owner in sorted(hits)]
        share, place = max(shares, default=(0.0, 0))
        if share <= threshold and share < 1:
            return ""
        return f"{self.origins[-place]} ({share:.0%} of its runs of words)" if share < 1 else f"{self.origins[-place]} (whole)"


def write_index(config: DecontaminateConfig, folder: Path) -> None:
    """Read the test sets and write their index into a folder; memory grows with the test sets alone."""
    import numpy as np

    if not config.against:
        raise InputError(
            "step.decontaminate.against names no test set, so there is nothing to compare with.",
            next_step="step.decontaminate.against=[FILE]; or leave the step out",
        )
    test_rows = [
        (origin, [_hashes(words, config.n) for words in units]) for origin, units in (row for path in config.against for row in rows_of_test_set(path)) if units
    ]
    if not test_rows:
        raise InputError("step.decontaminate.against names test sets that hold no words.", next_step="give the files of the test sets")
    often = Counter(gram for _, units in test_rows for gram in set().union(*(found for _, found in units)))
    # A text that is boilerplate from end to end (the same row many times) is looked for all the same.
    kept = [(origin, [gram for gram in found if often[gram] <= config.common] or found) for origin, units in test_rows for _, found in units]
    lengths = {length for _, units in test_rows for length, _ in units if length}
    pairs = [(gram, owner) for owner, (_, found) in enumerate(kept) for gram in found]
    both = np.array(sorted(pairs), dtype=[("gram", np.uint64), ("owner", np.int32)])
    np.save(folder / "grams.npy", np.ascontiguousarray(both["gram"]))
    np.save(folder / "owners.npy", np.ascontiguousarray(both["owner"]))
    about = {"lengths": sorted(lengths), "origins": [origin for origin, _ in kept], "sizes": [len(found) for _, found in kept]}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def rows_of_test_set(path: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Stream the rows of one test set: where each stands, and the words that must not come back: of all of it, and of its question.

    A row of no known layout (choices, answer letters ...) is taken by its texts, in the order of its fields. Raises InputError, RowError.
    """
    for file in locate(path, key="step.decontaminate.against"):
        for record in records(file):
            if isinstance(record, BadRow) or not isinstance(record.value, dict):
                told = str(record) if isinstance(record, BadRow) else f"{record.origin}  is no object"
                raise RowError(f"A test set cannot be read: {told}", next_step=f"mend {file}, or leave it out of step.decontaminate.against")
            whole, question = map(words_of, _said(record.value, record.origin))
            units = [whole, question] if len(question) >= FEWEST_ALONE and question != whole else [whole]
            yield record.origin, [words for words in units if words]


def _said(value: dict[str, Any], origin: str) -> tuple[str, str]:
    """All that a raw test row says, and its question."""
    layout = detect(value)
    row = read_row(value, origin, layout) if layout else None
    if isinstance(row, Row):
        return row.text(), _asked(row)
    return "\n\n".join(_texts_in(value)), next((value[name] for name in PROMPTS if isinstance(value.get(name), str)), "")


def _asked(row: Row) -> str:
    """What the user says; a text asks nothing."""
    name = next(iter(TURNS[row.kind]), None)
    return "\n\n".join(turn["content"] for turn in row.content[name] if turn["role"] == "user") if name else ""


def _hashes(words: list[str], n: int) -> tuple[int, list[int]]:
    """The length of the runs that stand for some words (0: all of them, as one), and the hashes of those runs."""
    if len(words) < FEWEST:
        return 0, [gram_hash(words, whole=True)]
    length = min(n, len(words))
    return length, sorted(set(grams(words, length)))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)


def _pieces(row: Row) -> Iterator[list[str]]:
    """What a short test row may be: each turn, the turns of the user together, and the whole row."""
    yield from map(words_of, dict.fromkeys([*row.texts(), row.text(), _asked(row)]))


def words_of(text: str) -> list[str]:
    """Words in lower case without punctuation."""
    return _WORD.findall(text.lower())


def grams(words: list[str], n: int) -> Iterator[int]:
    """Hash of every run of n words."""
    for at in range(len(words) - n + 1):
        yield gram_hash(words[at : at + n])


def gram_hash(words: list[str], *, whole: bool = False) -> int:
    """64 bits that say which words these are, and whether they are all that is said."""
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8, person=b"whole" if whole else b"run").digest(), "big")
