"""self_instruct: a pool of instructions that grows out of itself. Knows nothing about how the teacher is asked.

Wang et al. (2022), "Self-Instruct: Aligning Language Models with Self-Generated Instructions": some instructions of people and some of the teacher's own
are shown, more are asked for; what is like anything in the pool is left out (there by ROUGE-L, here by the gate's similarity), the rest is answered and
joins the pool. Here only an instruction whose answer was kept joins it, so that one bad answer does not breed others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from largeforge.chat import Message
from largeforge.data.generator.base import Estimate, Rejected
from largeforge.data.generator.config import SelfInstructConfig
from largeforge.data.generator.taught import Taught, tidy
from largeforge.data.rows import Row

_NUMBERED = re.compile(r"^\s*(?:task\s*)?\d+\s*[.:)]\s*(\S.*?)\s*$", flags=re.IGNORECASE | re.MULTILINE)


class SelfInstruct(Taught):
    """Instruction-response pairs, each round shown what the rounds before it made."""

    config: SelfInstructConfig
    pool: list[str]

    def ready(self) -> None:
        """The pool begins empty: seeds are kept apart, they are always there to be shown."""
        super().ready()
        self.pool = []

    def make(self, numbers: range) -> Iterator[Row | Rejected]:
        """One list of new instructions a try; those that are new are answered."""
        requests = [self.request(self.growing(number), "growth", number, temperature=self.config.temperature) for number in numbers]
        new: list[tuple[str, str]] = []
        for number, text in zip(numbers, self.answers(requests, [self.origin(number) for number in numbers]), strict=True):
            if isinstance(text, Rejected):
                yield text
                continue
            found = _NUMBERED.findall(text)[: self.config.per_request]
            if not found:
                yield Rejected("malformed", self.origin(number), "no numbered line")
            for place, line in enumerate(found, 1):
                name = f"{number}.{place}"
                instruction = self.new_instruction(tidy(line), self.origin(name))
                if isinstance(instruction, Rejected):
                    yield instruction
                else:
                    new.append((name, instruction))
        grown = []
        for batch in self.batches(new):
            asked = [self.request(self.domain.asking_response(text, self.examples("response", name)), "response", name) for name, text in batch]
            for (name, instruction), answer in zip(batch, self.answers(asked, [self.origin(name) for name, _ in batch]), strict=True):
                item = self.answered(name, instruction, "", answer)
                if isinstance(item, Row):
                    grown.append(instruction)
                yield item
        self.pool += grown  # after the round: what a try is shown does not depend on how a round is worked on

    def growing(self, number: int) -> tuple[Message, ...]:
        """The conversation that asks for more instructions: some of people, some of the pool, in any order."""
        rng = Random(f"{self.seed} growth {number}")
        own = rng.sample(self.pool, min(self.config.own_shots, len(self.pool), self.config.shots))
        seeds = [seed.instruction for seed in self.domain.seeds]
        shown = own + rng.sample(seeds, min(self.config.shots - len(own), len(seeds)))
        rng.shuffle(shown)
        return self.domain.asking_more(shown, self.config.per_request)

    def estimate(self) -> Estimate:
        """One request a row, and one for every `per_request` of them."""
        self.ready()
        shots = self.examples("response", 0)
        whole = self.estimated(1, [self.domain.asking_response(shots[0].instruction if shots else "", shots), self.growing(0)])
        lists = -(-self.config.num_rows // self.config.per_request)
        return Estimate(
            whole.num_requests + lists, whole.num_requests_at_most + int(lists * self.config.attempts), whole.prompt_tokens, whole.completion_tokens
        )
