"""README and docs tell the truth: every path exists, every command runs or at least composes and checks.

A fenced block of commands is composed and checked; `<!-- run -->` before it runs every command in order, `<!-- fails: N -->`
expects that exit code. `<!-- file: NAME -->` before a block writes it where the page's commands find it. `<!-- serve -->` starts the first
command of a block as a server, runs the rest of the block while it is up, and the blocks marked `<!-- ask -->` too; ports 8000 and 8001 stand for its own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.process import free_port

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: what the comment before it says, and its text."""

    note: str
    text: str
    language: str = "bash"

    def commands(self) -> list[list[str]]:
        """Its command lines as a shell would read them, comments dropped, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        return [line for line in words if line[:3] == ["python", "-m", "largeforge"] or (line and line[0].startswith("scripts/"))]


def blocks(page: Path) -> list[Block]:
    return [Block(match["note"] or "", match["text"], match["language"]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def checked_commands() -> Iterator[object]:
    """Every command that is composed and not run, once, under the page that names it first."""
    seen = set()
    for page in PAGES:
        for block in blocks(page):
            for command in block.commands():
                if block.note in ("", "compose") and tuple(command) not in seen:
                    seen.add(tuple(command))
                    yield pytest.param(page, command, id=f"{page.stem}: {shlex.join(command)}")


def run_pages() -> list[Path]:
    return [page for page in PAGES if any(block.note in ("run", "serve") or block.note.startswith("fails") for block in blocks(page))]


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all pages: what is measured once per machine is measured once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def desk(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with an empty home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LARGEFORGE_CACHE", str(shared_cache))
    monkeypatch.delenv("LARGEFORGE_RECIPES", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a toy gains nothing from threads
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows; pages without any find README's."""
    shown = [block for block in [*blocks(ROOT / "README.md"), *blocks(page)] if block.note.startswith("file: ")]
    for block in shown:
        path = folder / block.note.removeprefix("file: ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")


