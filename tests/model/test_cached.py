"""Models made once: by one of several processes, whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from largeforge.errors import ModelError
from largeforge.model.cached import made_once

MAKE = """
import sys, time
from pathlib import Path
from largeforge.model.cached import made_once

def fill(folder):
    (folder / "made.txt").write_text("whole")
    with open(sys.argv[2], "a") as stream:
        stream.write("made\\n")
    time.sleep(0.5)
    return "model"

print(made_once(Path(sys.argv[1]), fill=fill, config={}, parents=[]).id)
"""


def test_two_processes(cache: Path, tmp_path: Path) -> None:
    """Both get the same artifact; one of them makes it."""
    command = [sys.executable, "-c", MAKE, str(cache / "models" / "x"), str(tmp_path / "log")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0] and len(ids) == 1
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_full_disk(cache: Path) -> None:
    def fill(folder: Path) -> str:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match="disk is full") as caught:
        made_once(cache / "models" / "x", fill=fill, config={}, parents=[])
    assert "LARGEFORGE_CACHE" in caught.value.next_step
    assert [path.name for path in (cache / "models").iterdir()] == [".x.lock"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelError, match="could not be written"):
        made_once(tmp_path / "file" / "x", fill=lambda folder: "model", config={}, parents=[])


def test_what_a_killed_process_left(cache: Path) -> None:
    """A half-made draft is cleared away, not taken for the model."""
    (cache / "models" / ".x.4711").mkdir(parents=True)
    made_once(cache / "models" / "x", fill=lambda folder: "model", config={}, parents=[])
    assert sorted(path.name for path in (cache / "models").iterdir()) == [".x.lock", "x"]
