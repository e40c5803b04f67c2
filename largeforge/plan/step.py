"""One training step run on fake tensors: the method's own loss, backward pass, clipping and optimizer, with no memory behind them.

Of a deep model three layers are run, the first, one that stands for all in between, and the last; timeline.py puts the others
back. Second networks, which a method asks and which do not learn, are shortened alike. Knows nothing about devices.
Shapes: B sequences, T positions, A answers, N supervised tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from largeforge.batch import AnswerBatch, BatchShape, Learns, TokenBatch
from largeforge.plan.ledger import KnownLists, Ledger, Segment

if TYPE_CHECKING:
    from largeforge.contract import Method

TRACED_LAYERS = 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Trace:
    """What happened to memory in a step.

    Args:
        segments: in order; those with a layer are of layers 0 .. num_layers - 1 of a traced network.
        gradients: storages that hold gradients of parameters.
        num_layers: layers that were run.
        depth: layers that the model has.
        state_factor: bytes that the optimizer keeps per byte of a trainable parameter.
        scratch_factor: bytes that the optimizer's step needs besides, per byte of all trainable parameters.
        num_products: forms of matrix product that one micro-batch takes.
        others: (num_layers, depth) of each second network.
        scratch_bytes: bytes that the optimizer's step needs besides where it takes one parameter after another.
    """

    segments: list[Segment]
    gradients: frozenset[int]
    num_layers: int
    depth: int
    state_factor: float
    scratch_factor: float
    num_products: int = 0
    others: tuple[tuple[int, int], ...] = ()
    scratch_bytes: int = 0


def trace_step(
    method: Method,
    *,
    shapes: Sequence[BatchShape],
    precision: str,
    checkpointing: bool,
    mean_tokens: float = math.inf,
    whole: bool = False,
    learns: Learns = "chat",
    others: Sequence[Any] = (),
    before: bool = False,
    on_gpu: bool = False,
) -> Trace:
    """Run one step over the micro-batches; the optimizer's state is there already.

    Takes the method apart: the parameters of its networks are fake afterwards.

    Args:
        method: on the meta device.
        shapes: of the micro-batches of a step, in order. From the second on gradients are there already.
        precision: "fp32", "bf16" or "fp16".
        checkpointing: whether activations are computed again in the backward pass.
        mean_tokens: of an example, where rows are packed.
        whole: run every layer even of a deep model.
        learns: what a micro-batch is made for.
        others: second networks that are there in training.
        before: run what the method computes about rows before training instead: no gradient, no optimizer.
        on_gpu: whether the optimizer works as on a GPU, on many parameters at once.
    """
    networks: list[Any] = [method.model.network, *others]
    depths = [depth_of(network) for network in networks]
    if not whole:
        for network in networks:
            _shorten(network)
    blocks = [decoder_layers(network) for network in networks]
    if checkpointing and not before:
        networks[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ledger = Ledger()
    values = [Values.of(shape, mean_tokens=mean_tokens, pairs=learns == "pairs") for shape in shapes]
    with _as_deep_as_run(networks), FakeTensorMode(), ledger, KnownLists(ledger):
        module: Any = method
        _fake_parameters([module, *networks], ledger)
        batches = [_batch(ledger, shape, known, learns=learns, method=method, before=before) for shape, known in zip(shapes, values, strict=True)]
        handles = [handle for number, layers in enumerate(blocks) for handle in _mark_layers(networks[number], layers, ledger, number)]
        traced = _ask(method, batches, ledger, precision) if before else _learn(method, batches, ledger, precision, on_gpu=on_gpu)
        for handle in handles:
            handle.remove()
    # what is dropped when the networks go is no part of the step
    segments = [Segment(segment.name, segment.layer, list(segment.events), segment.network) for segment in ledger.segments]
    sizes = [(len(layers), depth) for layers, depth in zip(blocks, depths, strict=True)]
    return replace(traced, segments=segments, num_layers=sizes[0][0], depth=sizes[0][1], others=tuple(sizes[1:]))


def _learn(method: Method, batches: list[Any], ledger: Ledger, precision: str, *, on_gpu: bool) -> Trace:
    """Take a step over the batches."""
    module: Any = method
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = _optimizer(method, precision=precision, on_gpu=on_gpu)
    gradients: set[int] = set()
    num_products = 0
    weighed = _weigh_optimizer(optimizer, learning, ledger)
    with _autocast(precision):
        ledger.mark("forward")
        ledger.forward = True
        batches = list(module.before_step(batches))
        for batch in batches:
            ledger.mark("forward")
            ledger.forward = True
            total: Any = sum(term.sum * term.coefficient for term in method.loss(batch))
            ledger.mark("head")
            ledger.forward = False
            total.backward()
            del total
            num_products = num_products or len(ledger.products)
        gradients |= {number for p in learning if p.grad is not None and (number := ledger.storage(p.grad)) is not None}
        ledger.mark("step")
        torch.nn.utils.clip_grad_norm_([parameter for parameter in learning if parameter.grad is not None], 1.0)
        optimizer.step()
        ledger.mark("end")
    at_once = method.optimization.optimizer != "adafactor"  # which takes one parameter after another
    weight = sum(parameter.numel() * parameter.element_size() for parameter in learning)
    state, scratch = weighed
    return Trace([], frozenset(gradients), 0, 0, state / weight, scratch / weight if at_once else 0.0, num_products, scratch_bytes=0 if at_once else scratch)


def _ask(method: Method, batches: list[Any], ledger: Ledger, precision: str) -> Trace:
    """Compute what the method wants to know about rows before training."""
    with torch.no_grad(), _autocast(precision):
        for batch in batches:
            for annotation in method.annotations():
                ledger.mark("forward")
                ledger.forward = True
                annotation.compute(batch)
                ledger.mark("end")
    return Trace([], frozenset(), 0, 0, 0.0, 0.0, len(ledger.products))


def settle(method: Method, *, on_cpu: bool) -> None:
    """Answer what a method would find out by comparing numbers in its first step, which fake tensors do not have.

    They would answer yes, at the cost of three forward passes that no later step has. On a GPU packed rows go under
    transformers' block mask.
    """
    asked: Any = method
    heads = [getattr(asked, "head", None), getattr(asked, "reference_head", None), *getattr(asked, "heads", {}).values()]
    for head in heads:
        if getattr(head, "chunked", False) is None:
            head.chunked = True
        within_examples: Any = getattr(head, "attention", None)
        if hasattr(within_examples, "exact"):
            within_examples.exact = on_cpu


@dataclass(frozen=True)
class Values:
    """What a micro-batch holds besides its shape.

    Args:
        ids_BT, positions_BT, supervised_BT: of tokens.
        answer_N: which example each supervised token belongs to.
        num_answers: examples; of pairs an even number.
        desirable_A: every other answer.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    supervised_BT: Tensor
    answer_N: Tensor
    num_answers: int
    desirable_A: Tensor

    @classmethod
    def of(cls, shape: BatchShape, *, mean_tokens: float, pairs: bool) -> Values:
        """Make values of a shape; packed rows hold examples of `mean_tokens`."""
        ids_BT, positions_BT, supervised_BT = batch_values(shape, mean_tokens=mean_tokens)
        starts_BT = positions_BT == 0
        starts_BT[:, 0] = True
        example = starts_BT.flatten().long().cumsum(0) - 1
        count = int(example[-1]) + 1
        count += count % 2 if pairs else 0
        return cls(ids_BT, positions_BT, supervised_BT, example[supervised_BT.flatten()], count, torch.arange(count) % 2 == 0)


