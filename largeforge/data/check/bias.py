"""How named groups of people are represented, and whether negative words stand near one of them more often than near the rest of its family.

Counts words, and only those of a list (groups.yaml, or the user's own): it reads no meaning, no irony and no "not". A finding says where to look.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from largeforge.data.check.base import Check, Finding, Seen, rows_said, share_said
from largeforge.data.check.config import BiasConfig
from largeforge.data.check.spill import Lines
from largeforge.errors import InputError
from largeforge.report import Section, draw_bars

STANDARD = Path(__file__).with_name("groups.yaml")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")  # of a term: letters; "same-sex" is a word
_MARKS = str.maketrans(dict.fromkeys("()[]{}<>/\\|*_#=+~—–", " "))  # of a text, after case and the punctuation of sentences: "she's" is she and s


@dataclass(frozen=True)
class Groups:
    """What is counted.

    Args:
        families: name -> group -> its terms, each the words in order.
        negative: words.
    """

    families: dict[str, dict[str, tuple[tuple[str, ...], ...]]]
    negative: frozenset[str]


@dataclass
class Tally:
    """One group's counts: rows that name it, its mentions, rows whose first mention has a negative word near, and where some of those came from."""

    rows: int = 0
    mentions: int = 0
    near: int = 0
    examples: list[str] | None = None


@cache
def read_groups(path: str) -> Groups:
    """Read a file of groups; "standard" is the one that is shipped. Raises InputError."""
    import yaml

    file = STANDARD if path == "standard" else Path(path).expanduser()
    help_ = f"begin with a copy of {STANDARD}"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InputError(
            f"check.bias.groups = {path} cannot be read: {fault.strerror or fault}.", next_step=f"check.bias.groups=standard; or {help_}"
        ) from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise InputError(f"check.bias.groups = {path} is no YAML: {' '.join(str(fault).split())}.", next_step=help_) from fault
    if not isinstance(content, dict) or set(content) != {"families", "negative"}:
        raise InputError(f"check.bias.groups = {path} must hold families and negative, and nothing else.", next_step=help_)
    if not isinstance(content["families"], dict) or not content["families"]:
        raise InputError(f"{path}: families must name at least one family of groups.", next_step=help_)
    families: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {}
    for family, groups in content["families"].items():
        if not isinstance(groups, dict) or len(groups) < 2:
            raise InputError(f"{path}: families.{family} must name two groups or more, so that they can be compared.", next_step=help_)
        families[str(family)] = {str(name): _terms(terms, f"{path}: families.{family}.{name}", help_) for name, terms in groups.items()}
    negative = _terms(content["negative"], f"{path}: negative", help_)
    longer = [" ".join(words) for words in negative if len(words) > 1]
    if longer:
        raise InputError(f"{path}: negative words are single words; not: {', '.join(longer[:5])}.", next_step=help_)
    return Groups(families, frozenset(words[0] for words in negative))


def _terms(terms: Any, where: str, help_: str) -> tuple[tuple[str, ...], ...]:
    if not isinstance(terms, list) or not terms or not all(isinstance(term, str) for term in terms):
        raise InputError(f"{where} must be a list of words (in quotes where YAML reads them as something else: yes, no, on, off).", next_step=help_)
    words = tuple(tuple(_WORD.findall(term.casefold())) for term in terms)
    if not all(words):
        raise InputError(f"{where} holds a term without a letter.", next_step=help_)
    return words


