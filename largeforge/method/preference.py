"""What methods of preference share: the log-probability of whole answers, under the model and under a reference.

Knows nothing about which loss is taken of them. Shapes: A answers, N supervised tokens, P pairs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from largeforge.batch import Annotation, AnswerBatch
from largeforge.contract import LoadedModel
from largeforge.errors import InputError
from largeforge.method.base import Method
from largeforge.method.config import MethodConfig
from largeforge.method.head import SupervisedHead
from largeforge.method.vocabulary import check_vocabulary

REFERENCE = "reference_logprob"


@dataclass(frozen=True)
class AnswerLogprob:
    """Log-probabilities of answers given their prompts: the sum over an answer's supervised tokens, their number, the mean."""

    sum_A: Tensor
    count_A: Tensor
    mean_A: Tensor


class Preference(Method):
    """A method that learns from answers of which some are preferred."""

    def weights(self, batch: AnswerBatch) -> dict[str, int]:
        return {"preference": batch.num_answers // 2}

    def answer_logprob(self, batch: AnswerBatch, head: SupervisedHead | None = None) -> AnswerLogprob:
        """Return the log-probability of each answer of a batch, fp32, under this module's network or that of another head."""
        logprob_N = (head or self.head).logprobs(batch.tokens)
        sums = torch.zeros(batch.num_answers, dtype=logprob_N.dtype, device=logprob_N.device)
        sum_A = sums.index_add(0, batch.answer_N, logprob_N)
        count_A = torch.bincount(batch.answer_N, minlength=batch.num_answers)
        return AnswerLogprob(sum_A, count_A, sum_A / count_A.clamp(min=1))

    def note_margin(self, chosen_P: Tensor, rejected_P: Tensor) -> None:
        """Note what a pair's implied rewards say: whether the chosen answer has the higher one, and by how much."""
        margin_P = (chosen_P - rejected_P).detach()
        self.note("preference_accuracy", (margin_P > 0).sum(), len(margin_P))
        self.note("preference_margin", margin_P.sum(), len(margin_P))
        self.note("reward_chosen", chosen_P.sum(), len(margin_P))
        self.note("reward_rejected", rejected_P.sum(), len(margin_P))


class Referenced(Preference):
    """A method of preference that compares with a reference: a second model, or the adapter switched off.

    Args:
        config: of the method.
        model: what learns.
        reference: a second model; None is the model itself as it is at the start: its adapter switched off, or, where values are cached,
            the model before its first step.

    Raises:
        InputError: no reference where every weight learns, or one of another vocabulary.
    """

    def __init__(self, config: MethodConfig, *, model: LoadedModel, reference: LoadedModel | None = None) -> None:
        super().__init__(config, model=model)
        self.cached = getattr(config, "reference_logprobs", "online") == "cached"
        if reference is None and not self.cached and not hasattr(model.network, "disable_adapter"):
            raise InputError(
                "Every weight learns, so the model itself cannot be asked for what it said at the start.", next_step="adapter=lora, or reference=<a model>"
            )
        if reference is not None:
            check_vocabulary(model, reference, role="reference")
        self.reference_source = (reference or model).source
        self.reference = reference  # not its network: as an attribute it would become a part of this module
        self.hold_frozen(reference)
        self.reference_head = None if reference is None else SupervisedHead(reference.network)

    def reference_logprob(self, batch: AnswerBatch) -> Tensor:
        """Return the log-probability of each answer under the reference, [A] fp32: as it was computed before, or now; without a gradient."""
        kept = batch.tokens.annotations.get(REFERENCE)
        return self.ask_reference(batch) if kept is None else kept

    @torch.no_grad()
    def ask_reference(self, batch: AnswerBatch) -> Tensor:
        """Ask the reference now."""
        if self.reference_head is not None:
            return self.answer_logprob(batch, self.reference_head).sum_A
        with self.evaluating(), self.network.disable_adapter() if hasattr(self.network, "disable_adapter") and not self._before_training else nullcontext():
            return self.answer_logprob(batch).sum_A

    def annotations(self) -> list[Annotation]:
        """The reference's log-probability of each answer, where it is asked once."""
        if not self.cached:
            return []
        source = self.reference_source
        what = f"{source.kind} {source.name} {source.revision} {source.sha256} {self.network.dtype} {self.config.train_on}"
        return [Annotation(name="reference log-probabilities", key=what, columns={REFERENCE: "float32"}, compute=self._annotate)]

    def on_fit_start(self) -> None:
        if self.cached and self.reference is not None:  # it has said all that it is asked
            self.let_go(self.reference.network)
            self.reference = self.reference_head = None
        super().on_fit_start()

    @property
    def _before_training(self) -> bool:
        """Whether nothing has been learnt yet: then the model with its adapter, fresh or carried along, is the reference."""
        return self._trainer is None

    def _annotate(self, batch: AnswerBatch) -> dict[str, list[Any]]:
        device = (self.network if self.reference is None else self.reference.network).device
        return {REFERENCE: [value.reshape(1) for value in self.ask_reference(batch.to(device)).cpu().numpy()]}
