"""Attention within examples: packed rows on a CPU, example by example, instead of under a mask over the whole row.

A mask makes a CPU score every token against the whole packed row, three quarters of it for nothing; one causal call per
example does the same sums on what counts. Knows token positions only. Shapes: B sequences, T positions, A query heads, G key heads, D head width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from largeforge.method.sharding import is_sharded

NAME = "largeforge_within_examples"
# Longest example whose scores are held whole, for one layer at a time: 9 heads of 1,024 tokens take 38 MB in fp32. Measured on packed
# rows of 512 (three examples, 9 heads, bf16, one thread), forward and backward: 13.6 ms, against 12.3 where scores are rounded to bf16;
# on another machine sdpa a part took 1.7 times as long, and a mask 2.5 times.
LONGEST = 1024
_active = threading.local()


class ExampleAttention:
    """Switches a network's attention for the time of one forward pass.

    Used where it is exact: on a CPU, for a network that runs on sdpa and whose outputs on a small packed row are the same both
    ways (a sliding window, soft-capping or positions of its own kind fail that comparison), and without gradient checkpointing,
    which would call the attention again after the pass. Everywhere else transformers' own block mask does the work.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.config: Any = getattr(network, "config", None)
        self.exact: bool | None = None

    @contextmanager
    def within(self, position_ids_BT: Tensor) -> Iterator[None]:
        """Keep examples apart where positions start again, for forward passes inside the block."""
        spans = examples(position_ids_BT)
        if len(spans) == len(position_ids_BT) or not self._usable(position_ids_BT):
            yield
            return
        with self._switched(spans):
            yield

    @contextmanager
    def _switched(self, spans: list[tuple[int, int, int]]) -> Iterator[None]:
        before = self.config._attn_implementation
        self.config._attn_implementation = NAME
        _active.spans = spans
        try:
            yield
        finally:
            self.config._attn_implementation = before
            _active.spans = None

    def _usable(self, position_ids_BT: Tensor) -> bool:
        if position_ids_BT.device.type != "cpu" or self.config is None or self.config._attn_implementation != "sdpa":
            return False
        # trying a sharded network out takes every process, and the others' rows may give them no reason to
        if getattr(self.network, "is_gradient_checkpointing", False) or is_sharded(self.network):
            return False
        if self.exact is None:
            self.exact = self._same_both_ways(position_ids_BT.shape[1])
        return self.exact

    @torch.no_grad()
    def _same_both_ways(self, width: int) -> bool:
        """Compare the outputs on one row of two examples, as wide as the batch, so that a sliding window would show."""
        half = width // 2
        positions = torch.cat([torch.arange(half), torch.arange(width - half)])[None]
        ids = positions % self.network.get_input_embeddings().weight.shape[0]
        training = [module for module in self.network.modules() if module.training]
        self.network.eval()
        try:
            masked = self.network(input_ids=ids, position_ids=positions, use_cache=False).logits[:, -1].float()
            with self._switched(examples(positions)):
                apart = self.network(input_ids=ids, position_ids=positions, use_cache=False).logits[:, -1].float()
        finally:
            for module in training:
                module.training = True
        tolerance = 1e-4 if masked.dtype == self.network.dtype == torch.float32 else 5e-2
        return bool((masked - apart).abs().max() <= tolerance * masked.abs().max())


def examples(position_ids_BT: Tensor) -> list[tuple[int, int, int]]:
    """Where each example lies: (row, first position, end), row after row. Padding goes on counting, so it counts as its row's last example."""
    num_rows, width = position_ids_BT.shape
    starts_BT = position_ids_BT == 0
    starts_BT[:, 0] = True
    rows, starts = (indices.tolist() for indices in torch.nonzero(starts_BT, as_tuple=True))
    ends = [*starts[1:], 0]
    return [(row, start, end if end > start else width) for row, start, end in zip(rows, starts, ends, strict=True)]


def attend(
    module: Any, query_BATD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, attention_mask: Any, dropout: float = 0.0, scaling: float | None = None, **rest: Any
) -> tuple[Tensor, None]:
    """Causal attention, one example at a time; the form that transformers' attention functions have."""
    scale = query_BATD.shape[-1] ** -0.5 if scaling is None else scaling
    widths: list[list[int]] = [[] for _ in range(query_BATD.shape[0])]
    for row, start, end in _active.spans:
        widths[row].append(end - start)
    rows = []
    # split rather than slices: its backward pass puts the parts together once, where every slice would add a whole tensor
    for width, query, key, value in zip(widths, query_BATD.split(1), key_BGTD.split(1), value_BGTD.split(1), strict=True):
        parts = [_example(q, k, v, dropout, scale) for q, k, v in zip(query.split(width, 2), key.split(width, 2), value.split(width, 2), strict=True)]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def _example(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float) -> Tensor:
    if dropout == 0.0 and query.shape[2] <= LONGEST:
        return CausalAttention.apply(query, key, value, scale)  # type: ignore[no-any-return, no-untyped-call]
    grouped = query.shape[1] != key.shape[1]
    return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale, is_causal=True, enable_gqa=grouped)


class CausalAttention(torch.autograd.Function):
    """softmax(scale * Q K^T, causal) V of one short example, by plain matrix products; probabilities are made again for the gradient.

    Heads that share a key are stacked, so that nothing is repeated. Scores and softmax are fp32: scores of 10 that are
    rounded to bf16 are off by 0.03, and so is every probability by 3 %. Probabilities then have the inputs' dtype.
    """

    @staticmethod
    def forward(ctx: Any, query_1ATD: Tensor, key_1GTD: Tensor, value_1GTD: Tensor, scale: float) -> Tensor:
        _, heads, width, depth = query_1ATD.shape
        groups = key_1GTD.shape[1]
        query = query_1ATD.reshape(groups, -1, depth)
        output = (_probabilities(query, key_1GTD[0], width, scale) @ value_1GTD[0]).view(1, heads, width, depth)
        ctx.save_for_backward(query, key_1GTD, value_1GTD, output)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key_1GTD, value_1GTD, output_1ATD = ctx.saved_tensors
        _, heads, width, depth = output_1ATD.shape
        groups = key_1GTD.shape[1]
        key, value, output = key_1GTD[0], value_1GTD[0], output_1ATD.view(groups, -1, depth)
        grad = grads[0].reshape(groups, -1, depth)
        weights = _probabilities(query, key, width, ctx.scale)
        grad_value = weights.transpose(1, 2) @ grad
        grad_scores = grad @ value.transpose(1, 2)
        grad_scores.sub_((grad * output).sum(dim=-1, keepdim=True)).mul_(weights).mul_(ctx.scale)
        grad_query = (grad_scores @ key).view(1, heads, width, depth)
        return grad_query, (grad_scores.transpose(1, 2) @ query)[None], grad_value[None], None


def _probabilities(query: Tensor, key: Tensor, width: int, scale: float) -> Tensor:
    """Return softmax of causal scores, [groups, heads of a group * width, width]."""
    with torch.autocast(query.device.type, enabled=False):  # it would round what is asked in fp32
        scores = (query.float() @ key.float().transpose(1, 2)).mul_(scale).view(-1, width, width)
        scores += torch.full((width, width), float("-inf"), device=query.device).triu_(1)
        return torch.softmax(scores, dim=-1).to(query.dtype).view(len(key), -1, width)


AttentionInterface.register(NAME, attend)
