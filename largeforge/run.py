"""A run: its folder, what it logs and leaves, how it ends; and `execute`, which takes a checked config to an exit code.

Knows nothing about models or data: stories do the work, a run keeps what they leave.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from largeforge.artifact import Artifact, write_artifact, write_atomically
from largeforge.build import find
from largeforge.config.composed import Composed
from largeforge.console import Console
from largeforge.contract import Reference
from largeforge.errors import (
    EXIT_DOES_NOT_FIT,
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_USER,
    DoesNotFit,
    InputError,
    Interrupted,
    LargeForgeError,
    ran_out_of_disk,
    ran_out_of_memory,
)
from largeforge.rank import Rank, from_slurm, lost_another, rank_of

RESULT = "result.json"
ALONE = Rank()
log = logging.getLogger("largeforge")


class Run:
    """What a story works in.

    Args:
        composed: the checked config.
        folder: the run's own folder; exists.
        progress: where long work is shown.
        rank: which process of a group this is; only the first one writes what the run leaves, the others their log.
    """

    def __init__(self, composed: Composed, *, folder: Path, progress: Console, rank: Rank = ALONE) -> None:
        self.composed = composed
        self.config: Any = composed.config
        self.folder = folder
        self.progress = progress
        self.rank = rank
        self.metrics: dict[str, float] = {}
        self.signal_number = 0
        self.listen: Callable[[], None] = lambda: None  # take the signals again, where a library has taken them
        self.outcome = "done"  # the status of result.json where the story ends well; "incomplete" where it left less than was asked for
        self.result_artifact: Artifact | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes what the run leaves; one that is alone does."""
        return self.rank.leads

    @property
    def log_path(self) -> Path:
        """Where this process logs."""
        return self.folder / "log.jsonl" if self.leads else self.folder / "ranks" / f"{self.rank.number}.jsonl"

    @property
    def stop_asked(self) -> bool:
        """Whether Ctrl-C or SIGTERM came: long work ends at its next safe point and calls `interrupt`."""
        return self.signal_number != 0

    def interrupt(self, message: str, *, next_step: str = "") -> Interrupted:
        """The error that ends an interrupted story."""
        return Interrupted(message, signal_number=self.signal_number or signal.SIGINT, next_step=next_step)

    def command(self, **changes: str) -> str:
        """The command line of this run with other values, to be typed as it is."""
        words = [word for word in self.composed.overrides if word.partition("=")[0] not in changes]
        return shlex.join(["python", "-m", "largeforge", *words, *(f"{key}={value}" for key, value in changes.items())])

    def measure(self, **metrics: float) -> None:
        """Record numbers of result.json, by flat names."""
        self.metrics.update(metrics)

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.leads:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after a step: those of steps that a run which goes on takes again."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            whole = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]  # a killed process may leave half a line
            write_atomically(path, "".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= step))

    def artifact(self, fill: Callable[[Path], str], *, parents: Sequence[Reference]) -> Artifact:
        """Write the run's artifact.

        Args:
            fill: writes the payload into the folder it is given and returns its kind ("model", "adapter", "data").
            parents: what it was made from.
        """
        self.result_artifact = write_artifact(self.folder / "artifact", fill=fill, parents=parents, config=self.composed.values)
        return self.result_artifact

    def finish(self, status: str, *, seconds: float) -> None:
        """Write result.json."""
        if not self.leads:
            return
        artifact = str(self.result_artifact.folder) if self.result_artifact else None
        result = {"task": self.composed.task, "status": status, "artifact": artifact, "seconds": round(seconds, 3), "metrics": self.metrics}
        write_atomically(self.folder / RESULT, json.dumps(result, indent=2) + "\n")


