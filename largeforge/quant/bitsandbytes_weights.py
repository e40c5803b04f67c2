"""What both ways of bitsandbytes share: arguments for loading, and what a quantized linear layer is in a plan. Knows nothing about models.

Only linear layers of the blocks are quantized; embeddings, norms and the output head stay as they are, as transformers leaves them.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from largeforge.errors import MissingExtra

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_installed() -> None:
    """Raise MissingExtra where bitsandbytes is not there; it is imported only when weights are loaded."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", extra="quant")


def packed(network: Any, *, bits: int, block: int, double: bool, compute: torch.dtype) -> Any:
    """Replace the linear layers of a network on the meta device by stand-ins of the size that quantized ones have.

    Args:
        network: on the meta device, without an adapter.
        bits: 4 or 8 a weight.
        block: weights that share a scale; 0 is one scale a row.
        double: whether scales are quantized too.
        compute: dtype of products.
    """
    head = network.get_output_embeddings()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(module, name, PackedLinear(child, bits=bits, block=block, double=double, compute=compute))
    return network


class PackedLinear(nn.Linear):
    """A linear layer whose weights lie packed and are made whole for each product. Computes no numbers: it has the right sizes and dtypes."""

    def __init__(self, layer: nn.Linear, *, bits: int, block: int, double: bool, compute: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.compute = compute
        device = layer.weight.device
        count = layer.weight.numel()
        scales = layer.out_features if block == 0 else -(-count // block)
        # double quantization: a byte a scale, and a float for 256 of them (Dettmers et al. 2023, arXiv:2305.14314, section 3)
        scale_bytes = scales + 4 * -(-scales // 256) if double else 4 * scales
        weight: Any = nn.Parameter(torch.empty(count * bits // 8, dtype=torch.uint8, device=device), requires_grad=False)
        weight.stands_for = count
        kept: Any = nn.Parameter(torch.empty(scale_bytes, dtype=torch.uint8, device=device), requires_grad=False)
        kept.stands_for = 0
        self.weight, self.scales = weight, kept
        self.bias: Any = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self.weight, self.out_features, self.compute)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    """x W^T with W made whole in the forward pass, and again in the backward pass, as bitsandbytes does: it is never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out_features: int, compute: torch.dtype) -> Tensor:
        ctx.weight, ctx.shape, ctx.compute, ctx.dtype = weight, (out_features, x.shape[-1]), compute, x.dtype
        return x.to(compute) @ weight.new_empty(ctx.shape, dtype=compute).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        whole = ctx.weight.new_empty(ctx.shape, dtype=ctx.compute)
        return (grad.to(ctx.compute) @ whole).to(ctx.dtype), None, None, None
