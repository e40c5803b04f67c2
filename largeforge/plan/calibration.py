"""What a machine adds to the tensors of a run: measured once by `scripts/bench plan` and kept in the user's cache.

Three numbers: memory that libraries take when they first work, what a compiled kernel takes (oneDNN compiles one for every form of
matrix product, and a batch of another size has other forms), and a factor on what comes and goes in a step, for scratch and holes
that no trace sees.
Knows nothing about how they are measured.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from largeforge.artifact import user_cache, write_atomically

MIB = 1 << 20
# oneDNN's cache keeps 1,024 kernels, and what it threw out leaves holes: memory of runs over many batch sizes stops growing at that of so
# many (nano, rows of 6 to 300 words, one by one: 833 MiB after 40 steps, 1,028 after 200, 1,043 after 400).
KEPT_KERNELS = 1440


@dataclass(frozen=True)
class Calibration:
    """Corrections to a trace.

    Args:
        runtime_bytes: what a run takes besides its tensors.
        kernel_bytes: more of it for every form of matrix product, up to KEPT_KERNELS.
        heap_factor: on what comes and goes in a step, as the allocator's replay shows it.
        told: where the numbers come from, for people.
    """

    runtime_bytes: int
    kernel_bytes: int
    heap_factor: float
    told: str


# What `scripts/bench plan` found on a 2-core Xeon with AMX, torch 2.13.
SHIPPED_CPU = Calibration(82 * MIB, 628_000, 1.31, "not calibrated on this machine: shipped numbers; scripts/bench plan measures its own")
# A CUDA context with cuBLAS and cuDNN handles takes 0.4-0.6 GiB; the caching allocator's blocks are rounded and cannot always be
# reused. Not measured by this project: no GPU was at hand.
SHIPPED_CUDA = Calibration(600 * MIB, 0, 1.05, "a CUDA context of 0.6 GiB and 5 % for the caching allocator are assumed; not measured here")
# What NCCL takes for its buffers and channels where several GPUs talk: an assumption, not measured by this project.
GROUP_CUDA_BYTES = 500 * MIB


def machine() -> str:
    """Name what the numbers depend on: processor and versions."""
    names = ("torch", "transformers", "lightning")
    return "-".join([platform.machine(), _processor(), *(f"{name}{version(name)}" for name in names)]).replace("/", "_").replace(" ", "_")


def calibration_path() -> Path:
    """Where this machine's calibration stands."""
    return user_cache() / "calibration" / f"{machine()}.json"


def read_calibration(kind: str) -> Calibration:
    """Return this machine's calibration, else the shipped one; `kind` is "cpu" or "cuda"."""
    if kind != "cpu":
        return SHIPPED_CUDA
    try:
        kept = json.loads(calibration_path().read_text(encoding="utf-8"))
        return Calibration(int(kept["runtime_bytes"]), int(kept["kernel_bytes"]), float(kept["heap_factor"]), str(kept["told"]))
    except (OSError, ValueError, KeyError, TypeError):
        return SHIPPED_CPU


def keep_calibration(calibration: Calibration) -> Path:
    """Write this machine's calibration."""
    path = calibration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(calibration), indent=2) + "\n")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "cpu"
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    return "".join(character for character in facts.get("model name", "cpu") + facts.get("model", "") if character.isalnum())
