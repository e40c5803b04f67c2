"""The doors a person types: what they install, once, and what they say where they cannot. No package is fetched: Python and pip are stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Notes what it is asked, makes "environments" out of copies of itself, and fails where BREAK matches what it is asked.
STAND_IN = """#!/bin/bash
echo "$*" >>"$LOG"
if [[ -n $BREAK && "$*" =~ $BREAK ]]; then echo "a stand-in's complaint"; exit 1; fi
case "$*" in
    --version) echo Python 3.11.9 ;;
    "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
esac
"""


@dataclass
class Newcomer:
    """A checkout with a Python that only pretends."""

    folder: Path

    def calls(self, script: str, *arguments: str, breaking: str = "") -> subprocess.CompletedProcess[str]:
        (self.folder / "log").write_text("")
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder), "LOG": str(self.folder / "log"), "BREAK": breaking}
        command = [str(self.folder / "checkout" / "scripts" / script), *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def asked(self, pattern: str) -> list[str]:
        """What Python was asked that looks like this."""
        return [line for line in (self.folder / "log").read_text().splitlines() if re.search(pattern, line)]


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "largeforge").mkdir()
    for name in ("pyproject.toml", "setup.py", "largeforge/__init__.py"):
        shutil.copy(ROOT / name, checkout / name)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "python3.10", "python3.11", "python3.12", "python3.13"):
        path = tmp_path / "bin" / name
        path.write_text(STAND_IN)
        path.chmod(0o755)
    return Newcomer(tmp_path)


def test_the_first_use_installs_and_the_second_does_not(newcomer: Newcomer) -> None:
    first = newcomer.calls("run", "trainer.max_steps=2")
    assert first.returncode == 0, first.stderr
    assert newcomer.asked("--editable .*/checkout") and newcomer.asked("pip check")
    assert newcomer.asked("-m largeforge") == ["-m largeforge task=sft model=smollm2 data=demo trainer.max_steps=2"]
    assert re.search(r"LargeForge and what it needs \.\.\. +\d+ s", first.stderr) and "Installed in" in first.stderr
    second = newcomer.calls("run", "task=chat")
    assert second.returncode == 0 and second.stderr == ""
    assert newcomer.asked("") == ["-m largeforge task=chat"]


@pytest.mark.parametrize("changed", ["pyproject.toml", "largeforge/__init__.py"])
def test_it_is_done_again_where_what_decides_it_changed(newcomer: Newcomer, changed: str) -> None:
    """What it needs, and its own version, which pip wrote down."""
    newcomer.calls("install")
    with (newcomer.folder / "checkout" / changed).open("a") as stream:
        stream.write("# another\n")
    newcomer.calls("install")
    assert newcomer.asked("--editable") and not newcomer.asked("-m venv")


@pytest.mark.parametrize("breaking", ["--editable", "pip check", "-m venv"])
def test_an_install_that_stopped_is_done_again(newcomer: Newcomer, breaking: str) -> None:
    stopped = newcomer.calls("run", breaking=breaking)
    assert stopped.returncode == 1
    assert "a stand-in's complaint" in stopped.stderr and "run the same command again" in stopped.stderr
    assert not newcomer.asked("-m largeforge")
    again = newcomer.calls("run")
    assert again.returncode == 0, again.stderr
    assert newcomer.asked("-m venv --clear") and newcomer.asked("--editable") and newcomer.asked("-m largeforge")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine takes torch for its GPU")
def test_without_a_gpu_the_small_torch_is_tried_first(newcomer: Newcomer) -> None:
    newcomer.calls("install")
    assert [word.split()[-1] for word in newcomer.asked("torch==")] == ["torch==2.13.0+cpu"]
    (newcomer.folder / "checkout" / ".venv" / "largeforge.stamp").unlink()
    done = newcomer.calls("install", breaking=r"\+cpu")
    assert done.returncode == 0, done.stderr
    assert [word.split()[-1] for word in newcomer.asked("torch==")] == ["torch==2.13.0+cpu", "torch==2.13.0"]


def test_with_a_gpu_its_own_torch_is_taken(newcomer: Newcomer) -> None:
    shutil.copy(newcomer.folder / "bin" / "python3", newcomer.folder / "bin" / "nvidia-smi")
    newcomer.calls("install")
    assert [word.split()[-1] for word in newcomer.asked("torch==")] == ["torch==2.13.0"]


def test_no_python_that_will_do(newcomer: Newcomer) -> None:
    done = newcomer.calls("run", breaking="ensurepip")
    assert done.returncode == 2
    assert "Python 3.10 or newer" in done.stderr and "Try: " in done.stderr
    assert not (newcomer.folder / "checkout" / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], "-m pytest -n 2 --dist loadfile -m not slow and not vllm and not clients"),
        (["--long"], "-m pytest -n 2 --dist loadfile -m not vllm and not clients"),
        (["-k", "two words", "tests/test_scripts.py"], "-m pytest -m not slow and not vllm and not clients -k two words tests/test_scripts.py"),
    ],
)
def test_what_the_suite_is_given(newcomer: Newcomer, arguments: list[str], asked: str) -> None:
    newcomer.calls("install")
    assert newcomer.calls("test", *arguments).returncode == 0
    assert newcomer.asked("") == [asked]


def test_what_asks_a_vllm_is_run_by_itself(newcomer: Newcomer) -> None:
    newcomer.calls("install")
    assert newcomer.calls("test", "vllm", "-x").returncode == 0
    assert newcomer.asked("") == ["-m scripts.environments vllm", "-m pytest -m vllm -x"]
    assert newcomer.calls("test", "vllm", breaking="scripts.environments").returncode == 1
    assert not newcomer.asked("pytest")


def test_other_people_s_clients_are_run_by_themselves(newcomer: Newcomer) -> None:
    newcomer.calls("install")
    assert newcomer.calls("test", "clients", "-x").returncode == 0
    assert newcomer.asked("") == ["-m scripts.environments clients", "-m scripts.environments node", "-m pytest -m clients -x"]


def test_coverage_counts_and_a_failed_suite_stays_failed(newcomer: Newcomer) -> None:
    newcomer.calls("install")
    assert newcomer.calls("test", "--coverage").returncode == 0
    assert [words.split()[2] for words in newcomer.asked("-m coverage")] == ["erase", "run", "combine", "report"]
    assert newcomer.calls("test", "--coverage", breaking="coverage report").returncode == 1
    assert newcomer.calls("test", "--coverage", breaking="-m pytest").returncode == 1
    assert newcomer.calls("test", breaking="-m pytest").returncode == 1


def test_check_tells_all_that_is_wrong(newcomer: Newcomer) -> None:
    newcomer.calls("install")
    assert newcomer.calls("check").returncode == 0
    done = newcomer.calls("check", breaking="ruff format|licences")
    assert done.returncode == 1
    assert re.findall(r"^(\w+) +(ok|NOT)", done.stdout, flags=re.MULTILINE) == [("format", "NOT"), ("lint", "ok"), ("types", "ok"), ("licences", "NOT")]
    assert "Try  format: .venv/bin/ruff format" in done.stdout


def test_benches_are_listed_and_a_wrong_name_is_told() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    bench = [sys.executable, "-m", "scripts.benches"]
    listed = subprocess.run(bench, env=environment, capture_output=True, text=True)
    assert listed.returncode == 0 and re.search(r"^  cli +\S", listed.stdout, flags=re.MULTILINE)
    wrong = subprocess.run([*bench, "clu"], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 2 and "Try: scripts/bench cli" in wrong.stderr
