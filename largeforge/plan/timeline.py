"""From the trace of a few layers to the memory of the whole model over time: what is live at the peak, and why.

Pure arithmetic over events; knows nothing about torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from largeforge.plan.ledger import Event, Segment
    from largeforge.plan.step import Trace

COMPONENTS = ("weights", "gathered", "gradients", "optimizer", "activations", "logits")


@dataclass(frozen=True)
class Change:
    """One storage made or dropped in the whole model: `key` names it, a drop has a negative size."""

    key: int
    size_bytes: int
    component: str


@dataclass(frozen=True)
class Weights:
    """Parameters of the whole model, in bytes each as one device holds them.

    Args:
        learning: those that learn.
        frozen: those that do not.
        state: what the optimizer keeps of each that learns; none at all asks the trace.
        others: second networks by name: "reference", "teacher"; bytes of each parameter.
        gathered: bytes that are brought together besides while a step computes.
        gradients: "whole"; "buckets" is DDP's room for all of them, there from the start; a number is how many devices share each.
    """

    learning: tuple[int, ...]
    frozen: tuple[int, ...]
    state: tuple[int, ...] = ()
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    gathered: int = 0
    gradients: Literal["whole", "buckets"] | int = "whole"

    @property
    def total(self) -> int:
        return sum(self.learning) + sum(self.frozen)


@dataclass
class Timeline:
    """Every change of memory from the first weight to the end of the second step, which finds the optimizer's state there."""

    changes: list[Change]
    unmatched: int = 0

    @property
    def components(self) -> tuple[str, ...]:
        """Names of what memory holds: second networks after the model's own weights."""
        others = sorted({change.component for change in self.changes} - set(COMPONENTS))
        return (COMPONENTS[0], *others, *COMPONENTS[1:])

    def at_peak(self) -> dict[str, int]:
        """Return bytes by component at the moment when most is live."""
        live = dict.fromkeys(self.components, 0)
        best = dict(live)
        now = most = 0
        for change in self.changes:
            live[change.component] += change.size_bytes
            now += change.size_bytes
            if now > most:
                most, best = now, dict(live)
        return best

    def at_end(self) -> dict[str, int]:
        """Return bytes by component that are live after the last step."""
        live = dict.fromkeys(self.components, 0)
        for change in self.changes:
            live[change.component] += change.size_bytes
        return live


def timeline(trace: Trace, weights: Weights) -> Timeline:
    """Put the layers back that were not run.

    The segments of layer 1 of three stand for layers 1 .. depth - 2. A storage that one layer makes and its neighbour drops is
    followed from neighbour to neighbour.

    Args:
        trace: of three layers, or of the whole model.
        weights: of the whole model.
    """
    return _Unrolling(trace, weights).run()


