"""Answers held to a JSON Schema, by llguidance: which tokens may come next; knows nothing about logits or batches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from largeforge.errors import EngineError, MissingExtra

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = 64  # schemas whose grammar is at hand; each is some hundred kB


class Grammars:
    """The grammars of one tokenizer; making one takes milliseconds to seconds, so they are made where nobody waits for a batch.

    Args:
        tokenizer: a fast one.
        vocabulary: tokens that the network knows, those without a text included.
        ends: tokens that end an answer: allowed where the schema is fulfilled.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, ends: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.ends = ends
        self._lock = threading.Lock()
        self._tokens: Any = None
        self._made: OrderedDict[str, Any] = OrderedDict()

    def matching(self, schema: str) -> Matching:
        """Return what holds one answer to a schema.

        Raises:
            EngineError: "refused": the schema is none that llguidance knows, in its words.
        """
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError as fault:
            raise MissingExtra("llguidance", extra="serve") from fault
        with self._lock:
            made = self._made.get(schema)
            if made is None:
                try:
                    if self._tokens is None:
                        tokenizer: Any = self.tokenizer
                        self._tokens = from_tokenizer(tokenizer, n_vocab=self.vocabulary, eos_token=sorted(self.ends))
                    made = LLMatcher(self._tokens, LLMatcher.grammar_from_json_schema(schema), log_level=0)
                except ValueError as fault:
                    raise EngineError(f"This schema cannot be held to: {fault}", reason="refused", next_step="a simpler JSON Schema") from fault
                if made.is_error():
                    message = " ".join(str(made.get_error()).split())
                    raise EngineError(f"This schema cannot be held to: {message}", reason="refused", next_step="a simpler JSON Schema")
                self._made[schema] = made
            self._made.move_to_end(schema)
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
            return Matching(made.deep_copy())


class Matching:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allowed(self, size: int) -> Tensor:
        """Return a bool for each of `size` tokens: whether it may come next."""
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits = (words[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        flat = bits.flatten()[:size].bool()
        return flat if flat.numel() == size else torch.cat([flat, flat.new_zeros(size - flat.numel())])

    def take(self, token: int) -> bool:
        """Go on by one token; True where nothing may follow it."""
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"A grammar does not take the token {token} that it allowed: {self._matcher.get_error()}")
        stopped: bool = self._matcher.is_stopped()
        return stopped
