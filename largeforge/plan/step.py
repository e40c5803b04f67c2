"""One training step run on fake tensors: the method's own loss, backward pass, clipping and optimizer, with no memory behind them.

Of a deep model three layers are run, the first, one that stands for all in between, and the last; timeline.py puts the others
back. Knows nothing about devices. Shapes: B sequences, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from largeforge.contract import BatchShape, TokenBatch
from largeforge.plan.ledger import KnownLists, Ledger, Segment

if TYPE_CHECKING:
    from largeforge.contract import Method

TRACED_LAYERS = 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Trace:
    """What happened to memory in a step.

    Args:
        segments: in order; those with a layer are of layers 0 .. num_layers - 1 of the traced network.
        gradients: storages that hold gradients of parameters.
        num_layers: layers that were run.
        depth: layers that the model has.
        state_factor: bytes that the optimizer keeps per byte of a trainable parameter.
        num_products: forms of matrix product that one micro-batch takes.
        scratch_factor: bytes that the optimizer's step needs besides, per byte of all trainable parameters.
    """

    segments: list[Segment]
    gradients: frozenset[int]
    num_layers: int
    depth: int
    state_factor: float
    scratch_factor: float
    num_products: int = 0


def trace_step(
    method: Method, *, shapes: Sequence[BatchShape], precision: str, checkpointing: bool, mean_tokens: float = math.inf, whole: bool = False
) -> Trace:
    """Run one step over the micro-batches; the optimizer's state is there already.

    Takes the method apart: its network's parameters are fake afterwards.

    Args:
        method: on the meta device.
        shapes: of the micro-batches of a step, in order. From the second on gradients are there already.
        precision: "fp32", "bf16" or "fp16".
        checkpointing: whether activations are computed again in the backward pass.
        mean_tokens: of an example, where rows are packed.
        whole: run every layer even of a deep model.
    """
    network: Any = method.model.network
    layers = decoder_layers(network)
    depth = len(layers)
    if depth > TRACED_LAYERS and not whole and alike(layers):
        _shorten(network, layers)
        layers = decoder_layers(network)
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ledger = Ledger()
    values = [batch_values(shape, mean_tokens=mean_tokens) for shape in shapes]
    with FakeTensorMode(), ledger, KnownLists(ledger):
        _fake_parameters(network, ledger)
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = _optimizer(method, precision=precision)
        batches = []
        for shape, (ids, positions, supervised) in zip(shapes, values, strict=True):
            fakes = (ledger.with_value(ids), ledger.with_value(positions), ledger.with_value(supervised))
            batches.append(TokenBatch(*fakes, num_examples=shape.num_sequences, num_tokens=shape.num_tokens))
        handles = _mark_layers(layers, ledger)
        gradients: set[int] = set()
        num_products = 0
        state_factor, scratch_factor = _weigh_optimizer(optimizer, learning, ledger)
        # Lightning runs the whole training_step under autocast, so casts of weights are kept until its end
        with _autocast(precision):
            for batch in batches:
                ledger.mark("forward")
                total: Any = sum(term.sum * term.coefficient for term in method.loss(batch))
                ledger.mark("head")
                total.backward()
                del total
                num_products = num_products or len(ledger.products)
            gradients |= {number for p in learning if p.grad is not None and (number := ledger.storage(p.grad)) is not None}
            ledger.mark("step")
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            ledger.mark("end")
        for handle in handles:
            handle.remove()
    # what is dropped when the network goes is no part of the step
    segments = [Segment(segment.name, segment.layer, list(segment.events)) for segment in ledger.segments]
    return Trace(segments, frozenset(gradients), len(layers), depth, state_factor, scratch_factor, num_products)


def settle(method: Method, *, on_cpu: bool) -> None:
    """Answer what a method would find out by comparing numbers in its first step, which fake tensors do not have.

    They would answer yes, at the cost of three forward passes that no later step has. On a GPU packed rows go under
    transformers' block mask.
    """
    head: Any = getattr(method, "head", None)
    if getattr(head, "chunked", False) is None:
        head.chunked = True
    within_examples: Any = getattr(head, "attention", None)
    if hasattr(within_examples, "exact"):
        within_examples.exact = on_cpu


def batch_values(shape: BatchShape, *, mean_tokens: float) -> tuple[Tensor, Tensor, Tensor]:
    """Make ids, positions and mask of a batch of this shape; packed rows hold examples of `mean_tokens`."""
    rows, width = shape.num_sequences, shape.num_positions
    example = max(2, round(min(mean_tokens, width))) if shape.packed else width
    positions_T = torch.arange(width) % example
    # the first token of an example is never supervised
    free = torch.nonzero((positions_T > 0).repeat(rows)).flatten()
    chosen = free[torch.linspace(0, len(free) - 1, min(max(1, shape.num_supervised), len(free))).long()]
    supervised = torch.zeros(rows * width, dtype=torch.bool)
    supervised[chosen] = True
    return torch.zeros(rows, width, dtype=torch.int64), positions_T.repeat(rows, 1), supervised.view(rows, width)


def decoder_layers(network: nn.Module) -> nn.ModuleList:
    """Return the list of blocks: the longest list of modules that the network holds."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def alike(layers: nn.ModuleList) -> bool:
    """Whether all blocks have the same parameters, so that one stands for others."""
    forms = {tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters()) for layer in layers}
    kinds = {getattr(layer, "attention_type", None) for layer in layers}
    return len(forms) == 1 and len(kinds) == 1


