"""The processes that train together: how they find one another, what they share, when one waits for another. Knows nothing about what is trained."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import distributed

from largeforge.errors import InputError, LargeForgeError
from largeforge.rank import Rank

# One process may tokenize or answer a benchmark for hours while the others wait; one that died is seen by who started them all.
PATIENCE = timedelta(hours=24)


def join(rank: Rank) -> None:
    """Meet the other processes of the group, on the address that the environment names; done once."""
    if rank.world_size == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local % torch.cuda.device_count())
    # tensors on a CPU and plain objects travel by gloo, those on GPUs by NCCL
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, rank=rank.number, world_size=rank.world_size, timeout=PATIENCE)
    atexit.register(leave)


def leave() -> None:
    """Take leave of the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def folder_of_group(rank: Rank, open_folder: Callable[[], Path]) -> Path:
    """Have the first process open the run's folder, and tell the others which it is.

    Raises:
        LargeForgeError: in the first process what `open_folder` raised; in the others that it did.
    """
    join(rank)
    if not rank.leads:
        told = from_first(None)
        if told is None:
            raise InputError("the first process has no folder to run in; it says why.")
        return Path(told)
    try:
        folder = open_folder()
    except LargeForgeError:
        from_first(None)
        raise
    from_first(os.fspath(folder))
    return folder


def from_first(value: Any) -> Any:
    """The first process's value, in every process; plain values and tensors. Every process of the group asks at the same point."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def of_all(value: Any) -> list[Any]:
    """Every process's value by rank, in every process. Every process of the group asks at the same point."""
    if not distributed.is_initialized():
        return [value]
    boxes: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(boxes, value)
    return boxes


@contextmanager
def first_before_others(rank: Rank) -> Iterator[None]:
    """Let the first process of each machine run the block before the others do: what it leaves in the cache, they find there."""
    if not distributed.is_initialized():
        yield
        return
    if rank.local:
        distributed.barrier()
    yield
    if not rank.local:
        distributed.barrier()


def strategy(name: str, rank: Rank, *, skips: bool = False) -> Strategy:
    """How processes share the work: "ddp" (Li et al. 2020, arXiv:2006.15704) or "fsdp" (Zhao et al. 2023, arXiv:2304.11277).

    Args:
        name: "auto" is ddp.
        rank: of this process.
        skips: whether a step may leave parameters that learn without a gradient: DDP then looks for them in every step.
    """
    if name == "fsdp":
        return Sharded(rank.world_size)
    # buffers are functions of the config, equal everywhere; gradients lie in the buckets that are sent, not beside them
    return DDPStrategy(timeout=PATIENCE, forward_sync_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=skips)


def environment() -> TorchElasticEnvironment:
    """Where Lightning reads ranks: torchrun's variables, whoever set them."""
    return TorchElasticEnvironment()


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes; checkpoints are whole, in one file, and hold only what learns."""

    def __init__(self, world_size: int) -> None:
        # by default it averages nothing over data
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=PATIENCE)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What learns, whole, on the CPU of the first process; frozen weights stay where they are."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        assert self.model is not None
        return get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True))
