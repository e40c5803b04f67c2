"""What runs inside vLLM's processes, in the Python that has vLLM."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from largeforge.engine.vllm import has_nvidia_gpu, made_environment, put_beside

pytestmark = pytest.mark.vllm

LOOK = """
import os, sys
os.sched_getaffinity = lambda pid: set(range(int(sys.argv[1])))
import beside_vllm
beside_vllm.begin()
from vllm.distributed.device_communicators import shm_broadcast
print(shm_broadcast.sched_yield is beside_vllm.rest)
"""


@pytest.fixture(scope="module")
def python() -> str:
    found = made_environment()
    assert found is not None, "scripts/environments vllm"
    return str(found)


@pytest.mark.skipif(has_nvidia_gpu(), reason="vLLM computes on the GPU here: nothing is changed")
@pytest.mark.parametrize(("cores", "rests"), [(2, "True"), (64, "False")])
def test_engine_and_worker_rest_where_cores_are_few(python: str, cores: int, rests: str, tmp_path: Path) -> None:
    """That the waiting which is replaced is still what this vLLM does; how much it helps is measured by scripts/bench serve."""
    beside = put_beside(tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(beside), "HOME": str(tmp_path), "VLLM_NO_USAGE_STATS": "1"}
    found = subprocess.run([python, "-c", LOOK, str(cores)], env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.split()[-1] == rests
