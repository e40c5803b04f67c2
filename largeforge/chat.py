"""The words of a conversation: what is said, what is asked of an engine, what it answers. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates and files use."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class ChatRequest:
    """What is asked of an engine.

    Args:
        messages: the conversation so far; the last turn is the user's.
        max_tokens: tokens to answer with at most, >= 1.
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        top_k: candidates a token is drawn from; 0 is all.
        seed: of the sampling; the same seed and request give the same answer on the same machine.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Delta:
    """A piece of an answer as it comes; the last one carries the reason and the usage."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True)
class Failure:
    """A request that got no answer that could be used.

    Args:
        reason: "unreachable" (after every retry), "refused" (the server said no), "malformed", "empty" or "budget" (not asked any more).
        message: what was said or seen, for a person.
    """

    reason: Literal["unreachable", "refused", "malformed", "empty", "budget"]
    message: str


@dataclass(frozen=True)
class Example:
    """A held-out conversation with the answer that is expected: what benchmarks ask and compare.

    Args:
        prompt: every turn before the answer.
        answer: the expected text of the assistant's turn.
        note: what a table may show beside it (family of the phrasing, distance to the nearest training row ...).
    """

    prompt: tuple[Message, ...]
    answer: str
    note: str = ""
