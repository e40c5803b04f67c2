"""Environments of their own for peers and heavy tools: made on first use, kept in the user's cache under their pins.

python -m scripts.environments dvc      prints the folder of its programs, installing it once
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from largeforge.artifact import user_cache

PINS = {
    "datatrove": ["datatrove==0.10.1", "xxhash==3.8.2", "orjson==3.13.0", "regex", "tokenizers", "numpy>=2.2,<3"],
    "dvc": ["dvc==3.67.1"],
}


def programs(name: str) -> Path:
    """Return the bin folder of an environment, made where it is not there; made beside its place and renamed, so that half of one is never used."""
    pins = PINS[name]
    key = hashlib.sha256("\n".join([sys.version.split()[0], *pins]).encode()).hexdigest()[:12]
    folder = user_cache() / "environments" / f"{name}-{key}"
    if not (folder / "complete").is_file():
        print(f"First use: making an environment for {name} in {folder}", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        environment = {variable: value for variable, value in os.environ.items() if variable != "PYTHONPATH"}
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *pins]
        subprocess.run(command, check=True, env=environment)
        (folder / "complete").write_text("\n".join(pins) + "\n", encoding="utf-8")
    return folder / "bin"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PINS:
        sys.exit(f"python -m scripts.environments {'|'.join(PINS)}")
    print(programs(sys.argv[1]))
