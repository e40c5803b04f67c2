"""A ledger of every storage that tensor operations make and drop, kept while they run on fake tensors: no memory is touched.

Knows nothing about models or training.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
_MADE_FROM_NUMBERS = (aten.arange.default, aten.arange.start, aten.arange.start_step, aten.zeros.default, aten.ones.default, aten.full.default)
_PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
_BY_MASK = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


@dataclass(frozen=True)
class Event:
    """A storage made (size_bytes > 0) or dropped (size_bytes < 0); `storage` counts from 0 within one ledger."""

    storage: int
    size_bytes: int


@dataclass
class Segment:
    """What happened between two marks.

    Args:
        name: "forward", "backward", "head", "step" ...
        layer: which of the traced layers, or None outside of them.
        network: whose layer: 0 is the one that learns, 1 and on are those that do not.
    """

    name: str
    layer: int | None = None
    events: list[Event] = field(default_factory=list)
    network: int = 0


class Ledger(TorchDispatchMode):
    """Writes down storages, segment by segment; used inside a FakeTensorMode.

    Whole numbers and truth values that follow from a batch's ids, positions and mask are computed beside the fake tensors, so
    that questions about them (where do examples begin, how many positions are supervised) have their true answers. Questions
    about anything else are answered with yes, or 1.

    Attributes:
        products: every form of matrix product that was taken: operation, shapes, dtype. A CPU compiles a kernel for each.
        forward: whether losses are being computed; in a backward pass gradient checkpointing runs blocks forward again, which are no passes of their own.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.segments: list[Segment] = [Segment("start")]
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.products: set[Any] = set()
        self.forward = False
        self._count = 0
        self._values: Any = WeakTensorKeyDictionary()  # fake tensor -> real one

    def mark(self, name: str, layer: int | None = None, *, network: int = 0) -> None:
        """Begin a segment."""
        self.segments.append(Segment(name, layer, network=network))

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Count these storages as known: they are accounted for elsewhere."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = -1

    def storage(self, tensor: Tensor) -> int | None:
        """Return the number a tensor's storage has here, or None."""
        return self._known.get(tensor.untyped_storage())

    def with_value(self, real: Tensor) -> Tensor:
        """Return a fake CPU tensor whose value is known."""
        fake = torch.empty(real.shape, dtype=real.dtype, device="cpu")
        self._values[fake] = real
        return fake

    def value(self, fake: Tensor) -> Tensor | None:
        """Return the value of a fake tensor, where it is known."""
        found: Tensor | None = self._values.get(fake)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._answer(args[0])
        if func is aten.equal.default:
            return True
        if func in _PRODUCTS:
            self.products.add((func, *((tuple(value.shape), value.stride(), value.dtype) for value in args if isinstance(value, Tensor))))
        real = self._real(func, args, kwargs)
        if func is aten.nonzero.default:
            count = len(real) if real is not None else args[0].numel()
            result: Any = torch.empty(count, args[0].dim(), dtype=torch.int64, device=args[0].device)
        elif func is aten.bincount.default:
            least = int(args[2] if len(args) > 2 else kwargs.get("minlength", 0))
            result = torch.empty(len(real) if real is not None else max(1, least), dtype=torch.int64, device=args[0].device)
        else:
            if func in _BY_MASK:
                args = (args[0], [place for index in args[1] for place in self._places(index)], *args[2:])
            result = func(*args, **kwargs)
        values, reals = tree_leaves(result), tree_leaves(real)
        for value in values:
            if isinstance(value, Tensor):
                self._note(value)
        if real is not None:
            for value, known in zip(values, reals, strict=True):
                if isinstance(value, Tensor) and not known.dtype.is_floating_point:
                    self._values[value] = known
        return result

    def _real(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on the known values of its arguments; None where one of them, or the result, is not known."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = [self._values.get(tensor) for tensor in inputs]
        if any(value is None for value in known):
            if func._schema.is_mutable and inputs and known[0] is not None:
                del self._values[inputs[0]]
            return None
        if not inputs and func not in _MADE_FROM_NUMBERS:
            return None
        args, kwargs = tree_map_only(Tensor, self._values.get, (args, kwargs))
        with _disable_current_modes():
            return func(*args, **kwargs)

    def _answer(self, scalar: Tensor) -> Any:
        value = self.value(scalar)
        if value is not None:
            with _disable_current_modes():
                return value.item()
        return True if scalar.dtype == torch.bool else 1.0 if scalar.dtype.is_floating_point else 1

    def _places(self, index: Any) -> list[Any]:
        """Replace a boolean mask, whose count a fake tensor does not have, by as many integer places."""
        if not isinstance(index, Tensor) or index.dtype != torch.bool:
            return [index]
        value = self.value(index)
        with _disable_current_modes():
            count = index.numel() if value is None else int(value.sum())
        return [torch.empty(count, dtype=torch.int64, device=index.device) for _ in range(index.dim())]

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if size == 0 or storage in self._known:
            return
        number, self._count = self._count, self._count + 1
        self._known[storage] = number
        self.segments[-1].events.append(Event(number, size))
        weakref.finalize(storage, self._drop, number, size).atexit = False

    def _drop(self, number: int, size: int) -> None:
        self.segments[-1].events.append(Event(number, -size))


class KnownLists(TorchFunctionMode):
    """Lets `tolist` of a fake tensor give its known value, and `numpy` zeros where there is none."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            value = self.ledger.value(args[0])
            if value is not None:
                with _disable_current_modes():
                    return value.tolist()
        if func is Tensor.numpy:
            import numpy as np

            with _disable_current_modes():
                return np.zeros(tuple(args[0].shape), dtype=str(args[0].dtype).removeprefix("torch."))
        return func(*args, **(kwargs or {}))
