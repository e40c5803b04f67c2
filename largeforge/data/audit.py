"""about/audit.jsonl of an artifact: what was done, when and with what, append-only, each entry chained to the one before by its hash.

Knows nothing about rows. The artifact's manifest holds the hash of what stood here when it was sealed (largeforge/artifact.py), so that
neither an entry in the middle nor the first ones together can be changed without being seen. Proposed by Schneier and Kelsey (1999), "Secure
audit logs to support computer forensics", without the keys: it shows tampering by those who cannot also rewrite the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from largeforge.artifact import AUDIT
from largeforge.errors import CheckFailed

START = "0" * 64


def utc_now() -> str:
    """ISO 8601, UTC, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def append(folder: Path, event: str, *, now: Callable[[], str] = utc_now, **details: Any) -> dict[str, Any]:
    """Add one entry to an artifact's log, or to that of one in the making; return it.

    Args:
        folder: the artifact's.
        event: "prepared", "generated", "step", "pushed" ...
        details: JSON values; no secrets, no rows.
    """
    path = folder / AUDIT
    before = read(folder) if path.is_file() else []
    entry: dict[str, Any] = {"number": len(before) + 1, "time": now(), "event": event, "details": details, "before": before[-1]["hash"] if before else START}
    entry["hash"] = _hash(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry, sort_keys=True) + "\n")
    return entry


def read(folder: Path) -> list[dict[str, Any]]:
    """Return every entry, oldest first. Raises CheckFailed where the chain is broken, naming the entry."""
    path = folder / AUDIT
    entries: list[dict[str, Any]] = []
    before = START
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            sound = entry["hash"] == _hash(entry) and entry["before"] == before and entry["number"] == number
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise CheckFailed(f"{path}:{number}: the audit log is broken here: this entry was changed, or one was taken out.")
        entries.append(entry)
        before = entry["hash"]
    return entries


def _hash(entry: dict[str, Any]) -> str:
    said = json.dumps({key: value for key, value in entry.items() if key != "hash"}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()
