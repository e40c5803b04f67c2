"""How the tokens of one answer are chosen, and when it is over; knows token ids and logits, nothing about networks or batches.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from largeforge.engine.text import Text

NUCLEUS = 1024  # candidates that a nucleus is looked for in before all of them are sorted


@dataclass(frozen=True)
class Drawing:
    """How one row's tokens are chosen.

    Args:
        max_tokens: tokens at most, >= 1.
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        top_k: candidates; 0 is all.
        seed: of the draw.
        frequency_penalty: taken off a token's logit for every time it was said in this answer.
        presence_penalty: taken off a token's logit once it was said in this answer.
        logprobs: how many of the likeliest tokens are told beside each token; None tells none.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability under the model, and the likeliest ones'."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Grammar(Protocol):
    """What an answer is held to."""

    def allowed(self, size: int) -> Tensor:
        """Return a bool for each of `size` tokens: whether it may come next."""

    def take(self, token: int) -> bool:
        """Go on by one token; True where nothing may follow it."""


Draw = Callable[[Tensor, Drawing, torch.Generator], int]


class Choosing:
    """One answer under way: call `choose` with the logits of its next token, then `take` the token.

    Args:
        drawing: how its tokens are chosen.
        ends: tokens that end it; they are not part of it.
        device: of the logits.
        draw: draws one token where the temperature is above 0.
        watch: sees every token, and ends the answer where a stop string was said; None where there are none.
        grammar: what the answer is held to; None is nothing.
    """

    def __init__(
        self, drawing: Drawing, ends: frozenset[int], *, device: torch.device, draw: Draw, watch: Text | None = None, grammar: Grammar | None = None
    ) -> None:
        self.drawing = drawing
        self.ends = ends
        self.answer: list[int] = []
        self.ended_by: str | None = None
        self.logprobs: list[Logprob] = []
        self.penalized = bool(drawing.frequency_penalty or drawing.presence_penalty)
        self.plain = drawing.temperature == 0 and not self.penalized and drawing.logprobs is None and grammar is None
        """Whether the likeliest token is always it, and nothing else is asked: whoever has many of those finds them at once."""
        self._draw = draw
        self._generator = torch.Generator(device).manual_seed(drawing.seed) if drawing.temperature > 0 else None
        self._watch = watch
        self._grammar = grammar
        self._said: dict[int, int] = {}

    def choose(self, logits_V: Tensor) -> int:
        """Return the next token; `take` it next."""
        logits_V = logits_V.float()
        drawing, raw_V = self.drawing, logits_V
        if self._said:
            ids = torch.tensor(list(self._said), device=logits_V.device)
            counts = torch.tensor(list(self._said.values()), device=logits_V.device, dtype=logits_V.dtype)
            logits_V = logits_V.index_add(0, ids, -(drawing.frequency_penalty * counts + drawing.presence_penalty))
        if self._grammar is not None:
            logits_V = logits_V.masked_fill(~self._grammar.allowed(logits_V.numel()).to(logits_V.device), -torch.inf)
        token = int(logits_V.argmax()) if self._generator is None else self._draw(logits_V, drawing, self._generator)
        if drawing.logprobs is not None and token not in self.ends:
            logprobs_V = raw_V.log_softmax(-1)
            top = logprobs_V.topk(drawing.logprobs) if drawing.logprobs else None
            likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top is not None else ()
            self.logprobs.append(Logprob(token, float(logprobs_V[token]), likeliest))
        return token

    def take(self, token: int) -> bool:
        """Add the token to the answer, unless it ends it; True where the answer goes on."""
        if token in self.ends:
            self.ended_by = "stop"
            return False
        self.answer.append(token)
        if self.penalized:
            self._said[token] = self._said.get(token, 0) + 1
        if self._watch is not None:
            self._watch.add(token)
        over = self._grammar is not None and self._grammar.take(token)
        if over or (self._watch is not None and self._watch.stopped):
            self.ended_by = "stop"
        elif len(self.answer) >= self.drawing.max_tokens:
            self.ended_by = "length"
        return self.ended_by is None


def draw(logits_V: Tensor, drawing: Drawing, generator: torch.Generator) -> int:
    """Draw one token: temperature first, then the top_k likeliest, then the nucleus of top_p."""
    logits_V = logits_V.float() / drawing.temperature
    candidates = min(drawing.top_k or logits_V.numel(), logits_V.numel())
    scores, ids = logits_V.topk(candidates)
    chances = scores.softmax(-1)
    before = chances.cumsum(-1) - chances  # what the likelier tokens hold together: the first one is always kept
    chances = torch.where(before < drawing.top_p, chances, 0.0)
    return int(ids[torch.multinomial(chances, 1, generator=generator)])


def draw_steadily(logits_V: Tensor, drawing: Drawing, generator: torch.Generator) -> int:
    """Draw one token: temperature first, then the top_k likeliest, then the nucleus of top_p.

    Chance is dealt to tokens by their number, not by their rank as in `draw`: who else is in a batch changes logits in
    their last bits, and so the ranks of tokens that are equally likely; here that matters only where two would win at once.
    """
    logits_V = logits_V.float() / drawing.temperature
    if 0 < drawing.top_k < logits_V.numel():
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(drawing.top_k).values[-1], -torch.inf)
    chances_V = logits_V.softmax(-1)
    if drawing.top_p < 1:
        ordered = chances_V.topk(min(NUCLEUS, chances_V.numel())).values
        if float(ordered.sum()) <= drawing.top_p:  # a flat distribution: its nucleus is wider
            ordered = chances_V.sort(descending=True).values
        before = ordered.cumsum(-1) - ordered  # what the likelier tokens hold together: the first one is always kept
        chances_V = chances_V.masked_fill(chances_V < ordered[before < drawing.top_p][-1], 0)
    waits_V = torch.empty_like(chances_V).exponential_(generator=generator)  # the token whose event comes first, at rates of their chances
    return int((chances_V / waits_V).argmax())
