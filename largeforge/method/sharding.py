"""Weights spread over processes (FSDP2: Zhao et al. 2023, arXiv:2304.11277; torch's fully_shard), and brought together again.

Knows nothing about losses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def shard(module: nn.Module, network: Any, mesh: Any) -> None:
    """Spread every parameter of a method over the mesh: each layer of the network by itself, then what is left of it, then the method's own.

    A layer's weights are whole only while it computes. They stay in the dtype they are held in, so that autocast sees what it sees in one
    process: the same numbers on any number of devices.

    Args:
        module: the method.
        network: the causal LM in it, adapted or not.
        mesh: one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    base = network.get_base_model() if hasattr(network, "get_base_model") else network
    layers = set(base._no_split_modules or ())
    for part in [one for one in network.modules() if type(one).__name__ in layers]:
        fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for child in module.children():
        if child is not network and any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)


def is_sharded(network: Any) -> bool:
    """Whether weights are spread over processes."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def whole_weights(network: Any) -> dict[str, Tensor]:
    """Bring weights together on the CPU of the first process, empty in the others; every process takes part.

    Of an adapted network what learns alone: its frozen weights come from where they were loaded.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=hasattr(network, "peft_config"))
    state: dict[str, Any] = get_model_state_dict(network, options=options)
    # tied weights come under both of their names, and a file should hold them once
    once = {name for name, _ in network.named_parameters()} | {name for name, _ in network.named_buffers()}
    return {name: tensor for name, tensor in state.items() if name in once}