def execute(composed: Composed) -> int:
    """Run the story that a checked config names; return the exit code (design: 0, 1, 2, 3, 4, 130, 143)."""
    config = composed.config
    progress: Any = Console()
    start = time.monotonic()
    run: Run | None = None
    story: Any = None
    starved = ""
    status, code = "failed", EXIT_FAULT
    try:
        story = find(config.task.target)(config)
        if config.plan is not False:
            return _plan(story, composed, progress)
        os.environ.update(from_slurm(os.environ))
        rank, trainer = rank_of(os.environ), getattr(config, "trainer", None)
        work = story.verify if getattr(config, "verify", "none") != "none" else story.run
        launcher = getattr(trainer, "launcher", "")
        if launcher and work == story.run and rank.world_size == 1 and not rank.started_here:
            return int(find(launcher)(composed, folder=open_folder(composed), progress=progress))
        progress = progress if rank.leads else Console.silent()
        run = Run(composed, folder=_folder(composed, rank), progress=progress, rank=rank)
        with logging_to(run.log_path, level=config.log_level, form=config.log_format, shown=run.leads), signals_to(run):
            if run.leads:
                write_atomically(run.folder / "config.yaml", _yaml(composed.values))
            log.info("start %s in %s", composed.task, run.folder, extra={"overrides": list(composed.overrides)})
            work(run)
            log.info("done in %.1f s", time.monotonic() - start)
        status, code = run.outcome, EXIT_DONE
    except LargeForgeError as error:
        status, code = ("interrupted" if isinstance(error, Interrupted) else "failed"), error.exit_code
        progress.say(f"\n{error}")
        _note_failure(run, str(error))
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns a second Ctrl-C into an exit
        if isinstance(stop, SystemExit) and not (run and run.signal_number):
            raise
        status, code = "interrupted", 128 + (run.signal_number if run and run.signal_number else signal.SIGINT)
        progress.say("\nStopped at once; the last checkpoint is the newest in the run's folder." if run and run.signal_number else "\nInterrupted.")
    except Exception as fault:
        if ran_out_of_memory(fault):
            starved = str(fault).partition("\n")[0] or type(fault).__name__
        elif ran_out_of_disk(fault):
            status, code = "failed", EXIT_USER
            full = InputError(
                f"the disk is full ({fault}).", next_step="free some disk; then " + (run.command(folder=str(run.folder), resume="auto") if run else "")
            )
            progress.say(f"\n{full}")
            _note_failure(run, str(full))
        elif run is not None and run.rank.world_size > 1 and lost_another(fault):
            gone = "Another process of this run ended, and this one cannot go on alone."
            progress.say(f"\n{gone}")
            _note_failure(run, gone)
        else:
            progress.say(f"\nAn internal fault of LargeForge ({type(fault).__name__}: {fault}). Please report it with the lines below.")
            progress.say(traceback.format_exc())
            _note_failure(run, traceback.format_exc())
    if starved:  # told here, where nothing holds the story's model any more: what would fit is planned in the memory that it left
        told = _no_memory(starved, story, run, progress)
        status, code = "failed", told.exit_code
        progress.say(f"\n{told}")
        _note_failure(run, str(told))
    if run is not None:
        try:
            run.finish(status, seconds=time.monotonic() - start)
        except OSError as fault:
            progress.say(f"{run.folder / RESULT} could not be written: {fault}.")
    return code


def _no_memory(what: str, story: Any, run: Run | None, progress: Console) -> DoesNotFit:
    """Out of memory, with what the story knows would fit."""
    error = DoesNotFit(f"out of memory: {what}", next_step="a smaller model, smaller batches, or another device; plan=true says what a run needs")
    try:
        advice = story.relief(run, progress=progress) if run is not None and run.leads and hasattr(story, "relief") else None
    except Exception as fault:  # advice that fails must not hide what it was about
        log.warning("what would fit could not be planned: %s", fault)
        return error
    return error if advice is None else DoesNotFit(f"{error.message}\n{advice.message}", next_step=advice.next_step)


