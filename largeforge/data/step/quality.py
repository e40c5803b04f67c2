"""Scores how much a row looks like text worth learning from, 0..1, by published rules. Asks no model and knows nothing about what is true.

Every rule that a text breaks multiplies its score by 1 - weight; a text that breaks none scores 1. One rule of a small weight alone drops nothing at the
threshold 0.5. The rules and their limits are those of Gopher (Rae et al. 2021, "Scaling language models", table A1 and appendix A1.1) and C4 (Raffel et al.
2020, section 2.2), made for pages of the web; what is new is that a rule is asked only of a text that is long enough for it, because "Paris." is a good answer.
Code between ``` is not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from largeforge.data.rows import TURNS, Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import QualityConfig

REFUSAL_CHARS = 300  # a refusal begins with it; further on the text may be about refusals
_FENCED = re.compile(r"```.*?(?:```|\Z)", flags=re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
_HASHTAG = re.compile(r"#(?=\w)")  # a heading's are no sign
_TABLE = re.compile(r"\||(?<=[|\s]):?-{3,}:?(?=[|\s])")  # what draws a table in Markdown
_RUN = re.compile(r"([^\W\d_]|[!?.,;])\1{11,}")
_MOJIBAKE = re.compile("\ufffd|Ã[\u0080-\u00bf]|â€[\u0080-\u2122œ\u009d]|ï»¿")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # scripts that put no spaces between words
_BULLETS = ("•", "‣", "◦", "- ", "* ", "+ ")
_PHRASES = {2: 0.20, 3: 0.18, 4: 0.16}  # Gopher's limits: share of the characters in the most frequent run of n words
_PASSAGES = {5: 0.15, 7: 0.13, 10: 0.10}  # and in all runs of n words that come back
_ENDS = (".", "!", "?", '"', "'", ")", "]", "}", ":", ";", "*", "`", "…", "»", "”", "’", "。", "！", "？", "।", "؟", "|", ">", "$", "%", "_", "~")


@dataclass(frozen=True)
class Broken:
    """A rule that a text breaks: by how much its score shrinks, and what was measured."""

    rule: str
    weight: float
    measured: str = ""

    def __str__(self) -> str:
        return f"{self.rule} {self.measured}".rstrip()


class Quality(Step):
    """Drops rows that score under the threshold; every row's score goes into lineage as `quality`."""

    config: QualityConfig

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Give on what scores enough; the rest is dropped with every rule it breaks."""
        for row in rows:
            score, broken = self.judged(row)
            if score < self.config.threshold:
                yield Dropped(row, "low_quality", f"{score:.2f} (at least {self.config.threshold:g}): {', '.join(map(str, broken))}")
            else:
                yield row.with_lineage(quality=score)

    def judged(self, row: Row) -> tuple[float, list[Broken]]:
        """The score of the row's worst judged text, to two places, and the rules that text breaks."""
        judged = [(_score(broken), broken) for broken in (self._rules(text, answers=said) for text, said in self._texts(row))]
        if row.kind == "messages" and (echoes := _echoes(row)):
            judged.append((_score(echoes), echoes))
        return min(judged, key=lambda pair: pair[0], default=(0.0, [Broken("empty", 1.0)]))

    def _texts(self, row: Row) -> list[tuple[str, bool]]:
        """The texts that are judged, and whether each is an answer."""
        if row.kind == "text":
            return [(row.content["text"], True)]
        names = TURNS[row.kind] if self.config.judge == "all" else ("messages",) if row.kind == "messages" else ("chosen",)
        turns = [turn for name in names for turn in row.content[name]]
        return [(turn["content"], turn["role"] == "assistant") for turn in turns if self.config.judge == "all" or turn["role"] == "assistant"]

    def _rules(self, text: str, *, answers: bool) -> list[Broken]:
        """Every rule that a text breaks."""
        if not text.strip():
            return [Broken("empty", 1.0)]
        prose = _FENCED.sub(" ", text).strip()
        if not prose:
            return []
        words, lines = prose.split(), [line.strip() for line in prose.splitlines() if line.strip()]
        return [*self._phrases(prose, answers=answers), *_characters(prose, words), *_words(prose, words, self.config.stop_words), *_lines(lines)]

    def _phrases(self, prose: str, *, answers: bool) -> Iterator[Broken]:
        said = prose.lower().replace("’", "'")
        if answers and any(phrase.lower() in said[:REFUSAL_CHARS] for phrase in self.config.refusals):
            yield Broken("refusal", 0.8)
        if any(phrase.lower() in said for phrase in self.config.boilerplate):
            yield Broken("boilerplate", 0.6)


def score(text: str) -> float:
    """Score a text by the rules that have no settings (characters, words, lines), 0..1: what the check of prepared rows tells the distribution of."""
    prose = _FENCED.sub(" ", text).strip()
    if not prose:
        return 1.0 if text.strip() else 0.0
    words, lines = prose.split(), [line.strip() for line in prose.splitlines() if line.strip()]
    return _score([*_characters(prose, words), *_words(prose, words, []), *_lines(lines)])


def _score(broken: Sequence[Broken]) -> float:
    score = 1.0
    for rule in broken:
        score *= 1 - rule.weight
    return round(score, 2)


def _echoes(row: Row) -> list[Broken]:
    """An answer of some length that says its question again."""
    turns = row.content["messages"]
    pairs = [(a["content"], b["content"]) for a, b in zip(turns, turns[1:], strict=False) if a["role"] == "user" and b["role"] == "assistant"]
    return [Broken("echo", 0.6)] if any(len(q) >= 20 and q.split() == a.split() for q, a in pairs) else []