def _batch(ledger: Ledger, shape: BatchShape, values: Values, *, learns: Learns, method: Method, before: bool) -> Any:
    """Make a micro-batch of the kind that the method learns from, values known; inside a FakeTensorMode."""
    answers = learns in ("pairs", "labelled")
    annotations: dict[str, Tensor] = {}
    if not before:
        # of an answer one value; of text as many for each supervised token as the method keeps
        each = values.num_answers if answers else len(values.answer_N) * int(getattr(getattr(method, "config", None), "top_k", 1))
        for annotation in method.annotations():
            annotations |= {name: torch.empty(each, dtype=getattr(torch, dtype), device="cpu") for name, dtype in annotation.columns.items()}

    def tokens(kept: dict[str, Tensor]) -> TokenBatch:
        ids, positions, supervised = (ledger.with_value(real) for real in (values.ids_BT, values.positions_BT, values.supervised_BT))
        return TokenBatch(ids, positions, supervised, num_examples=values.num_answers, num_tokens=shape.num_tokens, annotations=kept)

    if not answers:
        return tokens(annotations)

    def judged(kept: dict[str, Tensor], mismatched: AnswerBatch | None) -> AnswerBatch:
        return AnswerBatch(tokens(kept), ledger.with_value(values.answer_N), ledger.with_value(values.desirable_A), mismatched)

    return judged(annotations, judged({}, None) if learns == "labelled" else None)


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


def depth_of(network: Any) -> int:
    """How many blocks the network has, or had before a trace shortened it."""
    layers = decoder_layers(network)
    return max(len(layers), int(getattr(getattr(network, "config", None), "num_hidden_layers", 0)))


