"""The cache of fetched files: one copy by content, a size limit, and nobody's file thrown out while it is used."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from largeforge.storage import cache as module
from largeforge.storage.cache import Cache
from tests.storage.servers import ROOT


def keep(cache: Cache, key: str, text: bytes) -> str:
    draft = cache.draft()
    draft.write_bytes(text)
    return cache.keep(draft, key)


def let_go(cache: Cache) -> None:
    """As if the process that used it had ended."""
    lease = module._leases.pop((cache.folder, os.getpid()))
    os.close(lease._lock)


def test_one_copy_by_content(tmp_path: Path) -> None:
    """Proves SYS-D-013: two URLs of one content share its bytes; each is found by its own key and state."""
    cache = Cache(tmp_path, limit_bytes=1000)
    digest = keep(cache, "s3 a etag1", b"rows")
    assert digest == hashlib.sha256(b"rows").hexdigest() == keep(cache, "gs b etag9", b"rows")
    assert [path.read_bytes() for path in (tmp_path / "objects").iterdir()] == [b"rows"]
    assert cache.find("s3 a etag1") == cache.find("gs b etag9") == digest
    assert cache.find("s3 a etag2") is None
    view = cache.view({"x/a.jsonl": digest, "b.jsonl": digest})
    assert (view / "x/a.jsonl").read_bytes() == (view / "b.jsonl").read_bytes() == b"rows"
    assert cache.view({"b.jsonl": digest, "x/a.jsonl": digest}) == view
    cache.forget("s3 a etag1")
    assert cache.find("s3 a etag1") is None and cache.find("gs b etag9") == digest


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=100)
    for name in "abc":
        digest = keep(cache, name, name.encode() * 30)
        cache.view({f"{name}.txt": digest})
        time.sleep(0.01)
    assert cache.find("a")  # used again: b is now the oldest
    let_go(cache)
    assert cache.make_room(35) == 0
    assert [name for name in "abc" if cache.find(name)] == ["a", "c"]
    assert sorted(path.name for path in (tmp_path / "views").rglob("*.txt")) == ["a.txt", "c.txt"]
    let_go(cache)
    assert cache.make_room(100) == 0
    assert not list((tmp_path / "objects").iterdir()) and not list((tmp_path / "views").iterdir()) and not list((tmp_path / "index").iterdir())


def test_what_is_used_stays(tmp_path: Path) -> None:
    """By this process, or by another that lives; that one's death frees it, and takes what it was fetching along."""
    cache = Cache(tmp_path, limit_bytes=100)
    keep(cache, "mine", b"m" * 60)
    assert cache.make_room(60) == 20  # so much does not fit
    assert cache.find("mine")
    let_go(cache)
    code = (
        "import sys, time; from pathlib import Path; from largeforge.storage.cache import Cache\n"
        f"cache = Cache(Path({str(tmp_path)!r}), limit_bytes=100); cache.find('mine'); cache.draft().write_bytes(b'half')\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "ready\n"
    try:
        assert cache.make_room(60) == 20
        assert cache.find("mine")
        let_go(cache)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    halves = [path for path in (tmp_path / "leases").rglob("*") if path.is_file() and path.read_bytes() == b"half"]
    assert len(halves) == 1
    assert cache.make_room(60) == 0
    assert cache.find("mine") is None and not halves[0].exists()


def test_a_damaged_file_is_not_handed_out(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=100)
    digest = keep(cache, "a", b"rows")
    view = cache.view({"a.txt": digest})
    path = tmp_path / "objects" / digest
    assert path.stat().st_mode & 0o222 == 0
    path.unlink()
    path.write_bytes(b"ro")
    assert cache.find("a") is None
    assert keep(cache, "a", b"rows") == digest
    assert (cache.view({"a.txt": digest}) / "a.txt").read_bytes() == b"rows" and view.is_dir()


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(os, "link", refuse)
    cache = Cache(tmp_path, limit_bytes=100)
    view = cache.view({"a/b.txt": keep(cache, "a", b"rows")})
    assert (view / "a/b.txt").read_bytes() == b"rows"