def _folder(composed: Composed, rank: Rank) -> Path:
    """The run's folder: opened here, or by the first process of the group, or by LargeForge when it started the group."""
    trainer = getattr(composed.config, "trainer", None)
    if rank.world_size > 1 and (trainer is None or (trainer.devices, trainer.nodes) != (rank.local_size, rank.world_size // rank.local_size)):
        nodes = rank.world_size // rank.local_size
        asked = f"trainer.devices={trainer.devices} on trainer.nodes={trainer.nodes}" if trainer else f"task={composed.task} runs in one"
        raise InputError(
            f"{rank.local_size} processes were started on each of {nodes} machines, but {asked}.",
            next_step=f"trainer.devices={rank.local_size} trainer.nodes={nodes}" if trainer else "the same command without torchrun",
        )
    if rank.started_here:
        folder = Path(composed.config.folder or ".")
    elif rank.world_size > 1:
        folder = find("largeforge.trainer.group.folder_of_group")(rank, lambda: open_folder(composed))
    else:
        folder = open_folder(composed)
    if not rank.leads:
        (folder / "ranks").mkdir(exist_ok=True)
    return folder


def open_folder(composed: Composed) -> Path:
    """Make the run's folder; one that holds a run already is refused unless `resume` says to go on in it."""
    config = composed.config
    if config.folder is not None:
        folder = Path(config.folder)
        if holds_run(folder) and config.resume == "never":
            raise InputError(f"folder={folder} holds a run already.", next_step="resume=auto to go on with it, or another folder=...")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"folder={folder} is a file.", next_step="another folder=...")
        folder.mkdir(parents=True, exist_ok=True)
        return _without_drafts(folder)
    unfinished = newest_unfinished(composed) if config.resume == "auto" else None
    if unfinished is not None:
        return _without_drafts(unfinished)
    now = datetime.now()
    day = Path("outputs") / composed.task / now.strftime("%Y-%m-%d")
    day.mkdir(parents=True, exist_ok=True)
    for attempt in range(100):
        folder = day / (now.strftime("%H-%M-%S") + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise InputError(f"no free folder for a run under {day}.", next_step="another folder=...")


def _without_drafts(folder: Path) -> Path:
    """Remove what a process that was killed while it wrote the artifact left half."""
    for draft in folder.glob(".artifact.*"):
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def holds_run(folder: Path) -> bool:
    """Whether a run stands here, finished or not."""
    return (folder / "config.yaml").is_file() or (folder / RESULT).is_file()


def newest_unfinished(composed: Composed) -> Path | None:
    """The newest run of this task and name that did not end well."""
    candidates = sorted((Path("outputs") / composed.task).glob("*/*/config.yaml"), reverse=True)
    for path in candidates:
        result = path.parent / RESULT
        finished = result.is_file() and json.loads(result.read_text(encoding="utf-8"))["status"] == "done"
        if not finished and _name_of(path) == composed.config.name:
            return path.parent
    return None


@contextmanager
def logging_to(path: Path, *, level: str, form: str, shown: bool = True) -> Iterator[None]:
    """Send the log to `path` as JSON lines, and to standard error in the chosen form where it is `shown`, while the block runs."""
    file, terminal = logging.FileHandler(path, encoding="utf-8"), logging.StreamHandler(sys.stderr)
    file.setFormatter(JSONLines())
    terminal.setFormatter(JSONLines() if form == "json" else logging.Formatter("%(levelname)s %(message)s"))
    # what the user watches is said by the progress; the console shows log lines only where they ask for them or warn
    terminal.setLevel(logging.DEBUG if form == "json" or level == "debug" else logging.WARNING)
    if not shown:
        terminal.setLevel(logging.CRITICAL + 1)
    root = logging.getLogger()
    before = root.level
    for handler in (file, terminal):
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    # peft loads it where it is installed, and it advises every run on kernels that only 4-bit weights on some CPUs could use
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    log.setLevel(level.upper())
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        for handler in (file, terminal):
            root.removeHandler(handler)
            with suppress(OSError):  # a full disk: what could be written was
                handler.close()


class JSONLines(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, and what the caller added."""

    _STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
    _encode = json.JSONEncoder(default=str).encode

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in self._STANDARD})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self._encode(line)


@contextmanager
def signals_to(run: Run) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `run.stop_asked`; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    owner = os.getpid()

    def ask(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a forked worker: Ctrl-C is its parent's to answer, anything else ends it
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if run.signal_number:
            raise KeyboardInterrupt
        run.signal_number = number
        run.progress.say("Stopping at the next safe point; once more stops at once.")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def listen() -> None:
        for number in before:
            signal.signal(number, ask)

    listen()
    run.listen = listen
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plan(story: Any, composed: Composed, progress: Console) -> int:
    plan = story.plan(progress=progress)
    if not plan.fits and hasattr(story, "suggest"):
        plan.suggestions = story.suggest(composed)
    plan.render()
    return EXIT_DONE if plan.fits else EXIT_DOES_NOT_FIT


def _note_failure(run: Run | None, text: str) -> None:
    if run is None:
        return
    line = {"time": datetime.now().astimezone().isoformat(timespec="milliseconds"), "level": "error", "logger": "largeforge", "message": text}
    with suppress(OSError), run.log_path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + os.linesep)


def _name_of(config_yaml: Path) -> str | None:
    import yaml

    name = yaml.safe_load(config_yaml.read_text(encoding="utf-8")).get("name")
    return None if name is None else str(name)


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
