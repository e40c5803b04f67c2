"""What a training run will cost: its step is run on fake tensors, its data is measured by lengths, no weight is read.

Brings the pieces of this folder together; knows nothing about how a model or a method is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from largeforge.contract import BatchShape, DataModule, LoadedModel, Method, Progress
from largeforge.plan.calibration import KEPT_KERNELS, read_calibration
from largeforge.plan.devices import Device, device_for
from largeforge.plan.report import Plan, show_rows, size
from largeforge.plan.timeline import Weights, timeline

if TYPE_CHECKING:
    from largeforge.task.config import TrainConfig

SHOWN_ROWS = 3
NO_TOKENIZER = (
    "The tokenizer is not on this machine: rows are neither shown nor linted, steps and tokens are left out, and the largest micro-batch "
    "that the config allows is assumed, every token of it supervised."
)


@dataclass(frozen=True)
class Load:
    """What the rows ask of the device.

    Args:
        worst: the micro-batch that needs most.
        traced: of its step the first micro-batch, and the one that needs most of those that find gradients there.
        num_sizes: micro-batches of different size that the run sees.
        mean_tokens: of a row.
        facts: steps and tokens, for the table.
    """

    worst: BatchShape
    traced: list[BatchShape]
    num_sizes: int
    mean_tokens: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Footprint:
    """Memory at the peak by component, what it was computed from, and a sentence on the calibration."""

    memory: dict[str, int]
    bytes: dict[str, int]
    told: str


class TrainingPlan:
    """Plans a training task.

    Args:
        config: the whole typed config.
    """

    def __init__(self, config: TrainConfig) -> None:
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
            method: over that model.
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
        if not device.found and device.kind == "cuda":
            self._as_on_gpu(network, precision=precision, here=trainer.precision)
        settle(method, on_cpu=device.kind == "cpu")
        parameters = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in network.parameters()]
        weights = Weights(tuple(b for _, b, learns in parameters if learns), tuple(b for _, b, learns in parameters if not learns))
        load = self._load_of(data, trainer, config) if data is not None else self._assumed(config)
        footprint = self._memory(method, weights, load, device=device, precision=precision)
        learning, kept = sum(weights.learning), config.trainer.checkpoint
        exported = size(learning if weights.frozen else weights.total)
        on_disk = f"{size(3 * learning)} (weights that learn, optimizer state)" if kept.content == "full" else exported
        facts = {
            **load.facts,
            "worst micro-batch": told(load.worst),
            "precision": precision,
            "artifact on disk": exported,
            "checkpoint on disk": f"{on_disk}, {kept.keep_last + kept.keep_best} kept",
        }
        notes = list(model.notes)
        if data is None:
            notes.append(NO_TOKENIZER)
        notes.append(footprint.told)
        shown = show_rows(data.sample(SHOWN_ROWS), model.tokenizer) if data is not None else []
        return Plan(
            task=type(method).__name__.lower(),
            model=model.source.name,
            device=device,
            parameters=sum(count for count, _, _ in parameters),
            trainable=sum(count for count, _, learns in parameters if learns),
            memory=footprint.memory,
            facts_bytes=footprint.bytes,
            facts=facts,
            notes=notes,
            shown=shown,
        )

    # ---- inside ----

    def _precision(self, device: Device, here: str) -> str:
        """Precision of the run on the device: every named GPU computes bf16."""
        asked = self.config.trainer.precision
        if asked != "auto":
            return asked
        return here if device.found else "bf16"

    def _as_on_gpu(self, network: Any, *, precision: str, here: str) -> None:
        """Hold frozen weights in the GPU's precision, where this machine has another."""
        import torch

        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        if self.config.model.dtype == "auto" and precision != here:
            for parameter in network.parameters():
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtypes[precision])

    def _memory(self, method: Method, weights: Weights, load: Load, *, device: Device, precision: str) -> Footprint:
        from largeforge.plan.heap import replayed_peak
        from largeforge.plan.step import trace_step

        trace = trace_step(
            method,
            shapes=load.traced,
            precision=precision,
            checkpointing=self.config.trainer.gradient_checkpointing,
            mean_tokens=load.mean_tokens,
        )
        line = timeline(trace, weights)
        memory = line.at_peak()
        live = sum(memory.values())
        calibration = read_calibration(device.kind)
        frozen = sum(weights.frozen)
        heap: int | None = None
        if device.kind == "cpu" and live <= device.memory_bytes:
            # frozen weights are mapped from their file, all else is on the heap
            heap = replayed_peak([(change.key, change.size_bytes) for change in line.changes[len(weights.frozen) :]])
        kept = memory["weights"] + memory["gradients"] + memory["optimizer"]
        passing = (live if heap is None else max(live, heap + frozen)) - kept
        memory["allocator"] = int(kept + passing * calibration.heap_factor) - live
        num_kernels = min(KEPT_KERNELS, trace.num_products * load.num_sizes)
        memory["libraries"] = calibration.runtime_bytes + calibration.kernel_bytes * num_kernels
        return Footprint(memory, {"kept": kept, "passing": passing, "kernels": num_kernels}, f"Memory: {calibration.told}.")

    def _load_of(self, data: DataModule, trainer: Any, config: TrainConfig) -> Load:
        """Take steps, tokens and the worst micro-batch from the shapes of the whole run."""
        window = trainer.window(data.num_rows, seed=config.seed)
        worst: BatchShape | None = None
        traced: list[BatchShape] = []
        sizes: set[int] = set()
        steps = tokens = supervised = 0
        for shapes in data.shapes(window):
            steps += 1
            tokens += sum(shape.num_tokens for shape in shapes)
            supervised += sum(shape.num_supervised for shape in shapes)
            sizes.update(shape.num_sequences * shape.num_positions for shape in shapes)
            for shape in shapes:
                if worst is None or self._cost(shape) > self._cost(worst):
                    worst = shape
                    traced = [shapes[0], max(shapes[1:], key=self._cost)] if len(shapes) > 1 else [shape]
        assert worst is not None
        rows = max(1, data.num_rows)
        mean = float(data.facts.get("mean_tokens") or tokens / max(1, min(rows, steps * config.trainer.batch_size)))
        facts = {"rows": data.num_rows, "steps": steps, "tokens": tokens, "supervised tokens": supervised}
        return Load(worst, traced, len(sizes), mean, facts)

    def _assumed(self, config: TrainConfig) -> Load:
        """The largest micro-batch that the config allows, every token of it supervised."""
        width, rows = config.data.max_length, config.trainer.micro_batch_size
        packed = config.data.packing is not False
        steps = {"steps": config.trainer.max_steps} if config.trainer.max_steps else {}
        worst = BatchShape(rows, width, rows * (width - 1), rows * width, packed)
        return Load(worst, [worst] * min(2, -(-config.trainer.batch_size // rows)), 1, width / 2, dict(steps))

    def _cost(self, shape: BatchShape) -> tuple[float, int]:
        """Order micro-batches by what they need: positions first, and scores where attention holds them."""
        positions = shape.num_sequences * shape.num_positions
        held = {"eager": 1.0, "sdpa": 0.02 if shape.packed else 0.0}[self.config.model.attention]
        return positions * (1 + held * shape.num_positions / 64), shape.num_supervised


def told(shape: BatchShape) -> str:
    """A shape in words."""
    return f"{shape.num_sequences} x {shape.num_positions}, {shape.num_supervised} supervised, {'packed' if shape.packed else 'padded'}"
