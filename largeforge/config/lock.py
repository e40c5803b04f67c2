"""recipe.lock.yaml: everything that decided a run's result, so that it can be run again or shown to have drifted.

Holds the resolved config, versions, and the hashes of model, data and template; no secret, no time. Knows nothing about runs.
"""

from __future__ import annotations

import hashlib
import platform
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
PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "peft", "accelerate", "datasets", "safetensors", "pydantic", "hydra-core", "omegaconf", "numpy")


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
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "config": composed.values,
    }
    write_atomically(path, yaml.safe_dump(lock, sort_keys=False, allow_unicode=True))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
