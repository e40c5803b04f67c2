"""preference: several answers of the teacher to one prompt, scored; the best is chosen, the worst rejected.

Knows where prompts come from and who scores; what a verifier looks at is in verifier.py. A prompt whose answers are all equally good, or all bad,
teaches nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from largeforge.chat import Message
from largeforge.contract import Reference
from largeforge.data.files import locate, records
from largeforge.data.formats import read_row
from largeforge.data.generator.base import Estimate, Rejected, question_and_answer
from largeforge.data.generator.config import PreferenceConfig
from largeforge.data.generator.taught import Taught, plain
from largeforge.data.generator.template_set import TemplateSet, open_set
from largeforge.data.generator.verifier import Verifier, judged_score, verifier
from largeforge.data.rows import BadRow, Row
from largeforge.errors import InputError

_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")


@dataclass(frozen=True)
class Prompt:
    """What the answers are to.

    Args:
        turns: as the row holds them.
        asked: the whole conversation that the teacher is given.
        expected: the right answer, where it is known.
    """

    number: int
    name: str
    turns: list[dict[str, str]]
    asked: tuple[Message, ...]
    expected: str


@dataclass(frozen=True)
class Scored:
    """An answer and its score, 0 to 1."""

    text: str
    score: float


class Preference(Taught):
    """Rows of prompt, chosen and rejected."""

    config: PreferenceConfig

    @cached_property
    def verify(self) -> Verifier | None:
        """The verifier; None where the teacher judges."""
        return None if self.config.score_by == "judge" else verifier(self.config)

    def check(self) -> None:
        """Read the domain and the prompts, and check what scores."""
        super().check()
        if self.set is None and self.config.prompts not in ("domain", "instruct"):
            assert isinstance(self.listed, list)
        if self.verify is None:
            self.domain.prompt("judge_prompt", instruction="", response="")
        if self.config.score_by == "exact_answer" and self.config.prompts == "instruct":
            raise InputError(
                "generator.score_by=exact_answer needs prompts whose answer is known; of those that the teacher invents it is not.",
                next_step="generator.prompts=arithmetic, or generator.score_by=judge",
            )

    def sources(self) -> list[Reference]:
        """The domain, the teacher, and the template set where prompts come from one."""
        return [*super().sources(), *(self.set.sources() if self.set is not None else [])]

    def make(self, numbers: range) -> Iterator[Row | Rejected]:
        """One prompt a try: `samples` answers each, then as many scores."""
        prompts: list[Prompt] = []
        for item in self.prompts(numbers):
            if isinstance(item, Rejected):
                yield item
            else:
                prompts.append(item)
        if not prompts and not self.ended:
            self.ended = f"there are no more prompts in generator.prompts={self.config.prompts}"
        for batch in self.batches(prompts):
            samples = [(prompt, place) for prompt in batch for place in range(self.config.samples)]
            requests = [self.request(prompt.asked, "sample", prompt.number, place, temperature=self.config.temperature) for prompt, place in samples]
            texts = list(self.answers(requests, [f"{self.origin(prompt.number)}, answer {place + 1}" for prompt, place in samples]))
            found = self.scored(samples, texts)
            for prompt in batch:
                yield self.pair(prompt, found[prompt.number], [text for (other, _), text in zip(samples, texts, strict=True) if other is prompt])

    def scored(self, samples: Sequence[tuple[Prompt, int]], texts: Sequence[str | Rejected]) -> dict[int, list[Scored]]:
        """The distinct answers of each prompt that have a score, by its number."""
        distinct: dict[tuple[int, str], tuple[Prompt, str]] = {}
        for (prompt, _), text in zip(samples, texts, strict=True):
            if isinstance(text, Rejected):
                self.tally[f"samples_{text.reason}"] += 1
            else:
                self.tally["samples"] += 1
                distinct.setdefault((prompt.number, plain(text)), (prompt, text))
        found: dict[int, list[Scored]] = {prompt.number: [] for prompt, _ in samples}
        for (prompt, text), score in zip(distinct.values(), self.scores(list(distinct.values())), strict=True):
            if score is None:
                self.tally["samples_unscored"] += 1
            else:
                found[prompt.number].append(Scored(text, score))
        return found

    def scores(self, answers: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        """A score each; None where the judge said none."""
        if self.verify is not None:
            return [self.verify(text, prompt.expected) for prompt, text in answers]
        requests = []
        for prompt, text in answers:
            question = self.domain.prompt("judge_prompt", instruction=prompt.turns[-1]["content"], response=text)
            requests.append(self.request([Message("user", question)], "judge", prompt.number, text))
        said = self.answers(requests, [f"{self.origin(prompt.number)}, score" for prompt, _ in answers])
        return [None if isinstance(text, Rejected) else judged_score(text) for text in said]

    def pair(self, prompt: Prompt, found: Sequence[Scored], texts: Sequence[str | Rejected]) -> Row | Rejected:
        """The best and the worst of a prompt's answers as a row, or why there is none."""
        origin = self.origin(prompt.number)
        if len(found) < 2:
            reasons = [text.reason for text in texts if isinstance(text, Rejected)]
            return Rejected(reasons[0] if len(reasons) == len(texts) else "too_few_answers", origin, f"{len(found)} distinct answers with a score")
        best, worst = max(found, key=lambda item: item.score), min(found, key=lambda item: item.score)
        told = f"scores {worst.score:.2f} to {best.score:.2f}"
        if best.score < self.config.good:
            return Rejected("all_bad", origin, told)
        if best.score - worst.score < max(self.config.margin, 1e-9):
            return Rejected("tie", origin, told)
        content: dict[str, Any] = {"prompt": prompt.turns, "chosen": [_turn(best.text)], "rejected": [_turn(worst.text)]}
        scores = {"score_by": self.config.score_by, "chosen": round(best.score, 4), "rejected": round(worst.score, 4)}
        row = Row(content, origin, self.lineage(prompt.number, prompt=prompt.name, scores=scores))
        return self.passed(row, best.text, min_words=self.config.min_words)

    # ---- prompts ----

    @cached_property
    def set(self) -> TemplateSet | None:
        """The template set that prompts are drawn from; None where they come from elsewhere."""
        source = self.config.prompts
        return None if source in ("domain", "instruct") or source.endswith(_ROWS) else open_set(source, key="generator.prompts")

    @cached_property
    def listed(self) -> list[Row]:
        """The prompts of a file."""
        found = []
        for path in locate(self.config.prompts, key="generator.prompts"):
            for record in records(path):
                row = record if isinstance(record, BadRow) else read_row(record.value, record.origin, None)
                if isinstance(row, BadRow):
                    raise InputError(f"{row}", next_step="rows with a prompt: messages, or prompt and answer")
                found.append(row)
        return found

    def prompts(self, numbers: range) -> Iterator[Prompt | Rejected]:
        """The prompts of some tries; fewer where there are no more."""
        if self.config.prompts == "instruct":
            for number, _, text in self.invented(numbers):
                yield text if isinstance(text, Rejected) else self.asking(number, text, "", f"{self.domain.name}/instruct")
            return
        for number in numbers:
            if self.config.prompts == "domain":
                if number < len(self.domain.seeds):
                    seed = self.domain.seeds[number]
                    yield self.asking(number, seed.instruction, seed.response, f"{self.domain.name}/seed {number + 1}")
            elif self.set is not None:
                row = self.set.row(self.seed, number)
                yield self.from_row(number, row, row.lineage["template"])
            elif number < len(self.listed):
                yield self.from_row(number, self.listed[number], self.listed[number].origin)

    def from_row(self, number: int, row: Row, name: str) -> Prompt | Rejected:
        """The question of a row, once; its answer is what is expected."""
        question, expected = question_and_answer(row)
        if row.kind == "text" or not question:
            raise InputError(f"{row.origin} holds no question.", next_step="generator.prompts=FILE with messages, or prompt and answer")
        new = self.new_instruction(question, self.origin(number))
        if isinstance(new, Rejected):
            return new
        turns = row.content["prompt"] if row.kind == "preference" else row.content["messages"][:-1]
        if len(turns) == 1:
            return self.asking(number, turns[0]["content"], expected, name)
        return Prompt(number, name, turns, tuple(Message(turn["role"], turn["content"]) for turn in turns), expected)

    def asking(self, number: int, instruction: str, expected: str, name: str) -> Prompt:
        """A prompt of one turn, asked as the domain asks, examples first."""
        examples = [seed for seed in self.examples("response", number) if plain(seed.instruction) != plain(instruction)]
        return Prompt(number, name, self.domain.said(instruction), self.domain.asking_response(instruction, examples), expected)

    def estimate(self) -> Estimate:
        """The samples of each prompt, the scores of a judge, and the prompt itself where the teacher invents it."""
        per_row = self.config.samples * (1 + (self.config.score_by == "judge")) + (self.config.prompts == "instruct")
        shots = self.examples("response", 0)
        return self.estimated(per_row, [self.domain.asking_response(shots[0].instruction if shots else "", shots)])


def _turn(text: str) -> dict[str, str]:
    return Message("assistant", text).as_dict()
