"""A model's folder in the layout transformers reads: is it whole, what identifies it. Loads no weights.

Only safetensors are accepted: other weight files are programs that run when they are opened.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from largeforge.artifact import is_artifact, read_artifact, sha256_of, user_cache, write_atomically
from largeforge.contract import Reference
from largeforge.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_IDENTIFYING = (".safetensors", ".json", ".jinja", ".model", ".txt")


def is_adapter(folder: Path) -> bool:
    """True where a peft adapter stands."""
    return (folder / "adapter_config.json").is_file()


def check_folder(folder: Path) -> None:
    """Raise ModelError where a file that loading needs is missing, unreadable or cut short."""
    if is_adapter(folder):
        read_json(folder / "adapter_config.json")
        weights = [folder / "adapter_model.safetensors"]
    else:
        if "model_type" not in read_json(folder / "config.json"):
            raise ModelError(f"{folder / 'config.json'} names no model_type: it is not a transformers model.", next_step="give the model's own folder")
        weights = weight_files(folder)
    for path in weights:
        check_safetensors(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a model's JSON files; a missing or damaged one is a ModelError."""
    if not path.is_file():
        if is_artifact(path.parent / "artifact"):
            raise ModelError(f"{path.parent} is the folder of a run; its model lies below.", next_step=f"model={path.parent / 'artifact'}")
        beside = ", ".join(sorted(p.name for p in path.parent.iterdir())[:8]) if path.parent.is_dir() else ""
        raise ModelError(
            f"{path} is missing." + (f" In this folder: {beside}." if beside else ""), next_step="give the folder that holds config.json and *.safetensors"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ModelError(f"{path} is not valid JSON: {fault}.", next_step="download or save the model again") from fault
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not valid: it holds no mapping.", next_step="download or save the model again")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, in the index's order where there is one; every one exists."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing or not named:
            raise ModelError(
                f"{index} names shards that are missing: {', '.join(missing) or 'none named'}.",
                next_step=f"copy them into {folder}, or download the model again",
            )
        return [folder / name for name in named]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
    found = f" It holds {', '.join(others[:3])}, which are not read." if others else ""
    raise ModelError(f"{folder} holds no model.safetensors.{found}", next_step="save the weights as safetensors: network.save_pretrained(folder)")


def check_safetensors(path: Path) -> None:
    """Read a safetensors header; a file cut short or with a damaged header is a ModelError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path} is missing.", next_step="copy it beside the other files, or download the model again")
    try:
        with safe_open(path, framework="np") as stream:
            stream.keys()
    except (SafetensorError, OSError, ValueError) as fault:
        raise ModelError(f"{path} is corrupt: {fault}.", next_step="download or copy it again; its size is now " + f"{path.stat().st_size} bytes") from fault


def folder_reference(folder: Path, *, name: str, revision: str = "") -> Reference:
    """Identify a model's folder: an artifact by its id (verified), any other by the names and hashes of its files."""
    kind = "adapter" if is_adapter(folder) else "model"
    if is_artifact(folder):
        return Reference(kind, name, revision, read_artifact(folder, kind=("model", "adapter")).id)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _IDENTIFYING):
        digest.update(f"{path.name} {_remembered_sha256(path)}\n".encode())
    return Reference(kind, name, revision, digest.hexdigest())


def _remembered_sha256(path: Path) -> str:
    """Hash a file once per machine and state: gigabytes of weights do not change between two runs."""
    stat = path.stat()
    state = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    memory = user_cache() / "hashed" / hashlib.sha256(state.encode()).hexdigest()
    if memory.is_file():
        return memory.read_text(encoding="utf-8")
    found = sha256_of(path)
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(memory, found)
    return found
