"""What a training run will cost: its step is run on fake tensors, its data is measured by lengths, no weight is read.

Brings the pieces of this folder together; knows nothing about how a model or a method is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from largeforge.batch import BatchShape
from largeforge.contract import DataModule, LoadedModel, Method, Progress
from largeforge.plan.calibration import GROUP_CUDA_BYTES, KEPT_KERNELS, read_calibration
from largeforge.plan.devices import Device, device_for
from largeforge.plan.report import Plan, show_rows, size
from largeforge.plan.sharing import Held, Sharing, eight_bit_state
from largeforge.plan.timeline import Weights, timeline

if TYPE_CHECKING:
    from largeforge.plan.step import Trace
    from largeforge.task.config import TrainingConfig

SHOWN_ROWS = 3
LOOKED_AT = 20_000  # steps, over all ranks, whose shapes are looked at; of longer runs some ranks stand for all
ASKED_AT_ONCE = 8  # rows of one forward pass before training, as the data asks them
NO_TOKENIZER = (
    "The tokenizer is not on this machine: rows are neither shown nor linted, steps and tokens are left out, and the largest micro-batch "
    "that the config allows is assumed, every token of it supervised."
)
SECOND = ("reference", "teacher", "assistant")
SPREAD = {
    "ddp": "each holds the whole model and takes its share of a step's rows",
    "fsdp": "weights, gradients and optimizer are spread over them, second models are not",
}


@dataclass(frozen=True)
class Load:
    """What the rows ask of one device.

    Args:
        worst: the micro-batch that needs most.
        traced: of its step the first micro-batch, and the one that needs most of those that find gradients there.
        num_sizes: micro-batches of different size that the run sees.
        mean_tokens: of a row.
        num_steps: of the run.
        facts: steps and tokens, for the table.
    """

    worst: BatchShape
    traced: list[BatchShape]
    num_sizes: int
    mean_tokens: float
    num_steps: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class Footprint:
    """Memory at the peak by component, what it was computed from, bytes of optimizer state per byte that learns, and sentences on how."""

    memory: dict[str, int]
    bytes: dict[str, int]
    state_factor: float
    told: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        return sum(self.memory.values())


class TrainingPlan:
    """Plans a training task.

    Args:
        config: the whole typed config.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config

    def __call__(
        self,
        *,
        model: LoadedModel,
        method: Method,
        data: DataModule | None,
        trainer: Any,
        progress: Progress | None = None,
        device_name: bool | str | None = None,
    ) -> Plan:
        """Return the plan.

        Args:
            model: on the meta device; taken apart by the trace.
            method: over that model, and those that it asks.
            data: prepared; None where there is no tokenizer.
            trainer: says device, precision and steps of a run here.
            progress: shows nothing today.
            device_name: True for the device found, or a name; None takes `plan` of the config.
        """
        from largeforge.plan.step import settle

        config = self.config
        device = device_for(device_name if device_name is not None else config.plan or True, kind=trainer.device)
        precision = self._precision(device, trainer.precision)
        network: Any = model.network
        others = second_networks(method)
        if not device.found and device.kind == "cuda":
            for name, one in {"model": network, **others}.items():
                self._as_on_gpu(name, one, precision=precision, here=trainer.precision)
        settle(method, on_cpu=device.kind == "cpu")
        load = self._load_of(data, trainer) if data is not None else self._assumed()
        method.optimization = trainer.optimization(load.num_steps)
        sharing = self._sharing()
        # of a packed weight as many as it stands for
        parameters = [(getattr(p, "stands_for", p.numel()), p.requires_grad) for p in network.parameters()]
        packed = sum(1 for p in network.parameters() if getattr(p, "stands_for", 0))
        kept = held(method)
        seconds = second_facts(method)
        footprint = self._memory(method, kept, others, load, sharing, device=device, precision=precision)
        learning = sum(one.num_bytes for one in kept if one.learns)
        frozen = sum(one.num_bytes for one in kept if not one.learns)
        checkpoint = config.trainer.checkpoint
        exported = size(learning if frozen else learning + frozen)
        on_disk = f"{size(round(learning * (1 + footprint.state_factor)))} (weights that learn, optimizer state)" if checkpoint.content == "full" else exported
        facts = {
            **load.facts,
            "worst micro-batch": told(load.worst),
            "precision": precision,
            "optimizer": config.trainer.optimizer,
            "attention": config.model.attention,
            **({"quantized": f"{packed} layers, each made whole while it computes"} if packed else {}),
            **seconds,
            "artifact on disk": exported,
            "checkpoint on disk": f"{on_disk}, {checkpoint.keep_last + checkpoint.keep_best} kept",
        }
        notes = list(model.notes)
        if data is None:
            notes.append(NO_TOKENIZER)
        notes += footprint.told
        shown = show_rows(data.sample(SHOWN_ROWS), model.tokenizer) if data is not None else []
        return Plan(
            task=type(method).__name__.lower(),
            model=model.source.name,
            device=device,
            parameters=sum(count for count, _ in parameters),
            trainable=sum(count for count, learns in parameters if learns),
            memory=footprint.memory,
            facts=facts,
            notes=notes,
            shown=shown,
            facts_bytes=footprint.bytes,
            num_devices=sharing.num_devices,
            per_machine=config.trainer.devices,
            shared=SPREAD.get(sharing.strategy, ""),
        )

    # ---- inside ----

    def _precision(self, device: Device, here: str) -> str:
        """Precision of the run on the device: every named GPU computes bf16."""
        asked = self.config.trainer.precision
        if asked != "auto":
            return asked
        return here if device.found else "bf16"

    def _sharing(self) -> Sharing:
        trainer = self.config.trainer
        devices = trainer.devices * trainer.nodes
        return Sharing() if devices == 1 else Sharing("fsdp" if trainer.strategy == "fsdp" else "ddp", devices)

    def _as_on_gpu(self, name: str, network: Any, *, precision: str, here: str) -> None:
        """Hold frozen weights in the GPU's precision, where this machine has another."""
        import torch

        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        chosen = getattr(self.config, name, None) or self.config.model
        if chosen.dtype == "auto" and precision != here:
            for parameter in network.parameters():
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtypes[precision])

    def _memory(
        self, method: Method, kept: list[Held], others: Mapping[str, Any], load: Load, sharing: Sharing, *, device: Device, precision: str
    ) -> Footprint:
        """Memory at the peak: in training, or before it, where a second model is asked once."""
        from largeforge.plan.step import trace_step

        trainer = self.config.trainer
        learns = self.config.method.learns
        how: dict[str, Any] = {"precision": precision, "checkpointing": trainer.gradient_checkpointing, "learns": learns, "on_gpu": device.kind == "cuda"}
        how["whole"] = getattr(method, "projections", None) is not None  # whose layers are matched by number
        sizes = {name: tuple(p.numel() * p.element_size() for p in network.parameters()) for name, network in others.items()}
        before: Footprint | None = None
        kernels_before = 0
        told: list[str] = []
        if method.annotations():
            trace = trace_step(method, shapes=[self._asked(load.worst)], others=list(others.values()), before=True, **how)
            weights = weights_of(kept, sizes)
            weights = replace(weights, state=(0,) * len(weights.learning))
            kernels_before = trace.num_products * min(-(-load.facts.get("rows", 1) // ASKED_AT_ONCE), load.worst.num_positions)
            before = self._footprint(trace, weights, device=device, num_kernels=kernels_before)
        start_training(method)
        there = second_networks(method)
        accumulates = len(load.traced) > 1
        state = [eight_bit_state(one, sharing.share(one)) for one in kept if one.learns] if trainer.optimizer == "adamw_8bit" else []
        weights = weights_of(kept, {name: sizes[name] for name in there}, sharing, accumulates=accumulates, state=tuple(state))
        trace = trace_step(method, shapes=load.traced, mean_tokens=load.mean_tokens, others=list(there.values()), **how)
        num_kernels = kernels_before + trace.num_products * load.num_sizes
        training = self._footprint(trace, weights, device=device, num_kernels=num_kernels, group=sharing.num_devices > 1)
        found = training
        if before is not None:
            gone = [name for name in others if name not in there]
            told.append(
                f"Before training every row is asked about once: {size(before.peak)} at the peak"
                + (f", the {gone[0]} included, which is then let go." if gone else ".")
            )
            if before.peak > training.peak:
                found = replace(before, bytes=training.bytes, state_factor=training.state_factor)
                told.append(f"That is the peak of the run; training itself takes {size(training.peak)}.")
        if sharing.spread:
            told += self._spread_notes(kept, accumulates=accumulates)
        if getattr(getattr(self.config.method, "on_policy", None), "share", 0.0):
            told.append("Answers that the student writes itself are not traced: their keys and values, and rows longer than those of the data, come on top.")
        return replace(found, told=(*told, *found.told))

    def _asked(self, worst: BatchShape) -> BatchShape:
        """The largest batch that is asked about before training, whatever the micro-batches of training are."""
        sequences = ASKED_AT_ONCE * (2 if self.config.method.learns == "pairs" else 1)
        share = sequences / worst.num_sequences
        return BatchShape(sequences, worst.num_positions, round(worst.num_supervised * share), round(worst.num_tokens * share), False)

    def _footprint(self, trace: Trace, weights: Weights, *, device: Device, num_kernels: int, group: bool = False) -> Footprint:
        """Memory at the peak of a trace, with what no trace sees."""
        from largeforge.plan.heap import replayed_peak

        line = timeline(trace, weights)
        memory = line.at_peak()
        live = sum(memory.values())
        calibration = read_calibration(device.kind)
        mapped = [size for sizes in weights.others.values() for size in sizes] + list(weights.frozen)
        heap: int | None = None
        if device.kind == "cpu" and live <= device.memory_bytes:
            # frozen weights are mapped from their file, all else is on the heap
            heap = replayed_peak([(change.key, change.size_bytes) for change in line.changes[len(mapped) :]])
        kept = sum(memory[name] for name in ("weights", *weights.others, "gradients", "optimizer"))
        passing = (live if heap is None else max(live, heap + sum(mapped))) - kept
        memory["allocator"] = int(kept + passing * calibration.heap_factor) - live
        num_kernels = min(KEPT_KERNELS, num_kernels)
        grouped = group and device.kind == "cuda"
        memory["libraries"] = calibration.runtime_bytes + calibration.kernel_bytes * num_kernels + (GROUP_CUDA_BYTES if grouped else 0)
        if not memory["gathered"]:
            del memory["gathered"]
        state = sum(weights.state) / max(1, sum(weights.learning)) if weights.state else trace.state_factor
        return Footprint(
            memory,
            {"kept": kept, "passing": passing, "kernels": num_kernels},
            state,
            (f"Memory: {calibration.told}.", *(["NCCL is assumed to take 0.5 GiB."] if grouped else [])),
        )

    def _spread_notes(self, kept: list[Held], *, accumulates: bool) -> Iterable[str]:
        whole = sum(one.num_bytes for one in kept if one.learns)
        yield f"At the end what learns ({size(whole)}) comes together in the main memory of the first process."
        if accumulates:
            trainer = self.config.trainer
            rows = trainer.devices * trainer.nodes * trainer.micro_batch_size
            yield f"Between micro-batches of a step gradients are whole in each device; trainer.batch_size={rows} takes one micro-batch a step."

    # ---- what the rows ask ----

    def _load_of(self, data: DataModule, trainer: Any) -> Load:
        """Take steps, tokens and the worst micro-batch of any device from the shapes of the whole run."""
        config = self.config
        window = trainer.window(data.num_rows, seed=config.seed)
        worst: BatchShape | None = None
        traced: list[BatchShape] = []
        sizes: set[int] = set()
        tokens = supervised = 0
        ranks = range(0, window.world_size, max(1, window.world_size * window.num_steps // LOOKED_AT))
        for rank in ranks:
            for shapes in data.shapes(replace(window, rank=rank)):
                tokens += sum(shape.num_tokens for shape in shapes)
                supervised += sum(shape.num_supervised for shape in shapes)
                sizes.update(shape.num_sequences * shape.num_positions for shape in shapes)
                for shape in shapes:
                    if worst is None or self._cost(shape) > self._cost(worst):
                        worst = shape
                        traced = [shapes[0], max(shapes[1:], key=self._cost)] if len(shapes) > 1 else [shape]
        assert worst is not None
        if len(ranks) < window.world_size:
            tokens, supervised = (count * window.world_size // len(ranks) for count in (tokens, supervised))
        rows = max(1, data.num_rows)
        mean = float(data.facts.get("mean_tokens") or tokens / max(1, min(rows, window.num_steps * config.trainer.batch_size)))
        facts = {"rows": data.num_rows, "steps": window.num_steps, "tokens": tokens, "supervised tokens": supervised}
        return Load(worst, traced, len(sizes), mean, window.num_steps, facts)

    def _assumed(self) -> Load:
        """The largest micro-batch that the config allows, every token of it supervised."""
        trainer, width = self.config.trainer, self.config.data.max_length
        per_row = 2 if self.config.method.learns == "pairs" else 1
        packed = self.config.data.packing is not False
        devices = trainer.devices * trainer.nodes
        here = -(-trainer.batch_size // devices)
        rows = min(trainer.micro_batch_size, here)
        steps = {"steps": trainer.max_steps} if trainer.max_steps else {}
        sequences = rows * per_row
        worst = BatchShape(sequences, width, sequences * (width - 1), sequences * width, packed)
        return Load(worst, [worst] * min(2, -(-here // rows)), 1, width / 2, trainer.max_steps or 1000, dict(steps))

    def _cost(self, shape: BatchShape) -> tuple[float, int]:
        """Order micro-batches by what they need: positions first, and scores where attention holds them."""
        positions = shape.num_sequences * shape.num_positions
        held = {"eager": 1.0, "sdpa": 0.02 if shape.packed else 0.0}.get(self.config.model.attention, 0.0)
        return positions * (1 + held * shape.num_positions / 64), shape.num_supervised


def told(shape: BatchShape) -> str:
    """A shape in words."""
    return f"{shape.num_sequences} x {shape.num_positions}, {shape.num_supervised} supervised, {'packed' if shape.packed else 'padded'}"


# ---- what a method holds ----


def held(method: Any) -> list[Held]:
    """Every parameter of a method: its network's by layer, the rest as what is left; once where it is tied."""
    from largeforge.plan.step import decoder_layers

    groups = {id(parameter): number for number, layer in enumerate(decoder_layers(method.model.network)) for parameter in layer.parameters()}
    return [Held(tuple(p.shape), p.element_size(), p.requires_grad, groups.get(id(p), -1)) for p in method.parameters()]


def second_networks(method: Any) -> dict[str, Any]:
    """The networks that a method holds and that do not learn, by what they are to it."""
    held_frozen = {id(network) for network in getattr(method, "_frozen", [])}
    named = ((name, getattr(method, name, None)) for name in SECOND)
    return {name: model.network for name, model in named if model is not None and id(model.network) in held_frozen}


def second_facts(method: Any) -> dict[str, str]:
    """How each second model is asked."""
    names = {name: getattr(method, name).source.name for name in second_networks(method)}
    if getattr(method, "cached", False):
        whom = ", ".join(names.values()) or "the model as it is then"
        return {"asked once": f"{whom}: {', '.join(one.name for one in method.annotations())}, before training, kept in the cache"}
    if not names and hasattr(method, "reference_head"):
        return {"reference": "the model itself, its adapter switched off"}
    return {name: f"{model}, asked in every step" for name, model in names.items()}


def start_training(method: Any) -> None:
    """Let the method do what it does when training starts: let second models go that are asked no more."""
    method._frozen_to = lambda device: None  # there is nothing to move
    method.on_fit_start()


def weights_of(
    kept: list[Held], others: Mapping[str, tuple[int, ...]], sharing: Sharing | None = None, *, accumulates: bool = False, state: tuple[int, ...] = ()
) -> Weights:
    """What one device holds of a model's parameters, and of second networks, which are whole in each."""
    sharing = sharing or Sharing()
    learning = tuple(sharing.share(one) for one in kept if one.learns)
    frozen = tuple(sharing.share(one) for one in kept if not one.learns)
    gathered = sharing.gathered(kept, accumulates=accumulates)
    gradients: Any = "buckets" if sharing.strategy == "ddp" else sharing.num_devices if sharing.spread and not accumulates else "whole"
    return Weights(learning, frozen, state, others, gathered, gradients)
