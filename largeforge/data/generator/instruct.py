"""instruct: a teacher invents an instruction about a topic of the domain, then answers it. Knows nothing about how it is asked."""

from __future__ import annotations

from collections.abc import Iterator

from largeforge.data.generator.base import Estimate, Rejected
from largeforge.data.generator.config import InstructConfig
from largeforge.data.generator.taught import Taught
from largeforge.data.rows import Row


class Instruct(Taught):
    """Instruction-response pairs from the topics and seeds of a domain."""

    config: InstructConfig

    def make(self, numbers: range) -> Iterator[Row | Rejected]:
        """One instruction a try; those that are new are answered."""
        new: list[tuple[int, str, str]] = []
        for number, topic, instruction in self.invented(numbers):
            if isinstance(instruction, Rejected):
                yield instruction
            else:
                new.append((number, topic, instruction))
        for batch in self.batches(new):
            asked = [self.request(self.domain.asking_response(text, self.examples("response", number)), "response", number) for number, _, text in batch]
            answers = self.answers(asked, [self.origin(number) for number, _, _ in batch])
            for (number, topic, instruction), text in zip(batch, answers, strict=True):
                yield self.answered(number, instruction, topic, text)

    def estimate(self) -> Estimate:
        """Two requests a row."""
        shots = self.examples("instruction", 0)
        return self.estimated(
            2, [self.domain.asking_instruction(self.topic(0), shots), self.domain.asking_response(shots[0].instruction if shots else "", shots)]
        )
