"""task=keys through the real entry point: make, use, list, revoke; what is printed where, and what is nowhere."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge.__main__ import main
from largeforge.call import digest_of
from tests.postgres import ENCODED, PASSWORD, Postgres, running
from tests.store.conftest import postgresql, sqlite

KEY = re.compile(r"lf-[A-Za-z0-9_-]{40}")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as server:
        yield server


class Desk:
    """What a person at a terminal sees of one command: exit code, standard output, standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self.capsys, self.caplog = capsys, caplog

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = main(["task=keys", *words])
        return (code, *self.capsys.readouterr())

    def make(self, *words: str) -> str:
        code, out, err = self(*words)
        assert code == 0, err
        key = out.strip()
        assert KEY.fullmatch(key) and out == f"{key}\n"
        assert key not in err and key not in self.caplog.text
        return key


@pytest.fixture
def keys(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Desk:
    caplog.set_level(logging.DEBUG)
    return Desk(capsys, caplog)


def holding(folder: Path, *words: str) -> list[str]:
    """The files that hold one of the words."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    return [str(path) for path in files if any(word.encode() in path.read_bytes() for word in words)]


def test_made_used_listed_revoked(keys: Desk, tmp_path: Path) -> None:
    """Proves SYS-SEC-001: the key is shown once, on standard output, stands nowhere on the disk, opens the store until it is revoked."""
    code, out, err = keys()
    assert (code, out) == (0, "") and "There are no keys yet" in err
    key = keys.make("create=alice", "priority=2", "requests_per_minute=60", "tokens_per_minute=9000", "expires_days=90", "scopes=[infer,admin]", "folder=made")
    other = keys.make("create=bob")
    assert other != key
    assert holding(tmp_path, key, key[8:], other, other[8:]) == []
    assert json.loads(Path("made/result.json").read_text())["metrics"] == {"keys_valid": 1.0}

    store = sqlite(None)
    store.open()
    found = store.find_key(digest_of(key))
    assert found is not None
    assert (found.name, found.prefix, found.priority, found.requests_per_minute, found.tokens_per_minute) == ("alice", key[:8], 2, 60, 9000)
    assert found.scopes == ("infer", "admin")
    assert abs((store.keys()[0].key.expires or 0) - time.time() - 90 * 86400) < 60

    code, out, err = keys()
    assert code == 0
    lines = [line for line in out.splitlines() if "lf-" in line]
    assert [word for word in ("alice", key[:8], "valid", "infer admin") if word not in lines[0]] == [] and "bob" in lines[1]
    assert not KEY.search(out + err)

    code, out, err = keys("revoke=alice")
    assert (code, out) == (0, "") and f"The key of alice ({key[:8]}...) is worthless now" in err
    assert store.find_key(digest_of(key)) is None and store.find_key(digest_of(other)) is not None
    assert "revoked" in next(line for line in keys()[1].splitlines() if "alice" in line)
    assert keys("revoke=" + other[:8])[0] == 0
    assert store.num_keys() == 0
    store.close()


def test_a_fresh_key_each_time_and_the_name_again_after_revoking(keys: Desk) -> None:
    first = keys.make("create=alice")
    assert keys("revoke=alice")[0] == 0
    second = keys.make("create=alice")
    assert first != second
    assert len({keys.make(f"create=user-{number}") for number in range(5)}) == 5


def test_an_expired_key(keys: Desk) -> None:
    key = keys.make("create=brief", "expires_days=0.000001")
    store = sqlite(None)
    store.open()
    deadline = time.monotonic() + 30
    while store.find_key(digest_of(key)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert store.num_keys() == 0 and "expired" in keys()[1]
    store.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create=alice"], "A key of the name alice is in .*store.sqlite3 already(?s:.*)Try: another name, or revoke=alice first"),
        (["revoke=nobody"], "No key in .* has the name or the first letters nobody(?s:.*)task=keys lists them"),
        (["create=bob", "revoke=alice"], "create and revoke at once"),
        (["create=lf/../x"], "create=lf/../x: a name has 1 to 64 letters"),
        (["create=''"], "a name has 1 to 64 letters"),
        (["create=bob", "expires_days=0"], "expires_days = 0 +a number, above 0"),
        (["create=bob", "scopes=[root]"], "scopes = .*infer, admin"),
        (["create=bob", "scopes=[]"], "scopes = "),
        (["create=bob", "requests_per_minute=0"], "requests_per_minute = 0"),
        (["create=bob", "plan=true"], "leave plan=... out"),
        (["store.path=/dev/null/store"], "cannot be opened: Not a directory"),
    ],
)
def test_refusals(keys: Desk, words: list[str], said: str) -> None:
    keys.make("create=alice")
    code, out, err = keys(*words)
    assert (code, out) == (2, "") and "Traceback" not in err
    assert re.search(said, err), err
    store = sqlite(None)
    assert [record.key.name for record in list(store.keys())] == ["alice"]
    store.close()


def test_in_a_pipe(tmp_path: Path) -> None:
    """`KEY=$(python -m largeforge task=keys create=alice)` holds the key and nothing else."""
    ran = subprocess.run(
        [sys.executable, "-m", "largeforge", "task=keys", "create=alice"], capture_output=True, text=True, timeout=120, env=environment(tmp_path)
    )
    assert ran.returncode == 0 and KEY.fullmatch(ran.stdout.removesuffix("\n"))
    assert "shown this once" in ran.stderr


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}


def test_in_postgresql(keys: Desk, server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's password stands in none of what a run leaves, given by the environment or on the command line."""
    monkeypatch.setenv("LARGEFORGE_STORE__URL", server.url)
    key = keys.make("store=postgresql", "create=alice", "folder=by-environment", "log_level=debug")
    monkeypatch.delenv("LARGEFORGE_STORE__URL")
    assert keys("store=postgresql", f"store.url={server.url}", "folder=by-command")[0] == 0
    store = postgresql(server.url)
    store.open()
    found = store.find_key(digest_of(key))
    assert found is not None and found.name == "alice"
    store.close()
    for folder in ("by-environment", "by-command"):
        values: dict[str, Any] = yaml.safe_load(Path(folder, "config.yaml").read_text())
        assert values["store"]["url"] == "**********"
    code, out, err = keys("store=postgresql", f"store.url={server.url.replace(str(server.port), '1')}", "folder=away")
    assert code == 2 and "PostgreSQL (largeforge on 127.0.0.1:1) cannot be used" in err and ENCODED not in err and PASSWORD not in err
    assert holding(tmp_path, ENCODED, PASSWORD, key, key[8:]) == []


def test_keys_cannot_be_guessed(keys: Desk) -> None:
    """240 bits, drawn from the system's own source of chance: 30 bytes, url-safe, without padding."""
    drawn = [base64.urlsafe_b64decode(keys.make(f"create=user-{number}").removeprefix("lf-")) for number in range(4)]
    assert {len(bits) for bits in drawn} == {30} and len(set(drawn)) == 4