# ---- inside ----


def _shorten(network: nn.Module, layers: nn.ModuleList) -> None:
    for module in network.modules():
        for name, child in module.named_children():
            if child is layers:
                setattr(module, name, nn.ModuleList(list(layers)[:TRACED_LAYERS]))
                return


def _fake_parameters(network: nn.Module, ledger: Ledger) -> None:
    """Put fake CPU tensors where meta ones stand: autocast and attention choose by device."""
    made: dict[int, Any] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                made[id(parameter)] = (nn.Parameter(empty, requires_grad=parameter.requires_grad), parameter)
            module._parameters[name] = made[id(parameter)][0]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
    ledger.ignore([fake for fake, _ in made.values()])
    # what was made so far are the weights, which the plan counts from the whole network
    ledger.segments[-1].events.clear()


def _optimizer(method: Method, *, precision: str) -> Any:
    scaler = object() if precision == "fp16" else None
    module: Any = method
    # all that a method asks of Lightning's trainer while it gets ready
    plugin = SimpleNamespace(scaler=scaler, precision="32-true" if precision == "fp32" else f"{precision}-mixed")
    module._trainer = SimpleNamespace(precision_plugin=plugin, world_size=1)
    module.on_train_start()
    made: Any = module.configure_optimizers()
    return made["optimizer"] if isinstance(made, dict) else made


def _autocast(precision: str) -> AbstractContextManager[Any]:
    # fp16 is traced as bf16: the same sizes, and the CPU knows how
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", dtype=torch.bfloat16)


def _mark_layers(layers: nn.ModuleList, ledger: Ledger) -> list[Any]:
    """Mark where each block begins, forward by hooks and backward by the gradient of its output."""
    handles = []
    last = len(layers) - 1

    def begin(index: int) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            if _inside_forward(ledger):
                ledger.mark("forward", index)

        return hook

    def end(index: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if not _inside_forward(ledger):
                return
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: ledger.mark("backward", index))
            if index == last:
                ledger.mark("head")

        return hook

    for index, layer in enumerate(layers):
        handles += [layer.register_forward_pre_hook(begin(index)), layer.register_forward_hook(end(index))]
    return handles


def _inside_forward(ledger: Ledger) -> bool:
    """False in a backward pass, where gradient checkpointing runs blocks forward again."""
    return ledger.segments[-1].name == "forward" and torch.is_grad_enabled()


def _weigh_optimizer(optimizer: Any, learning: list[nn.Parameter], ledger: Ledger) -> tuple[float, float]:
    """Take a first step, which makes the optimizer's state; return its bytes, and those of its scratch, per byte that learns."""
    ledger.mark("weighed")
    for parameter in learning:
        parameter.grad = torch.empty_like(parameter)
    ledger.ignore([parameter.grad for parameter in learning if parameter.grad is not None])
    ledger.mark("weighed")
    optimizer.step()
    weight = sum(parameter.numel() * parameter.element_size() for parameter in learning)
    live = peak = 0
    for event in ledger.segments[-1].events:
        live += event.size_bytes
        peak = max(peak, live)
    optimizer.zero_grad(set_to_none=True)
    return live / weight, (peak - live) / weight