def alike(layers: nn.ModuleList) -> bool:
    """Whether all blocks have the same parameters, so that one stands for others."""
    forms = {tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters()) for layer in layers}
    kinds = {getattr(layer, "attention_type", None) for layer in layers}
    return len(forms) == 1 and len(kinds) == 1


# ---- inside ----


def _shorten(network: nn.Module) -> None:
    """Keep three layers of a network that has more, where one stands for others."""
    layers = decoder_layers(network)
    if len(layers) <= TRACED_LAYERS or not alike(layers):
        return
    for module in network.modules():
        for name, child in module.named_children():
            if child is layers:
                setattr(module, name, nn.ModuleList(list(layers)[:TRACED_LAYERS]))
                return


@contextmanager
def _as_deep_as_run(networks: Sequence[Any]) -> Iterator[None]:
    """Let configs say how many layers are there while the block runs."""
    configs = [network.config for network in networks]
    depths = [config.num_hidden_layers for config in configs]
    for network, config in zip(networks, configs, strict=True):
        config.num_hidden_layers = len(decoder_layers(network))
    try:
        yield
    finally:
        for config, depth in zip(configs, depths, strict=True):
            config.num_hidden_layers = depth


def _fake_parameters(modules: Sequence[nn.Module], ledger: Ledger) -> None:
    """Put fake CPU tensors where meta ones stand: autocast and attention choose by device."""
    made: dict[int, Any] = {}
    for module in (part for one in modules for part in one.modules()):
        for name, parameter in module._parameters.items():
            if parameter is None or any(parameter is fake for fake, _ in made.values()):
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


def _optimizer(method: Method, *, precision: str, on_gpu: bool) -> Any:
    scaler = object() if precision == "fp16" else None
    module: Any = method
    # all that a method asks of Lightning's trainer, which does not train here
    plugin = SimpleNamespace(scaler=scaler, precision="32-true" if precision == "fp32" else f"{precision}-mixed")
    module._trainer = SimpleNamespace(precision_plugin=plugin, world_size=1, global_step=_fullest_step(module), training=False)
    module.on_train_start()
    if module.optimization.optimizer == "adamw_8bit":
        # its kernels step in place and take no fake tensors; what it keeps is known: sharing.py
        return torch.optim.SGD([parameter for parameter in module.parameters() if parameter.requires_grad], lr=1.0)
    made: Any = module.configure_optimizers()
    optimizer: Any = made["optimizer"] if isinstance(made, dict) else made
    if on_gpu and not optimizer.defaults.get("fused"):
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = True
    return optimizer


def _fullest_step(method: Any) -> int:
    """The step in which most is learnt: the last whose answers are the rows' own, where a method takes its own in some."""
    stage = getattr(method, "stage", None)
    last = max(0, int(method.optimization.num_steps) - 1)
    if stage is None:
        return last
    for step in range(last, max(-1, last - 1000), -1):
        method._trainer = SimpleNamespace(global_step=step)
        if not stage().own:
            return step
    return last


def _autocast(precision: str) -> AbstractContextManager[Any]:
    # fp16 is traced as bf16: the same sizes, and the CPU knows how. Lightning keeps no casts of weights for later
    return nullcontext() if precision == "fp32" else torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def _mark_layers(network: nn.Module, layers: nn.ModuleList, ledger: Ledger, number: int) -> list[Any]:
    """Mark where each block begins, forward by hooks and backward by the gradient of its output."""
    last = len(layers) - 1

    def enter(module: nn.Module, arguments: Any) -> None:
        if ledger.forward:
            ledger.mark("forward")

    def begin(index: int) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            if ledger.forward:
                ledger.mark("forward", index, network=number)

        return hook

    def end(index: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if not ledger.forward:
                return
            hidden: Tensor = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: ledger.mark("backward", index, network=number))
            if index == last:
                ledger.mark("head")

        return hook

    handles = [network.register_forward_pre_hook(enter)]
    for index, layer in enumerate(layers):
        handles += [layer.register_forward_pre_hook(begin(index)), layer.register_forward_hook(end(index))]
    return handles


def _weigh_optimizer(optimizer: Any, learning: list[nn.Parameter], ledger: Ledger) -> tuple[int, int]:
    """Take a first step, which makes the optimizer's state; return its bytes, and those of its scratch."""
    ledger.mark("weighed")
    for parameter in learning:
        parameter.grad = torch.empty_like(parameter)
    ledger.ignore([parameter.grad for parameter in learning if parameter.grad is not None])
    ledger.mark("weighed")
    optimizer.step()
    live = peak = 0
    for event in ledger.segments[-1].events:
        live += event.size_bytes
        peak = max(peak, live)
    optimizer.zero_grad(set_to_none=True)
    return live, peak - live
