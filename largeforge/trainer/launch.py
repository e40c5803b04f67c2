"""Starts the processes of a run on this machine, and sees to their end: `trainer.devices` of them, each the same command line in the same folder.

Loads nothing heavy: the parent waits while its children train.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from largeforge.config.composed import Composed
from largeforge.console import Console
from largeforge.contract import Progress
from largeforge.errors import EXIT_CHECK_FAILED, EXIT_DOES_NOT_FIT, EXIT_DONE, EXIT_FAULT, EXIT_USER, InputError
from largeforge.process import die_with_parent, free_port
from largeforge.rank import STARTED_HERE
from largeforge.run import Run

POLL_S = 0.05
# One that failed ends the others' exchange at once, and they say so and end by themselves; what waits in a library is killed after this.
GRACE_S = 15.0
ENDED_HERE = -1000
ASKED_TWICE_S = 3.0
MEANT = (EXIT_DONE, EXIT_USER, EXIT_DOES_NOT_FIT, EXIT_CHECK_FAILED, 130, 143)


class Child(Protocol):
    """One process of the group, wherever it runs."""

    def poll(self) -> int | None:
        """Its exit code, the negative number of the signal that killed it, or None while it runs."""

    def send_signal(self, number: int) -> None:
        """Send it a signal."""


def launch(composed: Composed, *, folder: Path, progress: Console) -> int:
    """Run the story in `trainer.devices` processes of this machine; return its exit code.

    Args:
        composed: the run.
        folder: of the run; opened already.
        progress: where it is told what became of them, if they cannot say it themselves.

    Raises:
        InputError: the run is to use several machines: then torchrun, SLURM or Ray starts the processes.
    """
    trainer: Any = composed.config.trainer  # type: ignore[attr-defined]
    count = trainer.devices
    if trainer.nodes > 1:
        typed = " ".join(composed.overrides) + ("" if composed.config.folder else " folder=<one that all see>")
        raise InputError(
            f"trainer.nodes={trainer.nodes}: one process cannot start others on other machines.",
            next_step=f"on each machine: torchrun --nnodes {trainer.nodes} --nproc-per-node {count} --rdzv-backend c10d "
            f"--rdzv-endpoint <first machine>:29500 -m largeforge {typed}; or srun; or trainer=ray",
        )
    start = time.monotonic()
    port = free_port()
    words = command(composed, folder)
    with signals_kept() as signals:
        children = [start_child(words, environment_of(number, count, port=port), number=number, folder=folder) for number in range(count)]
        codes = wait_for_all(children, signals)
    return settle(codes, signals.first, composed=composed, folder=folder, progress=progress, seconds=time.monotonic() - start)


# ---- starting ----


def command(composed: Composed, folder: Path, **changes: str) -> list[str]:
    """The words that run the same again, in a folder that stands."""
    changes = {"folder": json.dumps(os.fspath(folder)), **changes}
    words = [word for word in composed.argv if word.lstrip("+").partition("=")[0] not in changes]
    return [sys.executable, "-m", "largeforge", *words, *(f"{key}={value}" for key, value in changes.items())]


def environment_of(number: int, count: int, *, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """What torchrun would set for this process."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "MASTER_PORT": port}
    return {name: str(value) for name, value in ranks.items()} | {
        "MASTER_ADDR": address,
        "TORCHELASTIC_RUN_ID": STARTED_HERE,
        "OMP_NUM_THREADS": threads,
    }


