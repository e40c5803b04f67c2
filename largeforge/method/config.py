"""Typed configs of the group method; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from largeforge.batch import Learns
from largeforge.config.typed import Fraction, NonNegativeFloat, PartConfig, PositiveFloat, PositiveInt, Typed, real_number

Smoothing = Annotated[float, BeforeValidator(real_number), Field(ge=0, lt=0.5)]


class MethodConfig(PartConfig):
    """What every method has."""

    learns: ClassVar[Learns] = "chat"
    """What rows it learns from."""

    learning_rate: PositiveFloat = Field(description="Peak learning rate, reached after the warm-up.")
    train_on: Literal["answer", "all"] = Field(description="answer: the assistant's turns; all: every token.")


class SupervisedConfig(MethodConfig):
    """A method of task=sft."""


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning: the mean negative log-likelihood of supervised tokens."""


class TextMethodConfig(MethodConfig):
    """A method of task=pretrain."""

    learns: ClassVar[Learns] = "text"


class PretrainConfig(TextMethodConfig):
    """Continued pre-training: the mean negative log-likelihood of every token."""

    train_on: Literal["all"] = Field(description="all: a text is learnt from beginning to end.")


class PreferenceMethodConfig(MethodConfig):
    """A method that learns from answers of which some are preferred."""

    learns: ClassVar[Learns] = "pairs"


class ReferencedConfig(PreferenceMethodConfig):
    """A method that compares with a reference model."""

    beta: PositiveFloat = Field(description="How strongly the model is held to the reference: the temperature of the implied reward.")


class UnreferencedConfig(PreferenceMethodConfig):
    """A method that needs no reference model."""


class DPOConfig(ReferencedConfig):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290)."""

    loss: Literal["sigmoid", "hinge", "ipo"] = Field(description="Loss on the margin: sigmoid (DPO), hinge (SLiC), ipo.")
    label_smoothing: Smoothing = Field(description="Share of the pairs whose preference is taken to be wrong (conservative DPO); sigmoid only.")
    reference_logprobs: Literal["online", "cached"] = Field(
        description="online asks the reference in every step; cached asks it once before training and keeps the answers on disk."
    )


class KTOConfig(ReferencedConfig):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    learns: ClassVar[Learns] = "labelled"

    train_on: Literal["answer"] = Field(description="answer: the judged answer.")
    desirable_weight: NonNegativeFloat = Field(description="Weight of answers to learn; raise it where there are few of them.")
    undesirable_weight: NonNegativeFloat = Field(description="Weight of answers to avoid.")


class ORPOConfig(UnreferencedConfig):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691)."""

    beta: NonNegativeFloat = Field(description="Weight of the odds-ratio term (lambda in the paper); 0 is plain SFT on the chosen answers.")


class SimPOConfig(UnreferencedConfig):
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734)."""

    beta: PositiveFloat = Field(description="Scale of the length-normalised log-probabilities.")
    margin: NonNegativeFloat = Field(description="By how much the chosen answer's reward shall exceed the rejected one's (gamma in the paper).")


class HiddenConfig(Typed):
    """Matching of hidden states."""

    weight: NonNegativeFloat = Field(description="Weight of the term; 0 matches none.")
    layers: Literal["even"] | dict[int, int] = Field(
        description="Which layer of the student (counted from 1) matches which of the teacher, as {2: 4, 4: 8}; even spreads the student's over the teacher's."
    )


class ProgressiveConfig(Typed):
    """Distillation in stages."""

    growth: Literal["none", "layers"] = Field(
        description="layers: at first only the lowest layers are matched and learn, then more, at last all and the logits."
    )
    share: Fraction = Field(description="Share of the steps in which layers grow, or in which the assistant teaches.")


class OnPolicyConfig(Typed):
    """Learning from the student's own answers."""

    share: Fraction = Field(description="Share of the steps whose answers the student writes itself (lambda in GKD); 0 takes the rows' answers.")
    max_tokens: PositiveInt = Field(description="Longest answer that is written.")
    temperature: PositiveFloat = Field(description="Temperature at which it is drawn.")


class DistillConfig(MethodConfig):
    """Distillation (Hinton et al. 2015, arXiv:1503.02531): learn a teacher's distribution over tokens."""

    temperature: PositiveFloat = Field(description="Both distributions are softened by it; the term is multiplied by its square.")
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        description="forward_kl covers what the teacher may say, reverse_kl seeks what it says most."
    )
    jsd_beta: Annotated[float, BeforeValidator(real_number), Field(gt=0, lt=1)] = Field(description="Share of the teacher in the mixture of jsd.")
    logits_weight: NonNegativeFloat = Field(description="Weight of the divergence from the teacher.")
    nll_weight: NonNegativeFloat = Field(description="Weight of the negative log-likelihood of the rows' answers.")
    teacher_logits: Literal["online", "cached"] = Field(
        description="online asks the teacher in every step; cached asks it once and keeps its top_k logits on disk."
    )
    top_k: PositiveInt = Field(description="Logits a token that are kept, where they are cached.")
    hidden: HiddenConfig = Field(description="Matching of hidden states through learned projections.")
    progressive: ProgressiveConfig = Field(description="Learning in stages.")
    on_policy: OnPolicyConfig = Field(description="Learning from the student's own answers.")