class _Unrolling:
    """One pass over a trace's segments. A storage is named (segment, depth, index of its making in the segment)."""

    def __init__(self, trace: Trace, weights: Weights) -> None:
        self.trace = trace
        self.weights = weights
        self.result = Timeline([])
        self.made: dict[int, tuple[int, int]] = {}  # traced storage -> (segment, index)
        for s, segment in enumerate(trace.segments):
            for i, event in enumerate(segment.events):
                if event.size_bytes > 0:
                    self.made[event.storage] = (s, i)
        self.live: dict[tuple[int, int, int], Change] = {}
        self.groups = self._groups(trace.segments)
        self.state_made = False
        self.next_key = 0

    def run(self) -> Timeline:
        for name, sizes in self.weights.others.items():
            for size in sizes:
                self._make(None, size, name)
        for size in (*self.weights.frozen, *self.weights.learning):
            self._make(None, size, "weights")
        if self.weights.gradients == "buckets":
            for size in self.weights.learning:
                self._make(None, size, "gradients")
        for _ in range(2):
            # zero_grad, and the little that was not followed to its end
            for change in self.live.values():
                self._drop(change)
            self.live.clear()
            self._step()
        return self.result

    def _step(self) -> None:
        gathered = self._make(None, self.weights.gathered, "gathered") if self.weights.gathered else None
        for s, segment in enumerate(self.trace.segments):
            if segment.name == "weighed":
                continue
            if segment.name == "step":
                if gathered is not None:
                    self._drop(gathered)
                self._optimizer_step(s)
            elif self._is_repeated(segment):
                depths = range(1, self._whole(segment) - 1)
                for depth in reversed(depths) if segment.name == "backward" else depths:
                    self._emit(s, depth)
            else:
                self._emit(s, self._depth(segment))

    # ---- segments ----

    def _run(self, segment: Segment) -> int:
        """Layers of the segment's network that were run."""
        return self.trace.num_layers if segment.network == 0 else self.trace.others[segment.network - 1][0]

    def _whole(self, segment: Segment) -> int:
        """Layers that the segment's network has."""
        return self.trace.depth if segment.network == 0 else self.trace.others[segment.network - 1][1]

    def _is_repeated(self, segment: Segment) -> bool:
        return segment.layer == 1 and self._whole(segment) > self._run(segment)

    def _depth(self, segment: Segment) -> int:
        if segment.layer is None:
            return -1
        return self._whole(segment) - 1 if segment.layer == self._run(segment) - 1 else segment.layer

    def _groups(self, segments: Sequence[Segment]) -> dict[int, dict[int, int]]:
        """Map each layer segment to its siblings: the segments of the same pass, by traced layer."""
        groups: dict[int, dict[int, int]] = {}
        current: dict[int, int] = {}
        which = ("", 0)
        for s, segment in enumerate(segments):
            if segment.layer is None:
                continue
            if (segment.name, segment.network) != which or segment.layer in current:
                current, which = {}, (segment.name, segment.network)
            current[segment.layer] = s
            groups[s] = current
        return groups

    # ---- events ----

    def _emit(self, s: int, depth: int) -> None:
        segment = self.trace.segments[s]
        for i, event in enumerate(segment.events):
            size = self._size(event)
            if event.size_bytes > 0:
                change = self._make((s, depth, i), size, self._component(segment, event.storage))
                if event.storage in self.trace.gradients and self.weights.gradients == "buckets":
                    # added to its place in a bucket, and let go
                    del self.live[(s, depth, i)]
                    self._drop(change)
            elif self._is_followed(event.storage):
                self._drop_all(self._targets(s, depth, event.storage), size)

    def _is_followed(self, storage: int) -> bool:
        """Whether the drop of a traced storage is a drop of the whole model."""
        in_bucket = storage in self.trace.gradients and self.weights.gradients == "buckets"
        return storage in self.made and not self._weighed(storage) and not in_bucket

    def _size(self, event: Event) -> int:
        """Bytes that an event makes or drops, in the device."""
        devices = self.weights.gradients
        if isinstance(devices, int) and event.storage in self.trace.gradients:
            return -(-abs(event.size_bytes) // devices)
        return abs(event.size_bytes)

    def _weighed(self, storage: int) -> bool:
        """Whether a storage was made in an optimizer step, of which only the sums are taken over."""
        return self.trace.segments[self.made[storage][0]].name in ("step", "weighed")

    def _component(self, segment: Segment, storage: int) -> str:
        if storage in self.trace.gradients:
            return "gradients"
        return "logits" if segment.name == "head" else "activations"

    def _targets(self, s: int, depth: int, storage: int) -> Iterator[tuple[int, int, int]]:
        """Name the storages of the whole model that the drop of a traced one stands for."""
        made_s, made_i = self.made[storage]
        here, there = self.trace.segments[s], self.trace.segments[made_s]
        if there.layer is None:
            # the last copy of a repeated segment drops what was made once
            final = 1 if here.name == "backward" else self._whole(here) - 2
            if not self._is_repeated(here) or depth == final:
                yield (made_s, -1, made_i)
        elif here.layer is None or here.network != there.network:
            # the first copy of another network's repeated segment drops what all copies have made
            first = self._whole(here) - 2 if here.name == "backward" else 1
            if not self._is_repeated(here) or depth == first:
                depths: Sequence[int] = range(1, self._whole(there) - 1) if self._is_repeated(there) else [self._depth(there)]
                for other in depths:
                    yield (made_s, other, made_i)
        elif self._is_repeated(there) and not self._is_repeated(here):
            # neighbours have followed each other's copies already: what is left is dropped here
            for other in range(1, self._whole(there) - 1):
                if (made_s, other, made_i) in self.live:
                    yield (made_s, other, made_i)
        else:
            other = depth + there.layer - here.layer
            yield (self.groups[made_s].get(self._traced(other, there), made_s), other, made_i)

    def _traced(self, depth: int, segment: Segment) -> int:
        """The traced layer of the segment's network that stands for a depth."""
        if self._whole(segment) == self._run(segment) or depth == 0:
            return depth
        return self._run(segment) - 1 if depth == self._whole(segment) - 1 else 1

    def _make(self, name: tuple[int, int, int] | None, size: int, component: str) -> Change:
        change = Change(self.next_key, size, component)
        self.next_key += 1
        if name is not None:
            self.live[name] = change
        self.result.changes.append(change)
        return change

    def _drop_all(self, names: Iterator[tuple[int, int, int]], size: int) -> None:
        for name in names:
            change = self.live.get(name)
            if change is None or change.size_bytes != size:
                name, change = self._similar(name, size)
            if change is None:
                self.result.unmatched += 1
                continue
            del self.live[name]
            self._drop(change)

    def _similar(self, name: tuple[int, int, int], size: int) -> tuple[tuple[int, int, int], Change | None]:
        """Neighbours that differ slightly in their operations: the same segment's storage of that size, nearest in order."""
        candidates = [(abs(key[2] - name[2]), key) for key, change in self.live.items() if key[:2] == name[:2] and change.size_bytes == size]
        if not candidates:
            return name, None
        nearest = min(candidates)[1]
        return nearest, self.live[nearest]

    def _drop(self, change: Change) -> None:
        self.result.changes.append(Change(change.key, -change.size_bytes, change.component))

    def _optimizer_step(self, s: int) -> None:
        """The optimizer keeps its state from the first step on; what it needs besides comes and goes."""
        if not self.state_made:
            self.state_made = True
            for size in self.weights.state or [int(size * self.trace.state_factor) for size in self.weights.learning]:
                # two moments, each as large as its share
                for _ in range(2):
                    self._make(None, size // 2, "optimizer")
        scratch = int(sum(self.weights.learning) * self.trace.scratch_factor) + self.trace.scratch_bytes
        if scratch:
            self._drop(self._make(None, scratch, "optimizer"))
        # gradients and what else is dropped while the step runs
        for event in self.trace.segments[s].events:
            if event.size_bytes < 0 and self._is_followed(event.storage):
                self._drop_all(self._targets(s, -1, event.storage), self._size(event))
