"""Attention: every kind gives one loss and one gradient, packed or padded; scores of packed rows are not rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from largeforge.batch import TokenBatch
from largeforge.method.attention import CausalAttention
from largeforge.method.head import SupervisedHead

LENGTHS = [[5, 7, 4], [9, 6, 1]]


def network(attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, initializer_range=0.3, attn_implementation=attention, **shape))


def batch(*, packed: bool) -> TokenBatch:
    """The same six examples, packed into two rows, or one to a row and padded."""
    generator = torch.Generator().manual_seed(1)
    examples = [[torch.randint(97, (n,), generator=generator) for n in row] for row in LENGTHS]
    rows = examples if packed else [[one] for row in examples for one in row]
    width = max(sum(len(one) for one in row) for row in rows)
    ids, positions, supervised = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for r, row in enumerate(rows):
        start = 0
        for one in row:
            end = start + len(one)
            ids[r, start:end], supervised[r, start + 1 : end] = one, 1
            positions[r, start:] = torch.arange(width - start)
            start = end
    return TokenBatch(ids, positions, supervised.bool(), num_examples=6, num_tokens=32)


def learnt(head: SupervisedHead, *, packed: bool) -> tuple[float, Tensor]:
    loss = head.nll(batch(packed=packed))
    head.network.zero_grad()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in head.network.parameters()])


@pytest.mark.parametrize("packed", [True, False])
def test_kinds_agree(packed: bool) -> None:
    """Eager beside sdpa, and beside rows laid out as one, which is what flash is given: loss and gradient to 1e-5, packed and padded."""
    expected, gradient = learnt(SupervisedHead(network("eager")), packed=False)
    for attention in ("eager", "sdpa"):
        for as_one in (False, True):
            head = SupervisedHead(network(attention))
            head.as_one = as_one
            loss, found = learnt(head, packed=packed)
            assert loss == pytest.approx(expected, rel=1e-5)
            assert (found - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_kinds_of_gpu(attention: str) -> None:
    """On a GPU: in bf16 for flash, which knows nothing else, so to what bf16 is good for."""
    import importlib.util

    if not torch.cuda.is_available():
        pytest.skip("gpu: no CUDA device")
    flash = attention.startswith("flash")
    if flash and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("gpu: flash-attn is not installed")
    expected, _ = learnt(SupervisedHead(network("eager")), packed=False)
    for packed in (True, False):
        head = SupervisedHead(network(attention).to("cuda", torch.bfloat16 if flash else torch.float32))
        loss = head.nll(batch(packed=packed).to("cuda"))
        assert loss.item() == pytest.approx(expected, rel=2e-2 if flash else 1e-4)


def test_flash_gets_one_row() -> None:
    """transformers keeps examples apart under flash in a batch of one row alone."""
    chosen = network("eager")
    chosen.config._attn_implementation = "flash_attention_2"
    assert SupervisedHead(chosen).as_one and not SupervisedHead(network("sdpa")).as_one


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_are_not_rounded(autocast: bool) -> None:
    """Where scores are large a rounded score is off by per cents: 0.7 % of the output, against 0.2 % that the output's own rounding makes."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 170, 64, generator=generator) * 3 for heads in (9, 3, 3))
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    scores = query.double() @ key.double().repeat_interleave(3, dim=1).transpose(2, 3) / 8
    scores += torch.full((170, 170), float("-inf"), dtype=torch.float64).triu(1)
    exact = torch.softmax(scores, dim=-1) @ value.double().repeat_interleave(3, dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = CausalAttention.apply(query, key, value, 0.125)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() <= 3e-3 * exact.norm()
