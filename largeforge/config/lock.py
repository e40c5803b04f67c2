"""recipe.lock.yaml: everything that decided a run's result, so that it can be run again or shown to have drifted.

Holds the resolved config, versions, and the hashes of model, data and template; no secret, no time. Knows nothing about runs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from largeforge import __version__
from largeforge.artifact import write_atomically
from largeforge.config.composed import Composed
from largeforge.contract import Reference

LOCK_VERSION = 1
PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "pydantic",
    "hydra-core",
    "omegaconf",
    "numpy",
    "bitsandbytes",
)

INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")


def write_lock(path: Path, composed: Composed, *, sources: Sequence[Reference], template: str, facts: dict[str, Any]) -> None:
    """Write the lock whole or not at all.

    Args:
        path: `recipe.lock.yaml` in the run's folder.
        composed: the checked config; its values come with secrets masked.
        sources: model and data, with their hashes.
        template: the chat template's text; its sha256 is recorded.
        facts: choices made at run time (packing, precision, device, rows).
    """
    lock = {
        "lock_version": LOCK_VERSION,
        "largeforge": __version__,
        "task": composed.task,
        "seed": composed.config.seed,
        "choices": dict(composed.choices),
        "recipe": composed.recipe,
        "sources": [asdict(source) for source in sources],
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "facts": facts,
        **{name: value for name, value in surroundings().items() if name != "largeforge"},
        "config": composed.values,
    }
    write_atomically(path, yaml.safe_dump(lock, sort_keys=False, allow_unicode=True))


def surroundings() -> dict[str, Any]:
    """What a result depends on besides the config and its sources: versions, and how this machine calculates."""
    return {
        "largeforge": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "packages": {name: version_of(name) for name in PACKAGES},
    }


def _processor() -> dict[str, Any]:
    """What decides the last bits: instructions of the CPU, threads that share a sum, GPUs, processes."""
    info = Path("/proc/cpuinfo")
    words: set[str] = set()
    if info.is_file():
        line = next((line for line in info.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith(("flags", "Features"))), "")
        words = set(line.partition(":")[2].split())
    found: dict[str, Any] = {"system": platform.system(), "instructions": [name for name in INSTRUCTIONS if name in words]}
    torch = sys.modules.get("torch")  # tasks that calculate have loaded it; the others need not
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        found["gpus"] = sorted({torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())})
    found["processes"] = int(os.environ.get("WORLD_SIZE", "1"))
    return found


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