class Bias(Check):
    """Counts mentions of groups, and negative words near them."""

    config: BiasConfig

    def __init__(self, config: BiasConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.groups = read_groups(config.groups)
        self.rows = 0
        self.tallies = {(family, group): Tally(examples=[]) for family, groups in self.groups.families.items() for group in groups}
        self.family_rows = dict.fromkeys(self.groups.families, 0)
        self.by_first: dict[str, list[tuple[tuple[str, ...], tuple[str, str]]]] = {}  # first word -> (all words, group), the longest term first
        for family, groups in self.groups.families.items():
            for group, terms in groups.items():
                for words in terms:
                    self.by_first.setdefault(words[0], []).append((words, (family, group)))
        for found in self.by_first.values():
            found.sort(key=lambda item: -len(item[0]))

    def add(self, seen: Seen) -> None:
        self.rows += 1
        words = seen.plain_text.translate(_MARKS).split()
        if self.by_first.keys().isdisjoint(words):
            return
        hard = self.groups.negative
        negative = [place for place, word in enumerate(words) if word in hard]
        met: dict[tuple[str, str], int] = {}
        near: set[tuple[str, str]] = set()
        for begin, end, group in self._mentions(words):
            if group not in met and any(begin - self.config.window <= place < end + self.config.window and not begin <= place < end for place in negative):
                near.add(group)
            met[group] = met.get(group, 0) + 1
        for group, mentions in met.items():
            tally = self.tallies[group]
            tally.rows += 1
            tally.mentions += mentions
            if group in near:
                tally.near += 1
                self._example(tally, [seen.row.origin])
        for family in {family for family, _ in met}:
            self.family_rows[family] += 1

    def _mentions(self, words: list[str]) -> Iterator[tuple[int, int, tuple[str, str]]]:
        """Yield begin, end and group of every term; in each family the longest term that begins at a word."""
        firsts = self.by_first
        for begin in [place for place, word in enumerate(words) if word in firsts]:
            taken: set[str] = set()
            for term, group in firsts[words[begin]]:
                if group[0] not in taken and (len(term) == 1 or tuple(words[begin : begin + len(term)]) == term):
                    taken.add(group[0])
                    yield begin, begin + len(term), group

    def merge(self, other: Bias, first: int) -> None:
        self.rows += other.rows
        for group, tally in other.tallies.items():
            mine = self.tallies[group]
            mine.rows += tally.rows
            mine.mentions += tally.mentions
            mine.near += tally.near
            self._example(mine, tally.examples or [])
        for family, count in other.family_rows.items():
            self.family_rows[family] += count

    def findings(self, origins: Lines) -> list[Finding]:
        return [*self._represented(), *self._beside_negative()]

    def _represented(self) -> Iterator[Finding]:
        """Families in which one group is named far more often than another."""
        for family, groups in self.groups.families.items():
            rows = {group: self.tallies[family, group].rows for group in groups}
            if self.family_rows[family] < self.config.min_rows:
                continue
            most, least = max(rows, key=lambda group: rows[group]), min(rows, key=lambda group: rows[group])
            if rows[most] > self.config.max_ratio * rows[least]:
                ratio = f"{rows[most] / rows[least]:.1f} times as many" if rows[least] else "the other never"
                message = f"{family}: {rows_said(rows[most])} name {most}, {rows[least]:,} name {least}: {ratio}"
                yield self.found("warning", message, count=rows[most], mend=f"add rows that name {least}, or raise check.bias.max_ratio")

    def _beside_negative(self) -> Iterator[Finding]:
        """Groups near which negative words stand more often than near the rest of the family."""
        tested = [group for group in self.tallies if self._comparable(group)]
        for group in tested:
            tally, (near, rows) = self.tallies[group], self._rest(group)
            # half a row more on each side, so that a rest without any has a lift too
            lift = ((tally.near + 0.5) / (tally.rows + 1)) / ((near + 0.5) / (rows + 1))
            if lift >= self.config.lift and fisher(tally.near, tally.rows, near, rows) <= self.config.p_value / len(tested):
                family, name = group
                here, there = f"{share_said(tally.near, tally.rows)} ({tally.near:,} of {tally.rows:,})", f"{share_said(near, rows)} ({near:,} of {rows:,})"
                message = f"{family}: a negative word is near {name} in {here} of the rows that name them, near others of the family in {there}"
                yield self.found(
                    "warning", message, count=tally.near, examples=tally.examples or [], mend="look at these rows; leave out or balance those that judge"
                )

    def _rest(self, group: tuple[str, str]) -> tuple[int, int]:
        """Rows near a negative word, and rows, over the other groups of the family."""
        others = [tally for other, tally in self.tallies.items() if other[0] == group[0] and other != group]
        return sum(tally.near for tally in others), sum(tally.rows for tally in others)

    def _comparable(self, group: tuple[str, str]) -> bool:
        return self.tallies[group].rows >= self.config.min_rows and self._rest(group)[1] >= self.config.min_rows

    def sections(self, folder: Path) -> list[Section]:
        named = [(group, tally) for group, tally in self.tallies.items() if tally.rows]
        if not named:
            return [Section("Groups of people", text="No row names a group of check.bias.groups.")]
        table = []
        for (family, group), tally in named:
            near, rows = self._rest((family, group))
            rest = share_said(near, rows) if rows else "-"
            table.append((family, group, tally.rows, share_said(tally.rows, self.rows), tally.mentions, share_said(tally.near, tally.rows), rest))
        columns = ("family", "group", "rows that name it", "share of all rows", "mentions", "with a negative word near", "rest of the family")
        bars = [(f"{family}: {group}", float(tally.rows), f"{tally.rows:,}") for (family, group), tally in named]
        first = draw_bars(folder / "check_bias_rows.png", bars, label="rows that name the group").name
        enough = [(group, tally) for group, tally in named if tally.rows >= self.config.min_rows]
        pictures = [first]
        if enough:
            bars = [(f"{family}: {group}", 100 * tally.near / tally.rows, share_said(tally.near, tally.rows)) for (family, group), tally in enough]
            label = f"% of these rows with a negative word within {self.config.window} words"
            pictures.append(draw_bars(folder / "check_bias_negative.png", bars, label=label).name)
        text = "Words are counted, not meant: a share that differs says where to look. Groups that no row names are left out."
        return [Section("Groups of people", columns, table, text=text, pictures=pictures)]

    def _example(self, tally: Tally, origins: list[str]) -> None:
        assert tally.examples is not None
        tally.examples.extend(origins[: max(0, self.examples - len(tally.examples))])


def fisher(near: int, rows: int, other_near: int, other_rows: int) -> float:
    """One-sided p-value of Fisher's exact test: the chance of `near` or more of `rows` if both groups have the same rate."""
    total, hits = rows + other_rows, near + other_near

    def chance(count: int) -> float:
        return math.exp(_choose(hits, count) + _choose(total - hits, rows - count) - _choose(total, rows))

    chances = 0.0
    for count in range(near, min(rows, hits) + 1):
        step = chance(count)
        chances += step
        if step < 1e-18 * (chances or 1.0):  # past the peak: what follows is smaller still
            break
    return min(1.0, chances)


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
