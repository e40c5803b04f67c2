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
        stop: strings that end the answer; none of them is part of it.
        frequency_penalty: taken off a token's logit for every time it was said in this answer, in [-2, 2] (OpenAI's definition).
        presence_penalty: taken off a token's logit once it was said in this answer, in [-2, 2].
        logprobs: how many of the likeliest tokens are told beside each token of the answer, 0 .. 20; None tells no log-probabilities.
        prompt: a text, or token ids, that is continued as it stands, without a template: `messages` is empty then.
        adapter: the LoRA adapter that answers, by its name at the engine; "" is the model as it was loaded.
        schema: a JSON Schema (as JSON text) that the answer is held to; "" is none.
        ignore_end: go on to max_tokens whatever the model says: for benches.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    prompt: str | tuple[int, ...] | None = None
    adapter: str = ""
    schema: str = ""
    ignore_end: bool = False


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer, and what else it might have been.

    Args:
        token: its text alone; bytes of a character that others complete as surrogateescape has them.
        logprob: natural logarithm of its probability under the model, before temperature, top_p, top_k and penalties; <= 0.
        top: (text, logprob) of the likeliest tokens, the likeliest first.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer as it comes; the last one carries the reason and the usage.

    Args:
        text: may be empty.
        finish_reason: None but in the last one.
        usage: None but in the last one.
        logprobs: of the tokens that this piece stands for, where the request asked for them.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Load:
    """How busy an engine is, and what it did since it started.

    Args:
        active: requests that are being answered.
        waiting: requests that wait for a place in the batch.
        decoded_tokens: tokens of answers computed so far; stands still when nobody is answered.
        free_blocks: blocks of the KV cache that no request holds.
        total_blocks: blocks there are; 0 where the engine has no paged cache.
        memory_bytes: of the device, held by the engine's process.
    """

    active: int = 0
    waiting: int = 0
    decoded_tokens: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    memory_bytes: int = 0


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
