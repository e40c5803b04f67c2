"""echo: says what was asked, word by word; for tests and dry runs of whatever asks an engine.

Needs no model and no network; a word counts as a token. The same request has the same answer, whatever its seed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from largeforge.chat import Answer, ChatRequest, Delta, Load, Usage
from largeforge.engine.answers import every_answer, stream
from largeforge.engine.config import EchoConfig
from largeforge.engine.limits import Budget
from largeforge.errors import EngineError

if TYPE_CHECKING:
    from largeforge.contract import LoadedModel, Progress


class Echo:
    """Answers "echo: <last turn>".

    Args:
        config: how much it says.
        model: not used; every engine is given it.
        progress: not used.
        device: not used.
    """

    needs_model: ClassVar[bool] = False

    def __init__(self, config: EchoConfig, *, model: LoadedModel | None = None, progress: Progress | None = None, device: str | None = None) -> None:
        self.config = config
        self.name = "echo"
        self.in_flight = config.in_flight
        self.budget = Budget(config.budget)
        self._active = self._said = 0

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Say the words of the last turn, `max_tokens` of them at most."""
        for field in ("stop", "frequency_penalty", "presence_penalty", "logprobs", "adapter", "schema"):
            if getattr(request, field) != getattr(ChatRequest, field):
                raise EngineError(f"An echo has no {field}.", reason="refused", next_step="engine=hf")
        asked = [message.content for message in request.messages] or [
            request.prompt if isinstance(request.prompt, str) else " ".join(map(str, request.prompt or ()))
        ]
        words = ["echo:", *asked[-1].split()]
        if request.ignore_end:
            words = list(itertools.islice(itertools.cycle(words), request.max_tokens))
        said = words[: request.max_tokens]
        self._active += 1
        try:
            for place, word in enumerate(said):
                await asyncio.sleep(0)  # others answer meanwhile, as with a real engine
                self._said += 1
                yield Delta(f" {word}" if place else word)
            used = Usage(sum(len(text.split()) for text in asked), len(said))
            yield Delta("", finish_reason="stop" if len(said) == len(words) and not request.ignore_end else "length", usage=used)
        finally:
            self._active -= 1

    def load(self) -> Load:
        """Answers under way and words said; an echo keeps no keys and values."""
        return Load(active=self._active, decoded_tokens=self._said)

    async def close(self) -> None:
        """Nothing is held."""

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        """Answer in the order asked."""
        return every_answer(self, requests, in_flight=self.in_flight)

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Answer one request word by word."""
        return stream(self, request)