def _characters(prose: str, words: list[str]) -> Iterator[Broken]:
    """What a text is written with."""
    visible = sum(map(len, words))
    if visible >= 12:
        symbols = visible - sum(map(str.isalnum, prose)) - (sum(map(len, _TABLE.findall(prose))) if "|" in prose else 0)
        # Marks of Indic scripts are neither letters nor digits for Python, and belong to words all the same.
        if prose.isascii() and symbols > 0.5 * visible:
            yield Broken("symbols", 0.7, f"{symbols / visible:.2f}")
        tags = sum(len(tag) for tag in _TAG.findall(prose))
        if tags > 0.3 * visible:
            yield Broken("markup", 0.6, f"{tags / visible:.2f}")
    if _RUN.search(prose):
        yield Broken("character_run", 0.6)
    if not prose.isascii() and (garbled := len(_MOJIBAKE.findall(prose))) > 0.02 * len(words):
        yield Broken("mojibake", 0.6, f"{garbled} places")


def _words(prose: str, words: list[str], stop_words: list[str]) -> Iterator[Broken]:
    """Gopher's rules about words; not asked where words are not parted by spaces."""
    count = len(words)
    if count < 8:
        if count == 1 and len(prose) > 60 and "/" not in prose and prose.isascii():
            yield Broken("one_long_word", 0.6, f"{len(prose)} characters")
        return
    if not prose.isascii() and len(_UNSPACED.findall(prose)) > 0.2 * len(prose):
        return
    mean = sum(map(len, words)) / count
    if not 2 <= mean <= 12 or (count >= 50 and not 3 <= mean <= 10):  # Gopher's limits are those of 50 words and more
        yield Broken("word_length", 0.6, f"{mean:.1f}")
    marks = (len(_HASHTAG.findall(prose)) + prose.count("...") + prose.count("…")) / count
    if marks > 0.1 and count >= 15:
        yield Broken("hashes_and_dots", 0.4 if marks <= 0.3 else 0.6, f"{marks:.2f}")
    alphabetic = sum(any(map(str.isalpha, word)) for word in words) / count
    if alphabetic < 0.2:
        yield Broken("few_words", 0.6, f"{alphabetic:.2f}")
    elif alphabetic < 0.8 and count >= 50:
        yield Broken("few_words", 0.1, f"{alphabetic:.2f}")
    lowered = [word.lower().strip(".,;:!?\"'()") for word in words]
    if stop_words and count >= 50 and len(set(lowered) & set(stop_words)) < 2:
        yield Broken("no_stop_words", 0.3)
    if count >= 50 and not prose.endswith(_ENDS) and prose[-1].isalpha():
        yield Broken("unfinished", 0.2)
    yield from _repeated(lowered)


def _repeated(words: list[str]) -> Iterator[Broken]:
    """Gopher's n-grams: the most frequent one of 2 to 4 words, and all that come back of 5 to 10, as shares of the characters; and one word again and again."""
    total = max(1, sum(map(len, words)))
    word, times = Counter(filter(None, words)).most_common(1)[0] if any(words) else ("", 0)
    if times > 0.5 * len(words) and any(map(str.isalnum, word)):
        yield Broken("repeated_word", 0.7, f"{times / len(words):.2f}")
        return
    if len(words) < 20:
        if len(set(words)) < 0.35 * len(words):
            yield Broken("repeated_words", 0.6, f"{len(set(words))} of {len(words)}")
        return
    # Gopher drops at these limits. Here a text at its limit loses a fifth, one at twice the limit two: problems and their solutions come back to
    # their subject, and a rule of pages of the web would drop one in ten of them.
    phrase = max((_most_frequent(words, n) / total / limit, n) for n, limit in _PHRASES.items())
    passage = max((_said_again(words, n) / total / limit, n) for n, limit in _PASSAGES.items())
    if max(phrase, passage)[0] > 1:
        rule, (ratio, n), limits = ("repeated_phrase", phrase, _PHRASES) if phrase >= passage else ("repeated_passages", passage, _PASSAGES)
        yield Broken(rule, min(0.9, round(0.2 * ratio, 2)), f"{ratio * limits[n]:.2f}")


def _most_frequent(words: list[str], n: int) -> int:
    """Characters of the most frequent run of n words, wherever it stands; 0 for one that stands fewer than four times."""
    gram, times = Counter(zip(*(words[at:] for at in range(n)), strict=False)).most_common(1)[0]
    return times * sum(map(len, gram)) if times >= 4 else 0


def _said_again(words: list[str], n: int) -> int:
    """Characters inside runs of n words that stood before."""
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for at in range(len(words) - n + 1):
        run = tuple(words[at : at + n])
        if run in seen:
            covered.update(range(at, at + n))
        seen.add(run)
    return sum(len(words[at]) for at in covered)


def _lines(lines: list[str]) -> Iterator[Broken]:
    """Gopher's rules about lines."""
    if len(lines) < 4:
        return
    repeated = 1 - len(set(lines)) / len(lines)
    if repeated > 0.3:
        yield Broken("repeated_lines", 0.6, f"{repeated:.2f}")
    dotted = sum(1 for line in lines if line.endswith(("...", "…"))) / len(lines)
    if dotted > 0.3:
        yield Broken("lines_cut_off", 0.6, f"{dotted:.2f}")
    bullets = sum(1 for line in lines if line.startswith(_BULLETS)) / len(lines)
    if bullets > 0.9 and len(lines) >= 20:  # a short list is an answer
        yield Broken("bullets", 0.3, f"{bullets:.2f}")
