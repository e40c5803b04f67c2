"""KTO: learn from single answers that are good or bad, held to a reference model.

Sees token ids and masks; knows nothing about rows, templates or devices. Shapes: A answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from largeforge.batch import AnswerBatch
from largeforge.contract import LoadedModel, Term
from largeforge.method.config import KTOConfig
from largeforge.method.preference import Referenced


class KTO(Referenced):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7-8).

    With ``r = log p(answer) - log reference(answer)``, an answer's loss is ``w (1 - sigmoid(beta (r - z)))`` where it is to be learnt and
    ``w (1 - sigmoid(beta (z - r)))`` where it is to be avoided, w the weight of its kind; averaged over answers. ``z`` estimates the KL
    divergence of the model from the reference: the mean of r over the step's prompts, each with the answer of another row, not below 0;
    it is taken once per optimizer step, over all micro-batches and ranks, and has no gradient. A step of one row has z = 0.
    """

    config: KTOConfig

    def __init__(self, config: KTOConfig, *, model: LoadedModel, reference: LoadedModel | None = None) -> None:
        super().__init__(config, model=model, reference=reference)
        self.divergence = 0.0

    def before_step(self, batches: Sequence[AnswerBatch]) -> Sequence[AnswerBatch]:
        """Estimate z over the whole step; in validation over the micro-batch."""
        total, count = 0.0, 0
        for batch in batches:
            if batch.mismatched is not None:
                total += float(self._ratio(batch.mismatched).sum())
                count += batch.mismatched.num_answers
        sums: dict[str, float] = {"total": total, "count": float(count)}
        if self.training:  # a validation micro-batch is measured by itself, so that it is on any number of ranks
            sums = self._over_ranks(sums)
        self.divergence = max(0.0, sums["total"] / sums["count"]) if sums["count"] else 0.0
        return batches

    def loss(self, batch: AnswerBatch) -> list[Term]:
        ratio_A = self.answer_logprob(batch).sum_A - self.reference_logprob(batch)
        self._note(self.config.beta * ratio_A.detach(), batch.desirable_A)
        distance_A = self.config.beta * (ratio_A - self.divergence)
        signed_A = torch.where(batch.desirable_A, distance_A, -distance_A)
        weight_A = torch.where(batch.desirable_A, self.config.desirable_weight, self.config.undesirable_weight)
        return [Term("preference", (weight_A * (1 - torch.sigmoid(signed_A))).sum())]

    def weights(self, batch: AnswerBatch) -> dict[str, int]:
        return {"preference": batch.num_answers}

    @torch.no_grad()
    def _ratio(self, batch: AnswerBatch) -> Tensor:
        with self.evaluating():
            return self.answer_logprob(batch).sum_A - self.ask_reference(batch)

    def _note(self, reward_A: Tensor, desirable_A: Tensor) -> None:
        """Note the implied rewards of both kinds of answer, and how often they have the sign they should."""
        right_A = torch.where(desirable_A, reward_A > 0, reward_A < 0)
        self.note("preference_accuracy", right_A.sum(), len(right_A))
        self.note("reward_chosen", reward_A[desirable_A].sum(), int(desirable_A.sum()))
        self.note("reward_rejected", reward_A[~desirable_A].sum(), int((~desirable_A).sum()))
        self.note("divergence", self.divergence, 1)
