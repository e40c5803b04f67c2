"""A folder with manifest.json: all that tasks hand each other (law 5).

The manifest is written last and atomically, so its existence means that the folder is whole. Its id is the hash of the
payload (names, sizes, sha256 of the files, kind). Outside the id stand the files below about/ (where things came from, and when:
verified like the payload, but no part of what the artifact is) and what is learned later, in proof.json. One file may grow after
the artifact is sealed, about/audit.jsonl: what it held then must still be its beginning. Knows nothing about what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from largeforge.contract import Reference
from largeforge.errors import ArtifactError

MANIFEST = "manifest.json"
PROOF = "proof.json"
ABOUT = "about/"
AUDIT = "about/audit.jsonl"
SCHEMA_VERSION = 1
_WEIGHTS = (".safetensors", ".gguf", ".arrow", ".parquet")
_LARGE_BYTES = 16 << 20


@dataclass(frozen=True)
class Artifact:
    """A finished folder.

    Args:
        files: the payload: name -> sha256 and size_bytes.
        about: the files below about/, outside the id.
    """

    folder: Path
    kind: str
    id: str
    files: dict[str, dict[str, Any]]
    parents: tuple[Reference, ...]
    config: dict[str, Any]
    about: dict[str, dict[str, Any]] = field(default_factory=dict)


def is_artifact(folder: Path) -> bool:
    """True where a manifest stands."""
    return (folder / MANIFEST).is_file()


def write_artifact(folder: Path, *, fill: Callable[[Path], str], parents: Sequence[Reference], config: dict[str, Any]) -> Artifact:
    """Fill a temporary folder beside `folder`, seal it with a manifest, and rename it into place; all of it is on the disk when it stands there.

    Args:
        folder: where it shall stand; must not exist.
        fill: writes the payload into the folder it is given and returns its kind: "model", "adapter", "data" ...
        parents: what it was made from.
        config: the resolved config that made it, without secrets.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already.", next_step="choose another folder=...")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        return _sealed(draft, folder, kind=fill(draft), parents=parents, config=config)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _sealed(draft: Path, folder: Path, *, kind: str, parents: Sequence[Reference], config: dict[str, Any]) -> Artifact:
    found = {
        path.relative_to(draft).as_posix(): {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
        for path in sorted(draft.rglob("*"))
        if path.is_file()
    }
    files = {name: facts for name, facts in found.items() if not name.startswith(ABOUT)}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "id": _payload_id(kind, files),
        "files": files,
        "about": {name: facts for name, facts in found.items() if name.startswith(ABOUT)},
        "parents": [asdict(parent) for parent in parents],
        "config": config,
    }
    write_atomically(draft / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    # a machine that stops now must not leave a manifest beside files that were only in its memory
    for path in sorted(draft.rglob("*"), reverse=True):
        _flush(path)
    _flush(draft)
    os.replace(draft, folder)
    _flush(folder.parent)
    return _artifact(folder, manifest)


def read_artifact(folder: Path, *, kind: str | Sequence[str] | None = None, full: bool = False) -> Artifact:
    """Read a manifest and verify the files it names.

    Small files always; weights in full once per machine and content (then by size, time and inode), and in full where
    `full` says so.

    Raises:
        ArtifactError: no manifest, another kind, a file missing, of another size, or with other bytes.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is no artifact: it holds no {MANIFEST}.", next_step="give the folder that a run left: outputs/<task>/<date>/<time>/artifact"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        artifact = _artifact(folder, manifest)
    except (ValueError, KeyError, TypeError) as fault:
        raise ArtifactError(f"{path} is damaged ({fault}).", next_step="take the artifact from where it was made again") from fault
    kinds = [kind] if isinstance(kind, str) else list(kind or [])
    if kinds and artifact.kind not in kinds:
        raise ArtifactError(f"{folder} is an artifact of kind {artifact.kind}; needed: {' or '.join(kinds)}.")
    if artifact.id != _payload_id(artifact.kind, artifact.files):
        raise ArtifactError(f"{path} does not match its own id.", next_step="take the artifact from where it was made again")
    for name, facts in (artifact.files | artifact.about).items():
        _verify(folder, name, facts, full=full)
    return artifact


def sha256_of(path: Path, *, first: int | None = None) -> str:
    """Hash of a file's bytes, or of its first ones, read in blocks."""
    digest = hashlib.sha256()
    left = path.stat().st_size if first is None else first
    with path.open("rb") as stream:
        while left > 0 and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all: temporary name, flush to disk, rename."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)


def user_cache() -> Path:
    """Where converted models, token caches and calibrations are kept: $LARGEFORGE_CACHE, else ~/.cache/largeforge."""
    return Path(os.environ.get("LARGEFORGE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "largeforge")


def user_environments() -> Path:
    """Where heavy programs have environments of their own (scripts/environments): $LARGEFORGE_ENVIRONMENTS, else in the cache."""
    return Path(os.environ.get("LARGEFORGE_ENVIRONMENTS") or user_cache() / "environments")


def _flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot: some shares of other machines
            raise
    finally:
        os.close(descriptor)


def _artifact(folder: Path, manifest: dict[str, Any]) -> Artifact:
    parents = tuple(Reference(**parent) for parent in manifest["parents"])
    return Artifact(folder, manifest["kind"], manifest["id"], manifest["files"], parents, manifest["config"], manifest.get("about", {}))


def _payload_id(kind: str, files: dict[str, dict[str, Any]]) -> str:
    payload = json.dumps([kind, [[name, files[name]["sha256"]] for name in sorted(files)]])
    return hashlib.sha256(payload.encode()).hexdigest()


def _verify(folder: Path, name: str, facts: dict[str, Any], *, full: bool) -> None:
    path = folder / name
    again = "take the artifact from where it was made again, or train it again"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ArtifactError(f"{folder / MANIFEST} names a file outside its folder: {name}.")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing.", next_step=again)
    stat = path.stat()
    if name == AUDIT:
        if stat.st_size < facts["size_bytes"] or sha256_of(path, first=facts["size_bytes"]) != facts["sha256"]:
            raise ArtifactError(f"{path} does not begin with what was sealed: entries were taken out or changed.", next_step=again)
        return
    if stat.st_size != facts["size_bytes"]:
        raise ArtifactError(f"{path} has {stat.st_size} bytes; its manifest says {facts['size_bytes']}.", next_step=again)
    seal = user_cache() / "verified" / facts["sha256"]
    state = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    weights = path.suffix in _WEIGHTS or stat.st_size > _LARGE_BYTES
    if weights and not full and seal.is_file() and seal.read_text(encoding="utf-8") == state:
        return
    if sha256_of(path) != facts["sha256"]:
        raise ArtifactError(f"{path} is not what was written: its sha256 differs from the manifest's.", next_step=again)
    if weights:
        seal.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(seal, state)
