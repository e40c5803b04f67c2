"""What generators that ask a teacher share: rounds of tries, answers that were checked, and the lineage of what they make.

Knows a domain and how to ask; which engine answers, the journal and the budget are the story's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from random import Random
from typing import Any, ClassVar, TypeVar

from largeforge.chat import Answer, ChatRequest, Failure, Message
from largeforge.contract import Reference
from largeforge.data.generator.base import Estimate, Generator, Rejected, number_of
from largeforge.data.generator.config import TaughtConfig
from largeforge.data.generator.domain import Domain, Seed, open_domain
from largeforge.data.rows import Row

Item = TypeVar("Item")
CHARS_PER_TOKEN = 4
_LABEL = re.compile(r"^(?:question|instruction|task|answer|response|q|a)\s*:\s*", flags=re.IGNORECASE)


class Stopped(Exception):
    """The answers ended before the requests did: somebody asked to stop."""


class Taught(Generator):
    """Makes rows in rounds of tries: what one round makes, the next may build on, whoever answered faster."""

    needs_teacher: ClassVar[bool] = True
    config: TaughtConfig

    @cached_property
    def domain(self) -> Domain:
        return open_domain(self.config.domain)

    def check(self) -> None:
        """Read the domain."""
        assert self.domain.seeds

    def sources(self) -> list[Reference]:
        """The domain and the teacher."""
        return [self.domain.source, self.teacher]

    def rows(self) -> Iterator[Row | Rejected]:
        """Yield rows and what was rejected, until there are enough, the tries or the budget are used up, or a stop is asked for."""
        wanted = self.left = self.config.num_rows
        tries = int(wanted * self.config.attempts)
        self.ready()
        try:
            for start in range(0, tries, self.config.round):
                for item in self.make(range(start, min(start + self.config.round, tries))):
                    self.left -= isinstance(item, Row)
                    yield item
                    if not self.left:
                        self.ended = ""
                        return
                if self.ended:
                    return
        except Stopped:
            return
        self.ended = f"{tries:,} tries (generator.num_rows x generator.attempts) gave {wanted - self.left:,} of {wanted:,} rows"

    def ready(self) -> None:
        """Do what is done once before the first round: the seeds are known questions, a copy of one is nothing new."""
        self.asked: set[str] = set()
        for number, seed in enumerate(self.domain.seeds, 1):
            self.new_instruction(seed.instruction, f"seed {number} of {self.domain.name}")

    def make(self, numbers: range) -> Iterator[Row | Rejected]:
        """Work on one round of tries."""
        raise NotImplementedError

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """As many at a time as rows are still wanted: nothing is asked for, and paid, that would not be needed."""
        start = 0
        while start < len(items) and self.left:
            batch = items[start : start + self.left]
            start += len(batch)
            yield batch

    # ---- asking ----

    def request(self, turns: Sequence[Message], *what: object, temperature: float | None = None) -> ChatRequest:
        """A request whose sampling is a function of the run's seed and `what` it is for; the engine's temperature where none is given."""
        drawing = self.drawing
        chosen = drawing.temperature if temperature is None else temperature
        seed = number_of(self.seed, self.name, *what)
        return ChatRequest(tuple(turns), max_tokens=drawing.max_tokens, temperature=chosen, top_p=drawing.top_p, top_k=drawing.top_k, seed=seed)

    def answers(self, requests: Sequence[ChatRequest], origins: Sequence[str]) -> Iterator[str | Rejected]:
        """Ask, and yield each answer's text, or why it cannot be used. Raises Stopped."""
        assert self.ask is not None, "the story gives every generator that needs a teacher its `ask`"
        left = len(requests)
        for found, origin in zip(self.ask(requests) if requests else (), origins, strict=False):
            left -= 1
            yield self._usable(found, origin)
        if left:
            raise Stopped

    def _usable(self, found: Answer | Failure, origin: str) -> str | Rejected:
        self.tally["requests"] += 1
        if isinstance(found, Failure):
            if found.reason == "budget":
                self.ended = found.message.removeprefix("Not asked: ").rstrip(".")
            return Rejected(found.reason, origin, found.message)
        self.tally["prompt_tokens"] += found.usage.prompt_tokens
        self.tally["completion_tokens"] += found.usage.completion_tokens
        text = tidy(found.text)
        if not text:
            return Rejected("empty", origin)
        if found.finish_reason != "stop":
            return Rejected("cut_off", origin, f"engine.max_tokens={self.drawing.max_tokens}")
        return text

    def invented(self, numbers: Sequence[int]) -> Iterator[tuple[int, str, str | Rejected]]:
        """Ask for one new instruction a number: yields number, topic, and the instruction or why there is none."""
        topics = {number: self.topic(number) for number in numbers}
        turns = {number: self.domain.asking_instruction(topics[number], self.examples("instruction", number)) for number in numbers}
        requests = [self.request(turns[number], "instruction", number, temperature=self.config.temperature) for number in numbers]
        for number, text in zip(numbers, self.answers(requests, [self.origin(number) for number in numbers]), strict=True):
            yield number, topics[number], text if isinstance(text, Rejected) else self.new_instruction(text, self.origin(number))

    def new_instruction(self, text: str, origin: str) -> str | Rejected:
        """The instruction, or why it is none: too short, or like one that was there before."""
        if len(text.split()) < 3:
            return Rejected("too_short", origin, "an instruction of fewer than 3 words")
        if plain(text) in self.asked:
            return Rejected("repeated", origin)
        self.asked.add(plain(text))
        near = self.gate.novel(text, origin)
        return text if near is None else Rejected(near[0], origin, near[1])

    def answered(self, number: object, instruction: str, topic: str, text: str | Rejected) -> Row | Rejected:
        """The row of an instruction and what the teacher answered."""
        origin = self.origin(number)
        if isinstance(text, Rejected):
            return text
        if plain(text) == plain(instruction):
            return Rejected("repeats_question", origin)
        turns = [*self.domain.said(instruction), Message("assistant", text).as_dict()]
        row = Row({"messages": turns}, origin, self.lineage(number, topic=topic))
        return self.passed(row, text, min_words=self.config.min_words)

    # ---- small things ----

    def origin(self, number: object) -> str:
        return f"{self.name} {self.domain.name}, try {number}"

    def topic(self, number: int) -> str:
        """Every topic in turn, each time round in another order."""
        topics = self.domain.file.topics
        turn, place = divmod(number, len(topics))
        return Random(f"{self.seed} topics {turn}").sample(topics, len(topics))[place]

    def examples(self, *what: object) -> list[Seed]:
        """Some of the seeds, drawn for this purpose."""
        seeds = self.domain.seeds
        return Random(" ".join(map(str, (self.seed, "shots", *what)))).sample(seeds, min(self.config.shots, len(seeds)))

    def lineage(self, number: object, **facts: Any) -> dict[str, Any]:
        """What is known about where a row came from; outside its id."""
        teacher, drawing = self.teacher, self.drawing
        return {
            "generator": self.name,
            "domain": self.domain.name,
            "prompt": f"{self.domain.name}/{self.name}",
            "teacher": {"name": teacher.name, "revision": teacher.revision, "sha256": teacher.sha256},
            "parameters": {
                "temperature": self.config.temperature,
                "answer_temperature": drawing.temperature,
                "top_p": drawing.top_p,
                "top_k": drawing.top_k,
                "max_tokens": drawing.max_tokens,
                "seed": self.seed,
                "try": number,
            },
            "time": self.now(),
            **facts,
        }

    def estimated(self, per_row: int, turns: Sequence[Sequence[Message]]) -> Estimate:
        """An estimate of so many requests a row, prompts being like these."""
        chars = sum(len(message.content) for prompt in turns for message in prompt) // max(1, len(turns))
        wanted = self.config.num_rows * per_row
        return Estimate(wanted, int(wanted * self.config.attempts), chars // CHARS_PER_TOKEN, self.drawing.max_tokens)


def tidy(text: str) -> str:
    """An answer without the label and the quotation marks that models put around it."""
    text = _LABEL.sub("", text.strip()).strip()
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def plain(text: str) -> str:
    """Letters and digits only, in lower case: what two texts are compared by."""
    return " ".join(re.findall(r"\w+", text.lower()))
