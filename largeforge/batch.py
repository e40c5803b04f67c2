"""What data hands to methods: micro-batches, which steps are meant, what was computed of rows. Words of training; imports no part and nothing heavy.

Shapes: B sequences, T positions, A answers, N supervised tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TokenBatch:
    """One micro-batch of token ids: padded on the right, or packed rows.

    Args:
        input_ids_BT: int64. Padding holds any valid id.
        position_ids_BT: int64, from 0 in every example; padding goes on counting. No attention mask is needed: causal
            attention never looks right, and transformers keeps examples of a row apart where positions start again.
        supervised_BT: bool, True where the token itself is learnt from (predicted by the position to its left);
            never at the first position of an example, never on padding.
        num_examples: rows of the data set in here; 0 where a rank has nothing to do while others have.
        num_tokens: positions that are not padding.
        annotations: what was computed about these rows before training (`Annotation`), by column; values of one example after another, in
            the order in which examples stand in the batch.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    supervised_BT: Tensor
    num_examples: int
    num_tokens: int
    annotations: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_supervised(self) -> int:
        """Positions that are learnt from."""
        return int(self.supervised_BT.sum())

    def to(self, device: Any, non_blocking: bool = False) -> TokenBatch:
        """The same batch on another device."""
        ids, positions, supervised = (t.to(device, non_blocking=non_blocking) for t in (self.input_ids_BT, self.position_ids_BT, self.supervised_BT))
        kept = {name: values.to(device, non_blocking=non_blocking) for name, values in self.annotations.items()}
        return TokenBatch(ids, positions, supervised, num_examples=self.num_examples, num_tokens=self.num_tokens, annotations=kept)


@dataclass
class AnswerBatch:
    """One micro-batch of answers to prompts: what methods of preference learn from. A answers, N supervised tokens.

    Args:
        tokens: prompt and answer of each; only the answer is supervised (with `train_on=all` every token).
        answer_N: int64, which answer (0 .. A-1) each supervised token belongs to, in the order of `input_ids_BT[supervised_BT]`.
        desirable_A: bool, whether the answer is one to learn. Of pairs, chosen and rejected stand side by side: answers 2i and 2i + 1.
        mismatched: the same prompts, each with the answer of another row of the step: what KTO estimates its KL from; None for pairs.
    """

    tokens: TokenBatch
    answer_N: Tensor
    desirable_A: Tensor
    mismatched: AnswerBatch | None = None

    @property
    def num_answers(self) -> int:
        """A."""
        return int(self.desirable_A.shape[0])

    @property
    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return self.tokens.num_tokens

    @property
    def num_supervised(self) -> int:
        """Positions that are learnt from."""
        return self.tokens.num_supervised

    def to(self, device: Any, non_blocking: bool = False) -> AnswerBatch:
        """The same batch on another device."""
        answer_N, desirable_A = (t.to(device, non_blocking=non_blocking) for t in (self.answer_N, self.desirable_A))
        mismatched = None if self.mismatched is None else self.mismatched.to(device, non_blocking)
        return AnswerBatch(self.tokens.to(device, non_blocking), answer_N, desirable_A, mismatched)


Learns = Literal["chat", "pairs", "labelled", "text"]
"""What a method learns from: turns of chat; pairs of answers; answers each good or bad; plain text."""


@dataclass(frozen=True)
class Annotation:
    """Values that a method wants computed once for every row, before training, and then kept in the cache and carried by its batches.

    Args:
        name: of the values, for people: "reference log-probabilities".
        key: everything besides the rows that decides them: model, precision, how many.
        columns: column -> "float32" or "int32".
        compute: one micro-batch -> column -> an array for each example (of pairs: each answer), in the batch's order.
    """

    name: str
    key: str
    columns: dict[str, str]
    compute: Callable[[Any], dict[str, list[Any]]]


@dataclass(frozen=True)
class StepWindow:
    """Which optimizer steps of a run a loader yields: a pure function of these numbers and the rows.

    Args:
        batch_size: rows of the data set per optimizer step, over all ranks.
        micro_batch_size: sequences of one forward pass (packed rows where rows are packed; pairs, each two sequences, where they are not).
        num_steps: optimizer steps of the whole run.
        start_step: steps already taken: a resumed run skips them without reading them.
        seed: of the order; the permutation is a function of (seed, epoch).
        rank: whose micro-batches are meant, 0 .. world_size - 1.
        world_size: ranks that share each step. Every rank gets as many micro-batches as any other; one that has none left gets an empty one.
    """

    batch_size: int
    micro_batch_size: int
    num_steps: int
    start_step: int = 0
    seed: int = 0
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class BatchShape:
    """Size of one micro-batch, known from lengths alone: B sequences of T positions, S of them supervised."""

    num_sequences: int
    num_positions: int
    num_supervised: int
    num_tokens: int
    packed: bool


@dataclass(frozen=True)
class TokenizedRow:
    """One row as it is trained on. `supervised[i]` says whether token i is learnt from; `desirable`, whether the answer is one to learn."""

    token_ids: list[int]
    supervised: list[bool]
    origin: str
    desirable: bool = True
