"""Several processes from one command: who is told of a signal, what one that dies costs, and a whole run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from largeforge.config.compose import compose
from largeforge.console import Console
from largeforge.errors import ConfigError
from largeforge.process import free_port
from largeforge.rank import STARTED_HERE
from largeforge.run import execute
from largeforge.trainer.launch import ENDED_HERE, Signals, command, environment_of, settle, start_child, wait_for_all
from tests.task.conftest import chat_rows

WAITS = "import time; time.sleep(60)"
GENTLE = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); print('ready', flush=True); time.sleep(60)"


def children(folder: Path, *programs: str) -> list[subprocess.Popen[bytes]]:
    return [start_child([sys.executable, "-c", text], {}, number=number, folder=folder, shown=False) for number, text in enumerate(programs)]


def test_all_end_well(tmp_path: Path) -> None:
    assert wait_for_all(children(tmp_path, "pass", "pass"), Signals()) == [0, 0]


@pytest.mark.parametrize(("programs", "codes"), [((WAITS, "exit(3)"), [ENDED_HERE, 3]), (("exit(0)", WAITS), [0, ENDED_HERE])])
def test_who_cannot_go_on_alone_is_ended(tmp_path: Path, programs: tuple[str, str], codes: list[int]) -> None:
    """One failed, or the first is done: the others get their grace and no more."""
    assert wait_for_all(children(tmp_path, *programs), Signals(), grace_s=0.3) == codes


def test_one_that_was_killed_is_told_from_one_that_was_ended(tmp_path: Path) -> None:
    both = children(tmp_path, WAITS, WAITS)
    both[1].kill()
    assert wait_for_all(both, Signals(), grace_s=0.3) == [ENDED_HERE, -signal.SIGKILL]


def test_a_signal_reaches_every_child_once(tmp_path: Path) -> None:
    both = children(tmp_path, GENTLE, GENTLE)
    for number in range(2):
        while not (tmp_path / "ranks" / f"{number}.txt").read_text():
            time.sleep(0.02)
    assert wait_for_all(both, Signals(first=signal.SIGTERM, pending=[signal.SIGTERM])) == [143, 143]


@pytest.mark.parametrize(
    ("codes", "signalled", "code", "said"),
    [
        ([0, ENDED_HERE], 0, 0, ""),
        ([143, 143], 15, 143, ""),
        ([1, 2], 0, 2, "Process 1: rows.jsonl is gone"),
        ([1, -9], 0, 1, "Process 1 was killed by signal 9 (often: out of memory)"),
        ([-15, -15], 15, 143, "Interrupted before"),
    ],
)
def test_many_codes_become_one(tmp_path: Path, codes: list[int], signalled: int, code: int, said: str) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "1.jsonl").write_text(json.dumps({"level": "error", "message": "rows.jsonl is gone"}) + "\n")
    told: list[str] = []
    progress = SimpleNamespace(say=told.append)
    composed = SimpleNamespace(task="sft", config=None, overrides=("task=sft",))
    assert settle(codes, signalled, composed=composed, folder=tmp_path, progress=progress, seconds=1.0) == code  # type: ignore[arg-type]
    assert said in "\n".join(told) and bool(told) == bool(said)
    # what the first process could not write, its parent does
    assert (tmp_path / "result.json").is_file() == bool(said)


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    """Also where the parent is killed with -9 and can tell nobody."""
    text = "from pathlib import Path; import sys, time; from largeforge.trainer.launch import start_child; "
    text += (
        f"print(start_child([sys.executable, '-c', {WAITS!r}], {{}}, number=0, folder=Path({str(tmp_path)!r}), shown=False).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs([child], timeout=5)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_children_run_the_same_words(tmp_path: Path) -> None:
    composed = compose(["task=sft", "model=nano", "trainer.devices=2", "trainer.threads=1", "folder=elsewhere", "resume=auto"])
    words = command(composed, tmp_path / "a b")
    assert words[1:-1] == ["-m", "largeforge", "task=sft", "model=nano", "trainer.devices=2", "trainer.threads=1", "resume=auto"]
    again = compose(words[3:])
    assert again.config.folder == str(tmp_path / "a b") and again.config.trainer.devices == 2  # type: ignore[attr-defined]


# ---- whole runs ----

WORDS = ("task=sft", "model=nano", "data=chat", "data.max_length=128", "trainer.precision=fp32", "trainer.batch_size=4", "trainer.micro_batch_size=2")


@pytest.fixture
def place(tmp_path: Path, nano_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 25 rows: the last step of an epoch has one, and one process then has none."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows(25)), encoding="utf-8")
    return tmp_path


def go(*words: str) -> int:
    return execute(compose([*WORDS, "data.path=rows.jsonl", *words]))


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_run_on_two_processes(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-F-016: one command, two processes, one run: losses of one process, told once, written once."""
    assert go("trainer=cpu", "folder=one", "data.validation=0.2") == 0
    capfd.readouterr()
    assert go("trainer=cpu", "folder=two", "data.validation=0.2", "trainer.devices=2") == 0
    said = capfd.readouterr().err
    assert said.count("run folder:") == 1 and said.count("artifact:") == 1 and "Traceback" not in said
    one, two = losses(place / "one"), losses(place / "two")
    assert one.keys() == two.keys() and len(one) > 3
    assert max(abs(two[step] / one[step] - 1) for step in one) < 1e-5
    results = [json.loads((place / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[1]["status"] == "done" and results[1]["artifact"] == "two/artifact"
    for key in ("validation_loss", "supervised_tokens"):
        assert results[1]["metrics"][key] == pytest.approx(results[0]["metrics"][key], rel=1e-5)
    configs = [(place / name / "artifact" / "adapter_config.json").read_bytes() for name in ("one", "two")]
    assert configs[0] == configs[1]  # each process hashes words in its own way
    assert "start sft" in (place / "two" / "ranks" / "1.jsonl").read_text()


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "largeforge", *WORDS, "data.path=rows.jsonl", *words]
    return subprocess.Popen(argv, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").is_file() and max(losses(folder), default=0) >= step):
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = ("trainer=cpu", "trainer.max_steps=40", "adapter.dropout=0.1", "trainer.checkpoint.every_steps=5", "trainer.devices=2")


def weights(folder: Path) -> bytes:
    return (folder / "artifact" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_stopped_and_killed_runs_go_on_exactly(place: Path, strategy: str) -> None:
    """Proves SYS-F-018 on two processes: SIGTERM writes a checkpoint and exits 143, a process killed with -9 ends the run; both go on to equal bytes."""
    words = (*LONG, f"trainer.strategy={strategy}", "benchmark=none")
    assert go(*words, "folder=whole") == 0
    run = start(*words, "folder=stopped")
    wait_for_step(place / "stopped", 6)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 143 and "a checkpoint was written" in said and said.count("Ended at step") == 1
    assert json.loads((place / "stopped" / "result.json").read_text())["status"] == "interrupted"
    run = start(*words, "folder=stopped", "resume=auto")
    wait_for_step(place / "stopped", 12)
    psutil.Process(run.pid).children()[1].kill()
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 1 and "Process 1 was killed by signal 9" in said and "internal fault" not in said and "resume=auto" in said
    assert json.loads((place / "stopped" / "result.json").read_text())["status"] == "failed"
    assert go(*words, "folder=stopped", "resume=auto") == 0
    assert weights(place / "stopped") == weights(place / "whole")


@pytest.mark.slow
def test_torchrun_decides_ranks_and_the_first_one_the_folder(place: Path) -> None:
    """Proves SYS-F-016 under torchrun: on one machine of two processes without a folder, and as two machines of one process each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    words = ["-m", "largeforge", *WORDS, "data.path=rows.jsonl", "trainer=cpu", "trainer.max_steps=3"]
    subprocess.run([*torchrun, "--nproc-per-node", "2", *words, "trainer.devices=2"], check=True, timeout=120, capture_output=True)
    (folder,) = (place / "outputs" / "sft").glob("*/*")
    nodes = [
        subprocess.Popen([*torchrun, "--nnodes", "2", "--node-rank", number, "--nproc-per-node", "1", *words, "trainer.nodes=2", "folder=nodes"])
        for number in "01"
    ]
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    assert losses(folder) == losses(place / "nodes") and len(losses(folder)) == 3
    wrong = subprocess.run([*torchrun, "--nproc-per-node", "2", *words, "folder=wrong"], timeout=120, capture_output=True, text=True)
    assert wrong.returncode != 0 and "trainer.devices=2 trainer.nodes=1" in wrong.stderr


@pytest.mark.slow
def test_tasks_of_srun_find_one_another(place: Path) -> None:
    """What srun would start: two tasks with SLURM's variables alone. A cluster itself is not here."""
    words = ("trainer=cpu", "trainer.max_steps=3", "trainer.devices=2", "folder=slurm")
    step = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "localhost"}
    step |= {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0"}
    tasks = [start(*words, **step, SLURM_PROCID=number, SLURM_LOCALID=number) for number in "01"]
    said = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "artifact:" in said[0] and said[1] == "" and len(losses(place / "slurm")) == 3


@pytest.mark.slow
def test_a_worker_of_ray_that_dies_is_replaced(place: Path) -> None:
    """Proves SYS-F-016, SYS-R-006 in part, on a real Ray cluster: a worker killed with -9 in mid-run; the run ends with equal weights all the same."""
    pytest.importorskip("ray")
    assert go(*LONG, "folder=whole") == 0
    run = start(*(word for word in LONG if word != "trainer=cpu"), "trainer=ray", "folder=ray", CUDA_VISIBLE_DEVICES="")
    wait_for_step(place / "ray", 8)
    next(one for one in psutil.Process(run.pid).children(recursive=True) if one.cmdline()[:1] == ["ray::Worker"]).kill()
    said = run.communicate(timeout=180)[0]
    assert run.returncode == 0 and "starting again from the newest checkpoint (1 of 3)" in said
    assert weights(place / "ray") == weights(place / "whole")


def test_several_machines_are_not_started_from_one(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert go("trainer=cpu", "trainer.nodes=2", "trainer.devices=2", "folder=two") == 2
    assert "torchrun --nnodes 2 --nproc-per-node 2" in capfd.readouterr().err


def test_a_group_of_another_size_than_was_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, value in environment_of(0, 2, port=1).items():
        monkeypatch.setenv(name, value)
    assert os.environ["TORCHELASTIC_RUN_ID"] == STARTED_HERE
    assert go("trainer=cpu", "folder=two") == 2
    assert "2 processes were started on each of 1 machines, but trainer.devices=1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "key", "mend"),
    [
        ("trainer.strategy=fsdp", "trainer.strategy", "trainer.devices=2"),
        ("trainer.devices=2 trainer.strategy=fsdp trainer.precision=fp16", "trainer.precision", "trainer.precision=bf16"),
        ("trainer.devices=2 trainer.strategy=fsdp trainer.optimizer=adafactor", "trainer.optimizer", "trainer.optimizer=adamw"),
        ("trainer.devices=2 trainer.strategy=fsdp benchmark=exact_match", "benchmark", "benchmark=none"),
        ("trainer.devices=2 trainer.strategy=fsdp trainer.checkpoint.content=weights", "trainer.checkpoint.content", "trainer.checkpoint.content=full"),
        ("trainer.devices=4 trainer.nodes=4 trainer.batch_size=8", "trainer.batch_size", "trainer.batch_size=16"),
        ("trainer.decay_ratio=0.2", "trainer.decay_ratio", "trainer.schedule=wsd"),
        ("trainer.schedule=wsd trainer.warmup_ratio=0.5 trainer.decay_ratio=0.6", "trainer.decay_ratio", "trainer.decay_ratio=0.5"),
    ],
)
def test_what_makes_no_sense_together_is_told_with_the_mend(words: str, key: str, mend: str) -> None:
    common = ["task=sft", "model=nano", "data=chat", "data.path=rows.jsonl"]
    with pytest.raises(ConfigError) as told:
        compose([*common, *words.split()])
    (problem,) = told.value.problems
    assert problem.key.startswith(key) and mend in str(told.value.next_step)
    compose([*common, *(word for word in words.split() if word.partition("=")[0] != mend.partition("=")[0]), mend])


def test_silent_console_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    console: Any = Console.silent()
    console.say("hello")
    console.table("title", ("column",), [("cell",)])
    console.bar("bar", total=1).close()
    assert capfd.readouterr() == ("", "")