def through_the_door(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one of scripts/ as a person would, from another folder."""
    return subprocess.run([str(ROOT / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def in_this_process(command: list[str]) -> int:
    """Run `python -m largeforge ...` without starting Python and loading torch once more; a warning stays a warning, as for a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        return main(command[3:])


# ---- paths ----


def test_every_path_in_the_tree_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("## What lies where")[2]
    folder, paths = "", []
    for indent, name in re.findall(r"^ {4}( {2})?(\S+?/) +\S", tree, flags=re.MULTILINE):
        folder = folder if indent else name
        paths.append(folder + name if indent else name)
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).is_dir()]
    packages = {f"largeforge/{path.name}/" for path in (ROOT / "largeforge").iterdir() if (path / "__init__.py").is_file()}
    assert packages <= set(paths), f"the README's tree leaves out {packages - set(paths)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_page_is_in_the_index() -> None:
    named = set(re.findall(r"\]\(([^)/]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert named == {page.name for page in PAGES[1:]} - {"index.md"}


# ---- commands ----


def test_the_readme_opens_with_two_commands() -> None:
    """Proves SR-NF-043, SYS-U-005: three sentences, then the two commands of which the first installs and trains."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    opening = text.partition("# LargeForge\n")[2].partition("<!--")[0].strip()
    assert len(re.findall(r"[^.]+\.(?:\s|$)", opening)) == 3
    first = blocks(ROOT / "README.md")[0].commands()
    assert first == [["scripts/run"], ["scripts/test"]]


@pytest.mark.skipif(not (ROOT / ".venv" / "largeforge.stamp").is_file(), reason="scripts/install did not make this environment")
def test_one_command_trains(desk: Path) -> None:
    """Proves SR-NF-043, SYS-U-005: the first command of the README, on a toy model, ends with an artifact and answers before and after."""
    small = "model=nano data.num_rows=64 data.num_heldout=4 trainer.max_steps=2 benchmark.max_tokens=4 folder=out"
    done = through_the_door(["scripts/run", *small.split()], desk)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (desk / "out" / "artifact" / "manifest.json").is_file()
    assert "Before and after" in done.stdout + done.stderr


@pytest.mark.parametrize("page", run_pages(), ids=lambda page: page.name)
def test_commands_marked_run(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Every command of a page's run blocks, in the page's order, in one folder."""
    write_files(page, desk)
    monkeypatch.chdir(desk)
    with ExitStack() as servers:
        port = 0
        for block in blocks(page):
            if block.note == "run" or block.note.startswith("fails: "):
                expected = 0 if block.note == "run" else int(block.note.removeprefix("fails: "))
                for command in block.commands():
                    code = in_this_process(command)
                    said = capfd.readouterr()
                    assert code == expected, f"{shlex.join(command)} ended with {code}\n{said.out}\n{said.err}"
            elif block.note == "serve":
                port = servers.enter_context(served(block.commands()[0], desk))
                asked(Block("ask", block.text.replace("\\\n", " ").partition("\n")[2], "bash"), port, desk)
            elif block.note == "ask":
                asked(block, port, desk)


@contextmanager
def served(command: list[str], folder: Path) -> Iterator[int]:
    """Run a server as a user does while the block runs; yields its port, which the environment has set: not one that others may use."""
    port = free_port()
    said = folder / f"served_{port}.txt"
    with said.open("wb") as stream:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LARGEFORGE_SERVE__PORT": str(port)}
        server = subprocess.Popen([sys.executable, *command[1:]], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        until = time.monotonic() + 180
        while "ready in" not in said.read_text(encoding="utf-8"):
            assert server.poll() is None and time.monotonic() < until, said.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield port
        server.terminate()
        assert server.wait(60) == 0, said.read_text(encoding="utf-8")
    finally:
        server.kill()
        server.wait()


def asked(block: Block, port: int, folder: Path) -> None:
    """Run a block of shell or Python beside a server: it ends well, and says something that is no error."""
    text = block.text.replace("8000", str(port)).replace("8001", str(port + 1))
    if not text.strip():
        return
    program = [sys.executable, "-W", "error", "-c", text] if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(program, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() and '{"error"' not in done.stdout, text + done.stdout + done.stderr


@pytest.mark.parametrize(("page", "command"), list(checked_commands()))
def test_commands_compose_and_check(page: Path, command: list[str], desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Every other command: its config composes and passes the check (it wants a hub, a GPU, minutes or a keyboard)."""
    write_files(page, desk)
    if command[0].startswith("scripts/"):
        check_door(command)
        return
    for word in command:  # folders that an earlier run would have left
        if word.startswith("model=outputs/"):
            (desk / word.removeprefix("model=")).mkdir(parents=True)
    monkeypatch.chdir(desk)
    for words in points(command[3:]):
        code = main(words)
        said = capfd.readouterr()
        assert code == 0, said.out + said.err


def points(words: list[str]) -> list[list[str]]:
    """The first and the last point of a sweep, and its launcher; any other command as it is. All of them only shown."""
    if "-m" not in words:
        return [[*words, "--cfg", "job"]]
    settings = [word for word in words if word != "-m" and not word.startswith("hydra/")]
    pairs = [(word.partition("=")[0], word.partition("=")[2].split(",")) for word in settings]
    ends = [[*(f"{key}={values[end]}" for key, values in pairs), "--cfg", "job"] for end in (0, -1)]
    return [*ends, ["--cfg", "hydra", *(word for word in words if word.startswith("hydra/"))]]


def check_door(command: list[str]) -> None:
    """A script exists, is executable, is sound bash, and knows what it is given."""
    door, *arguments = command
    path = ROOT / door
    assert os.access(path, os.X_OK), path
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    said = path.read_text(encoding="utf-8")
    if door == "scripts/run" and arguments:
        pytest.fail("write scripts/run with arguments as python -m largeforge, or mark it run")
    if door == "scripts/bench" and arguments:
        said = subprocess.run([path, arguments[0], "--help"], capture_output=True, text=True, check=True).stdout
    if door == "scripts/requirements" and arguments:
        said = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
    assert not [argument for argument in arguments if argument.startswith("--") and argument not in said]


def test_the_main_job_composes(desk: Path) -> None:
    """scripts/run's own job, through its door: arguments are added to it, or replace it where they name a task or a recipe."""
    if not (ROOT / ".venv" / "largeforge.stamp").is_file():
        pytest.skip("scripts/install did not make this environment")
    added = through_the_door(["scripts/run", "trainer.max_steps=7", "--cfg", "job"], desk)
    assert added.returncode == 0, added.stderr
    assert all(line in added.stdout for line in ("max_steps: 7", "largeforge.data.demo.Demo", "largeforge.model.smollm2.SmolLM2"))
    replaced = through_the_door(["scripts/run", "task=chat", "model=nano", "--cfg", "job"], desk)
    assert replaced.returncode == 0, replaced.stderr
    assert "largeforge.task.chat.Chat" in replaced.stdout and "trainer:" not in replaced.stdout
