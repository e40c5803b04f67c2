"""Distillation: learn a teacher's distribution over tokens, and its hidden states; from the rows' answers or from the student's own.

Sees token ids and masks; knows nothing about rows, templates or devices. Shapes: B sequences, T positions, N supervised tokens, V vocabulary, K kept tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from largeforge.batch import Annotation, TokenBatch
from largeforge.contract import LoadedModel, Term
from largeforge.errors import InputError
from largeforge.method.base import Method
from largeforge.method.config import DistillConfig
from largeforge.method.divergence import Asked, ChunkedDistillation, Divergence, Kept, Teaching, plain_sums
from largeforge.method.head import SupervisedHead, predicting
from largeforge.method.hidden import Projections, layer_map, watching
from largeforge.method.own_answers import answered
from largeforge.method.vocabulary import check_vocabulary

IDS, LOGPROBS = "teacher_ids", "teacher_logprobs"


@dataclass(frozen=True)
class Stage:
    """What is learnt at a step.

    Args:
        logits: whether the teacher's distribution is.
        likelihood: whether the rows' answers are.
        layers: how many matched layers are, from below.
        assistant: whether the assistant teaches.
        own: whether the answers are the student's own.
    """

    logits: bool
    likelihood: bool
    layers: int
    assistant: bool
    own: bool


class Distill(Method):
    """Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531).

    ``logits_weight * T^2 * D(teacher, student) + nll_weight * NLL + hidden.weight * E``, each a mean over supervised tokens: D is a divergence of the
    distributions softened by the temperature T (divergence.py), NLL the negative log-likelihood of the rows' answers, E the relative squared error
    of projected hidden states (hidden.py). On top of that

    - ``progressive.growth=layers``: in the first `share` of the steps E alone is learnt, of one layer more after each equal part of them;
    - an assistant between both in size teaches in the first `share` of the steps (Mirzadeh et al. 2020, arXiv:1902.03393);
    - ``on_policy.share`` of the steps take answers that the student draws itself (Agarwal et al. 2024, arXiv:2306.13649), without NLL;
    - ``teacher_logits=cached``: the teacher's top_k tokens are asked once and kept.

    Which of these a step is, is a function of its number alone, so that a resumed run goes on alike.

    Args:
        config: weights, divergence, stages.
        model: the student.
        teacher: who is learnt from.
        assistant: who teaches first; None is nobody.

    Raises:
        InputError: no teacher, one of another vocabulary, or a layer that one of them does not have.
    """

    config: DistillConfig

    def __init__(self, config: DistillConfig, *, model: LoadedModel, teacher: LoadedModel | None = None, assistant: LoadedModel | None = None) -> None:
        super().__init__(config, model=model)
        if teacher is None:
            raise InputError("task=distill has no teacher to learn from.", next_step="teacher=<a larger model of the same family>")
        for role, other in (("teacher", teacher), ("assistant", assistant)):
            if other is not None:
                check_vocabulary(model, other, role=role)
                self.hold_frozen(other)
        self.teacher: LoadedModel | None = teacher  # not its network: as an attribute it would become a part of this module
        self.assistant = assistant
        self.teacher_source = teacher.source
        self.heads = {id(one): SupervisedHead(one.network) for one in (teacher, assistant) if one is not None}
        self.divergence = Divergence(config.divergence, config.jsd_beta, config.temperature)
        self.cached = config.teacher_logits == "cached"
        self.projections: Projections | None = None
        if config.hidden.weight:
            widths = (int(one.network.config.hidden_size) for one in (model, teacher))
            if assistant is not None and assistant.network.config.hidden_size != teacher.network.config.hidden_size:
                raise InputError(
                    "Hidden states of an assistant and a teacher of different widths cannot share a projection.",
                    next_step="assistant=null, or method.hidden.weight=0",
                )
            self.layers_of = {id(one): layer_map(config.hidden.layers, model.network, one.network) for one in (teacher, assistant) if one is not None}
            width, teachers_width = widths
            self.projections = Projections(self.layers_of[id(teacher)], width=width, teachers_width=teachers_width)
        # upper layers learn nothing from lower hidden states
        self.skips_parameters = config.progressive.growth == "layers" or config.logits_weight == 0

    # ---- what a step is ----

    def stage(self) -> Stage:
        """What this step learns: a function of its number. Validation measures what is learnt in the end, so that its values can be compared."""
        config, step, total = self.config, self._step, self.optimization.num_steps
        matched = len(self.projections.layers) if self.projections is not None else 0
        early = config.progressive.share * total if self.training else 0.0
        own = self.training and random.Random(f"on-policy {step}").random() < config.on_policy.share
        if config.progressive.growth == "layers" and step < early:
            return Stage(logits=False, likelihood=False, layers=1 + int(step * matched / early), assistant=False, own=own)
        return Stage(config.logits_weight > 0, config.nll_weight > 0 and not own, matched, self.assistant is not None and step < early, own)

    @property
    def _step(self) -> int:
        return 0 if self._trainer is None else int(self._trainer.global_step)

    def before_step(self, batches: Sequence[TokenBatch]) -> Sequence[TokenBatch]:
        """Let the student write the answers, where this step takes its own."""
        if not self.stage().own:
            return batches
        asked = self.config.on_policy
        with self.evaluating():
            return [answered(self.network, batch, max_tokens=asked.max_tokens, temperature=asked.temperature) for batch in batches]

    # ---- the loss ----

    def weights(self, batch: TokenBatch) -> dict[str, int]:
        stage, count = self.stage(), batch.num_supervised
        return {name: count for name, learnt in (("divergence", stage.logits), ("nll", stage.likelihood), ("hidden", stage.layers > 0)) if learnt}

    def loss(self, batch: TokenBatch) -> list[Term]:
        config, stage = self.config, self.stage()
        mine = sorted(self.projections.layers) if self.projections is not None else []
        with watching(self.network, mine, batch.supervised_BT.new_zeros(()) if not mine else predicting(batch.supervised_BT)) as states:
            teaching, theirs = self._taught(batch, stage)
            divergence, nll = self._sums(batch, teaching, stage)
        self.note("nll", nll, batch.num_supervised)
        terms = []
        if stage.logits:
            terms.append(Term("divergence", divergence, coefficient=config.logits_weight))
        if stage.likelihood:
            terms.append(Term("nll", nll, coefficient=config.nll_weight))
        if stage.layers and self.projections is not None:
            terms.append(Term("hidden", self.projections(states, theirs, upto=stage.layers), coefficient=config.hidden.weight))
        return terms

    def _sums(self, batch: TokenBatch, teaching: Teaching, stage: Stage) -> tuple[Tensor, Tensor]:
        """Sums of the divergence and of the negative log-likelihood; one forward pass of the student."""
        targets_N = batch.input_ids_BT[batch.supervised_BT]
        hidden_NH = self.head.states(batch)
        if hidden_NH is None:
            return plain_sums(self.head.logits(batch), targets_N, teaching, self.divergence)
        ours = self.config.logits_weight * stage.logits, self.config.nll_weight * stage.likelihood
        mixed, divergence, nll = ChunkedDistillation.apply(hidden_NH, self.head.head.weight, targets_N, teaching, self.divergence, ours)  # type: ignore[no-untyped-call]
        # both terms are divided by the same number of tokens, so one of them can carry the gradient of both
        if stage.logits:
            return divergence + (mixed - mixed.detach()) / ours[0], nll
        return divergence, nll + (mixed - mixed.detach()) / ours[1] if stage.likelihood else nll

    @torch.no_grad()
    def _taught(self, batch: TokenBatch, stage: Stage) -> tuple[Teaching, dict[int, Tensor]]:
        """What the teacher of this stage says about the batch, and its hidden states."""
        if self.cached:
            counts = batch.num_supervised
            return Kept(batch.annotations[IDS].view(counts, -1), batch.annotations[LOGPROBS].view(counts, -1)), {}
        who = self.assistant if stage.assistant else self.teacher
        assert who is not None
        layers = self.layers_of[id(who)] if self.projections is not None else {}
        with watching(who.network, sorted(set(layers.values())), predicting(batch.supervised_BT)) as states:
            asked = self._ask(who, batch)
        return asked, {mine: states[theirs] for mine, theirs in layers.items()}

    def _ask(self, who: LoadedModel, batch: TokenBatch) -> Asked:
        head = self.heads[id(who)]
        hidden_NH = head.states(batch)
        if hidden_NH is None:
            return Asked(None, None, head.logits(batch)[:, : self._width])
        weight: Any = head.head.weight
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return Asked(hidden_NH, weight[: self._width].to(dtype))

    @property
    def _width(self) -> int:
        """Rows of the student's head."""
        return int(self.network.config.vocab_size)

    # ---- a teacher that is asked once ----

    def annotations(self) -> list[Annotation]:
        """The teacher's most likely tokens at each supervised position, where they are kept."""
        if not self.cached:
            return []
        config, source = self.config, self.teacher_source
        what = f"{source.kind} {source.name} {source.revision} {source.sha256} top {config.top_k} at {config.temperature}"
        return [Annotation(name="the teacher's likeliest tokens", key=what, columns={IDS: "int32", LOGPROBS: "float32"}, compute=self._annotate)]

    @torch.no_grad()
    def _annotate(self, batch: TokenBatch) -> dict[str, list[Any]]:
        assert self.teacher is not None
        batch = batch.to(self.teacher.network.device)
        log_p, _ = self._ask(self.teacher, batch).log_p(slice(None), self.config.temperature)
        top = log_p.topk(min(self.config.top_k, log_p.shape[1]), dim=-1)
        counts = [int(count) for count in batch.supervised_BT.sum(1)]  # one example a sequence
        ids = torch.split(top.indices.int().cpu(), counts)
        kept = torch.split(top.values.float().cpu(), counts)
        return {IDS: [one.flatten().numpy() for one in ids], LOGPROBS: [one.flatten().numpy() for one in kept]}

    def on_fit_start(self) -> None:
        if self.cached and self.teacher is not None:  # it has said all that it is asked
            self.let_go(self.teacher.network)
            self.teacher = None
            self.heads.clear()
        super().on_fit_start()
