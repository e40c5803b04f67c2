"""echo: says what was asked, word by word; for tests and dry runs of whatever asks an engine.

Needs no model and no network; a word counts as a token. The same request has the same answer, whatever its seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from largeforge.chat import Answer, ChatRequest, Delta, Usage
from largeforge.engine.answers import every_answer, stream
from largeforge.engine.config import EchoConfig
from largeforge.engine.limits import Budget

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

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Say the words of the last turn, `max_tokens` of them at most."""
        words = ["echo:", *request.messages[-1].content.split()]
        said = words[: request.max_tokens]
        for place, word in enumerate(said):
            await asyncio.sleep(0)  # others answer meanwhile, as with a real engine
            yield Delta(f" {word}" if place else word)
        asked = sum(len(message.content.split()) for message in request.messages)
        yield Delta("", finish_reason="stop" if len(said) == len(words) else "length", usage=Usage(asked, len(said)))

    async def close(self) -> None:
        """Nothing is held."""

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        """Answer in the order asked."""
        return every_answer(self, requests, in_flight=self.in_flight)

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Answer one request word by word."""
        return stream(self, request)
