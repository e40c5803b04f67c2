"""Log-probabilities of single tokens: made in chunks, they and their gradients are those of all logits at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from largeforge.contract import LoadedModel
from largeforge.method import likelihood
from largeforge.method.head import SupervisedHead
from largeforge.method.likelihood import ChunkedLogprobs, example_of_token
from tests.method.conftest import Row, packed, padded


@pytest.mark.parametrize("learns", ["hidden", "weight", "both"])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, learns: str) -> None:
    monkeypatch.setattr(likelihood, "CHUNK", 5)
    torch.manual_seed(0)
    hidden, weight = (torch.randn(17, 8, requires_grad=learns != "weight"), torch.randn(31, 8, requires_grad=learns != "hidden"))
    targets, scale = torch.randint(0, 31, (17,)), torch.randn(17)
    found = ChunkedLogprobs.apply(hidden, weight, targets)
    wanted = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(found, wanted, atol=1e-6)
    leaves = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    for mine, theirs in zip(torch.autograd.grad((found * scale).sum(), leaves), torch.autograd.grad((wanted * scale).sum(), leaves), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_no_tokens_have_no_log_probability_and_a_gradient_of_zeros() -> None:
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    ChunkedLogprobs.apply(hidden, weight, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert weight.grad is not None and float(weight.grad.abs().max()) == 0.0


@pytest.mark.parametrize("lay", [padded, packed])
def test_the_sum_is_the_likelihood(tiny: Callable[..., LoadedModel], rows: list[Row], lay: Callable[..., object]) -> None:
    head = SupervisedHead(tiny().network)
    batch = lay(rows[:6])
    assert -head.logprobs(batch).sum().item() == pytest.approx(head.nll(batch).item(), rel=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("lay", [padded, packed])
def test_each_token_belongs_to_its_example(rows: list[Row], lay: Callable[..., object]) -> None:
    wanted = [number for number, (_, mask) in enumerate(rows[:6]) for flag in mask if flag]
    assert example_of_token(lay(rows[:6])).tolist() == wanted  # type: ignore[arg-type]
