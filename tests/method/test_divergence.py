"""Divergences: numbers worked out by hand, TRL's, and chunks that change nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from largeforge.method import divergence as module
from largeforge.method.divergence import Asked, ChunkedDistillation, Divergence, Kept, plain_sums

KINDS = ["forward_kl", "reverse_kl", "jsd"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("forward_kl", 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)),
        ("reverse_kl", 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)),
        # m = 0.4 * (1/2, 1/2) + 0.6 * (1/4, 3/4) = (0.35, 0.65)
        ("jsd", 0.4 * (0.5 * math.log(0.5 / 0.35) + 0.5 * math.log(0.5 / 0.65)) + 0.6 * (0.25 * math.log(0.25 / 0.35) + 0.75 * math.log(0.75 / 0.65))),
    ],
)
def test_by_hand(kind: Any, expected: float) -> None:
    """Proves SYS-F-014: a teacher of (1/2, 1/2) and a student of (1/4, 3/4)."""
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    value, _ = Divergence(kind, beta=0.4)(p, q)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_tail_is_one_outcome() -> None:
    """A teacher of (0.5, 0.3, 0.2) of which one token is kept, and a student of (0.6, 0.3, 0.1): forward KL of (0.5, 0.5) from (0.6, 0.4)."""
    student = torch.tensor([[0.6, 0.3, 0.1]]).log()
    kept = Kept(torch.tensor([[0]], dtype=torch.int32), torch.tensor([[0.5]]).log())
    value, _ = plain_sums(student, torch.tensor([0]), kept, Divergence("forward_kl"))
    assert value.item() == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4), rel=1e-6)


def made(num_tokens: int = 11, vocabulary: int = 31) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(num_tokens, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    return hidden, weight, torch.randint(0, vocabulary, (num_tokens,)), torch.randn(num_tokens, 6), torch.randn(vocabulary, 6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0, 5, 31])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, kind: Any, temperature: float, kept: int) -> None:
    """Value and gradient are those of the formula over all logits at once, by autograd; a teacher in the process and one of which some tokens were kept."""
    monkeypatch.setattr(module, "CHUNK", 4)
    hidden, weight, targets, teacher_hidden, teacher_weight = made()
    rule = Divergence(kind, 0.3, temperature)
    teaching: Any = Asked(teacher_hidden, teacher_weight)
    if kept:
        top = teaching.log_p(slice(None), temperature)[0].topk(kept)
        teaching = Kept(top.indices.int(), top.values)
    mixed, *found = ChunkedDistillation.apply(hidden, weight, targets, teaching, rule, (0.7, 0.2))
    plain = plain_sums(hidden @ weight.T, targets, teaching, rule)
    for mine, theirs in zip(found, plain, strict=True):
        assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    wanted = 0.7 * plain[0] + 0.2 * plain[1]
    assert mixed.item() == pytest.approx(wanted.item(), rel=1e-5)
    for mine, theirs in zip(torch.autograd.grad(mixed, [hidden, weight]), torch.autograd.grad(wanted, [hidden, weight]), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5), float((mine - theirs).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_kept_is_a_teacher_that_is_asked(kind: Any) -> None:
    hidden, weight, targets, teacher_hidden, teacher_weight = made()
    asked = Asked(teacher_hidden, teacher_weight)
    top = asked.log_p(slice(None), 1.0)[0].topk(31)
    values = [plain_sums(hidden @ weight.T, targets, teaching, Divergence(kind))[0].item() for teaching in (asked, Kept(top.indices.int(), top.values))]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    fewer = Kept(top.indices[:, :5].int(), top.values[:, :5])
    assert plain_sums(hidden @ weight.T, targets, fewer, Divergence(kind))[0].item() < values[0]


def test_only_what_counts_has_a_gradient() -> None:
    hidden, weight, targets, teacher_hidden, teacher_weight = made()
    asked = Asked(teacher_hidden, teacher_weight)
    mixed, value, nll = ChunkedDistillation.apply(hidden, weight, targets, asked, Divergence("forward_kl"), (1.0, 0.0))
    assert not value.requires_grad and not nll.requires_grad and nll.item() > 0
    alone = plain_sums(hidden @ weight.T, targets, asked, Divergence("forward_kl"))[0]
    for mine, theirs in zip(torch.autograd.grad(mixed, [hidden, weight]), torch.autograd.grad(alone, [hidden, weight]), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_padded_vocabulary_is_compared_where_both_speak() -> None:
    """A student with four more rows in its head than the teacher: they are left out of its distribution and get no gradient."""
    hidden, weight, targets, teacher_hidden, teacher_weight = made()
    asked = Asked(teacher_hidden, teacher_weight[:27])
    found = ChunkedDistillation.apply(hidden, weight, targets, asked, Divergence("jsd"), (1.0, 0.0))[0]
    wanted = plain_sums((hidden @ weight.T)[:, :27], targets.clamp(max=26), asked, Divergence("jsd"))[0]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert float(torch.autograd.grad(found, weight)[0][27:].abs().max()) == 0.0


@pytest.mark.peer
@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)])
def test_equals_trl(monkeypatch: pytest.MonkeyPatch, kind: Any, beta: float) -> None:
    """TRL's generalized JSD: its beta 0 is forward KL, its beta 1 reverse KL."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    hidden, weight, targets, teacher_hidden, teacher_weight = made()
    student, teacher = (hidden @ weight.T)[None], (teacher_hidden @ teacher_weight.T)[None]
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels=targets[None], beta=beta)
    mine = ChunkedDistillation.apply(hidden, weight, targets, Asked(teacher_hidden, teacher_weight), Divergence(kind, beta), (1.0, 0.0))[0] / len(targets)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    left, right = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (mine, theirs))
    assert torch.allclose(left, right, atol=1e-6)
