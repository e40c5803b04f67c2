"""Which process of a group this one is: what torchrun, SLURM or LargeForge itself says in the environment. Starts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from largeforge.errors import InputError

STARTED_HERE = "largeforge"
"""TORCHELASTIC_RUN_ID of processes that LargeForge started itself, in a folder that it has opened."""


@dataclass(frozen=True)
class Rank:
    """One process of a group; by default one that is alone.

    Args:
        number: 0 .. world_size - 1; the first one leads: it alone writes, shows and answers.
        world_size: processes of the whole group.
        local: the number among the processes of this machine.
        local_size: processes of this machine.
        started_here: whether LargeForge started the group, and has opened the run's folder.
    """

    number: int = 0
    world_size: int = 1
    local: int = 0
    local_size: int = 1
    started_here: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.number == 0


def rank_of(environment: Mapping[str, str]) -> Rank:
    """Read the rank that torchrun's variables give; a process that has none is alone.

    Raises:
        InputError: variables that contradict each other.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Rank()
    number, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    local, local_size = int(environment.get("LOCAL_RANK", number)), int(environment.get("LOCAL_WORLD_SIZE", world_size))
    if not (0 <= number < world_size and 0 <= local < local_size):
        raise InputError(
            f"RANK={number}, WORLD_SIZE={world_size}, LOCAL_RANK={local}, LOCAL_WORLD_SIZE={local_size} contradict each other.",
            next_step="unset RANK WORLD_SIZE, or start the processes with torchrun",
        )
    return Rank(number, world_size, local, local_size, started_here=environment.get("TORCHELASTIC_RUN_ID") == STARTED_HERE)


def lost_another(fault: BaseException) -> bool:
    """Whether a library complains that another process of the group is gone: that one says why, this one only met it."""
    if type(fault).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    text = str(fault)
    return isinstance(fault, RuntimeError) and any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))


def from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Torchrun's variables for a task that srun started; none where there is one task, or torchrun's are there.

    The address is the step's first node, the port a function of the job, so that every task knows both without asking.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or "RANK" in environment:
        return {}
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
    local_size = tasks // nodes
    job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "0")) or 0)
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(local_size),
        "GROUP_RANK": environment.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": first_node(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "127.0.0.1"))),
        "MASTER_PORT": str(15000 + job % 20000),
        "TORCHELASTIC_RUN_ID": f"slurm-{environment.get('SLURM_JOB_ID', '0')}",
    }


def first_node(nodes: str) -> str:
    """The first name of a SLURM node list: "gpu[003-007,9],cpu1" -> "gpu003"."""
    head = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    return f"{head[1]}{head[2] or ''}" if head else nodes
