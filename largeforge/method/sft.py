"""SFT: learn the assistant's turns by their likelihood.

Sees token ids and masks; knows nothing about rows, templates or devices.
"""

from __future__ import annotations

from largeforge.batch import TokenBatch
from largeforge.contract import Term
from largeforge.method.base import Method
from largeforge.method.config import SFTConfig


class NegativeLogLikelihood(Method):
    """The mean negative log-likelihood of supervised tokens."""

    def loss(self, batch: TokenBatch) -> list[Term]:
        return [Term("nll", self.head.nll(batch))]

    def weights(self, batch: TokenBatch) -> dict[str, int]:
        return {"nll": batch.num_supervised}


class SFT(NegativeLogLikelihood):
    """Supervised fine-tuning (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).

    ``- sum over supervised tokens of log p(token | what stands before it in its example) / number of supervised tokens``.
    """

    config: SFTConfig
