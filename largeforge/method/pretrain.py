"""Continued pre-training: learn texts from beginning to end.

Sees token ids and masks; knows nothing about files or devices.
"""

from __future__ import annotations

from largeforge.method.config import PretrainConfig
from largeforge.method.sft import NegativeLogLikelihood


class Pretrain(NegativeLogLikelihood):
    """Continued pre-training (Gururangan et al. 2020, arXiv:2004.10964).

    ``- sum over tokens of log p(token | what stands before it in its text) / number of tokens``.
    """

    config: PretrainConfig