def start_child(
    words: Sequence[str], environment: dict[str, str], *, number: int, folder: Path, shown: bool = True, cwd: str | None = None
) -> subprocess.Popen[bytes]:
    """Start one process; the first has the terminal, what the others print lies beside their logs.

    It is in a session of its own, so that Ctrl-C reaches the parent alone, which passes it on once; and it dies with its parent.
    """
    said: Any = None
    if number or not shown:
        (folder / "ranks").mkdir(exist_ok=True)
        said = (folder / "ranks" / f"{number}.txt").open("ab")
    try:
        return subprocess.Popen(
            words,
            env={**os.environ, **environment},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    finally:
        if said is not None:
            said.close()


# ---- waiting ----


@dataclass
class Signals:
    """Signals that came; the first one (0 is none), and those that children were not told of yet."""

    first: int = 0
    pending: list[int] = field(default_factory=list)


@contextmanager
def signals_kept() -> Iterator[Signals]:
    """Keep SIGINT and SIGTERM for the children while the block runs."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def keep(number: int, frame: Any) -> None:
        signals.first = signals.first or number
        signals.pending.append(number)

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_all(children: Sequence[Child], signals: Signals, *, grace_s: float = GRACE_S, meanwhile: Callable[[], None] | None = None) -> list[int]:
    """Wait until every child has ended, and pass signals on; once one has failed, or the first is done, the others get `grace_s` seconds.

    Args:
        children: by rank.
        signals: what is to be passed on.
        grace_s: seconds.
        meanwhile: called again and again.

    Returns:
        exit codes by rank: the negative number of a signal for one that was killed elsewhere, `ENDED_HERE` for one that was killed here.
    """
    codes: list[int | None] = [None] * len(children)
    ended: set[int] = set()
    num_sent = 0
    deadline = 0.0
    try:
        while None in codes:
            for number, child in enumerate(children):
                if codes[number] is None:
                    code = child.poll()
                    codes[number] = ENDED_HERE if code == -signal.SIGKILL and number in ended else code
            while signals.pending:
                _send(children, signals.pending.pop(0))
                num_sent += 1
                if num_sent > 1 and not deadline:  # who asks twice means it, and a child may wait in a library that does not listen
                    deadline = time.monotonic() + ASKED_TWICE_S
            if meanwhile is not None:
                meanwhile()
            if not deadline and (codes[0] is not None or any(codes)):
                deadline = time.monotonic() + grace_s
            if deadline and time.monotonic() > deadline:
                ended |= {number for number, code in enumerate(codes) if code is None}
                _send(children, signal.SIGKILL)
            time.sleep(POLL_S)
    except BaseException:
        _send(children, signal.SIGKILL)
        raise
    return [code for code in codes if code is not None]


def _send(children: Sequence[Child], number: int) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            if child.poll() is None:
                child.send_signal(number)


def settle(codes: Sequence[int], signal_number: int, *, composed: Composed, folder: Path, progress: Progress, seconds: float) -> int:
    """Make one exit code of all, and tell and record what no child could.

    The first process's code stands where it means something; else that of another which does (a file that only it could not read).
    """
    if codes[0] in MEANT:
        return codes[0]
    others = [code for code in codes[1:] if code in MEANT and code != EXIT_DONE]
    run = Run(composed, folder=folder, progress=progress)  # type: ignore[arg-type]
    for number, code in enumerate(codes):
        if code < 0 and code != ENDED_HERE and not signal_number:
            progress.say(f"\nProcess {number} was killed by signal {-code}{' (often: out of memory)' if code == -signal.SIGKILL else ''}.")
        elif number and code > 0:
            progress.say(f"\nProcess {number}: {last_error(folder, number)}")
    if signal_number:
        progress.say("\nInterrupted before there was anything to keep.")
        run.finish("interrupted", seconds=seconds)
        return 128 + signal_number
    run.finish("failed", seconds=seconds)
    if any(code < 0 for code in codes):
        progress.say(f"Try: {run.command(folder=os.fspath(folder), resume='auto')}")
    return others[0] if others else EXIT_FAULT


def last_error(folder: Path, number: int) -> str:
    """The last thing that a process other than the first complained of."""
    path = folder / "ranks" / f"{number}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    errors = [json.loads(line)["message"] for line in lines if '"error"' in line]
    return str(errors[-1]).strip() if errors else f"ended without a word; see {folder / 'ranks'}"
