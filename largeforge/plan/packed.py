"""Weights in few bits, as a plan sees them: what they take, and what a layer makes of them while it computes.

Stands in for bitsandbytes' layers, whose kernels take no fake tensors; knows nothing about what is learnt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from largeforge.plan.step import decoder_layers

BLOCK_4BIT = 64  # weights that share a scale (Dettmers et al. 2023, arXiv:2305.14314, section 3)
SCALES_4BIT = 256  # scales that share a scale of their own, where scales are quantized too


class PackedLinear(nn.Linear):
    """A linear layer over packed weights: unpacked for the forward pass and once more for the backward, let go after each.

    Args:
        linear: the layer it stands in for, on the meta device; its weight does not learn.
        bits: 4 (NF4: half a byte a weight and a scale for every 64) or 8 (LLM.int8: one byte and a scale for every row; Dettmers et al.
            2022, arXiv:2208.07339).
        double_quant: whether the scales of NF4 take a byte each rather than four.
    """

    def __init__(self, linear: nn.Linear, *, bits: int, double_quant: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        numbers = linear.weight.numel()
        scales = scale_bytes(numbers, linear.out_features, bits=bits, double_quant=double_quant)
        self.weight = _bytes(-(-numbers * bits // 8))
        self.scales = _bytes(scales)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        with torch.autocast(device, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            made: Tensor = _Product.apply(input.to(dtype), self.weight, bias, (self.out_features, self.in_features), self.bits)  # type: ignore[no-untyped-call]
        return made


class _Product(torch.autograd.Function):
    """What bitsandbytes' MatMul4Bit and MatMul8bitLt do to memory: the packed weight is kept, the unpacked one is not."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, packed: Tensor, bias: Tensor | None, shape: tuple[int, int], bits: int) -> Tensor:
        ctx.shape, ctx.bits = shape, bits
        ctx.save_for_backward(packed, *([input] if bits == 8 else []))
        if bits == 8:
            rows = torch.empty(input.shape, dtype=torch.int8, device=input.device)  # the input is quantized, the weight is not unpacked
            output = torch.empty((*input.shape[:-1], shape[0]), dtype=torch.int32, device=input.device)
            del rows
            return output.to(input.dtype) if bias is None else output.to(input.dtype) + bias
        return functional.linear(input, torch.empty(shape, dtype=input.dtype, device=input.device), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        return grads[0] @ torch.empty(ctx.shape, dtype=grads[0].dtype, device=grads[0].device), None, None, None, None


def scale_bytes(numbers: int, rows: int, *, bits: int, double_quant: bool) -> int:
    """Bytes of the scales of a packed weight."""
    if bits == 8:
        return 4 * rows
    blocks = -(-numbers // BLOCK_4BIT)
    return blocks + 4 * -(-blocks // SCALES_4BIT) if double_quant else 4 * blocks


def pack(network: Any, *, bits: int, double_quant: bool) -> int:
    """Put packed layers where frozen linear ones stand in a network's blocks, and return how many; embedding and head stay as they are.

    Args:
        network: on the meta device, adapted or not.
        bits: 4 or 8.
        double_quant: of NF4.
    """
    count = 0
    for layer in decoder_layers(network):
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear and not child.weight.requires_grad:
                    setattr(module, name, PackedLinear(child, bits=bits, double_quant=double_quant))
                    count += 1
    return count


def _bytes(count: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(count, dtype=torch.uint8, device="meta"), requires_grad=False)
