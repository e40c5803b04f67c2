"""Which process of a group one is: read from torchrun's variables and from SLURM's."""

from __future__ import annotations

import pytest

from largeforge.errors import InputError
from largeforge.rank import Rank, first_node, from_slurm, lost_another, rank_of


def test_a_process_without_a_group_is_alone_and_leads() -> None:
    assert rank_of({}) == Rank(0, 1, 0, 1) and rank_of({}).leads


def test_torchruns_variables_are_read() -> None:
    """Proves SYS-F-016 in part: the third process of four on two machines is the first of the second machine."""
    found = rank_of({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"})
    assert found == Rank(2, 4, 0, 2) and not found.leads and not found.started_here


def test_variables_that_contradict_each_other_are_told() -> None:
    with pytest.raises(InputError, match="RANK=4, WORLD_SIZE=4"):
        rank_of({"RANK": "4", "WORLD_SIZE": "4"})


def test_slurm_tasks_get_torchruns_variables() -> None:
    """What srun sets on the second machine of `srun --nodes 2 --ntasks-per-node 4`, as SLURM 23.11's manual lists it."""
    slurm = {"SLURM_JOB_ID": "412345", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    found = from_slurm(slurm | {"SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[007-008]"})
    assert rank_of(found) == Rank(5, 8, 1, 4)
    assert found["MASTER_ADDR"] == "gpu007" and found["GROUP_RANK"] == "1" and found["MASTER_PORT"] == str(15000 + 12345)


@pytest.mark.parametrize(
    "environment",
    [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "8", "RANK": "0"}],
)
def test_slurm_says_nothing_outside_a_step_of_several_tasks(environment: dict[str, str]) -> None:
    """A batch script's own shell, a step of one task, and a torchrun inside SLURM are not srun's tasks."""
    assert from_slurm(environment) == {}


@pytest.mark.parametrize(("nodes", "first"), [("gpu[003-007,9],cpu1", "gpu003"), ("a1,a2", "a1"), ("node[12,14]", "node12"), ("localhost", "localhost")])
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_who_lost_another_is_told_from_a_fault() -> None:
    assert lost_another(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:21380"))
    assert not lost_another(RuntimeError("shapes cannot be multiplied"))
