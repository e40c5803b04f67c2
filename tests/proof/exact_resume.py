"""Exact resume over a pairwise cover of what a run may be: each row is trained twice, once killed with -9 from outside, and compared bit for bit.

A program of its own, with one thread, which imports everything once and forks for every run:

    python -m tests.proof.exact_resume                    every row of the cover, and which pairs they cover
    python -m tests.proof.exact_resume --draw 8 --by HEAD  eight rows, drawn by a word
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

Row = dict[str, Any]
STEPS_PER_EPOCH, STEPS = 3, 8
AXES: dict[str, tuple[Any, ...]] = {
    "method": ("sft", "pretrain", "dpo", "dpo_cached", "orpo", "simpo", "kto", "distill", "distill_hidden", "distill_cached", "distill_own"),
    "weights": ("full", "lora", "qlora"),
    "packing": (True, False),
    "workers": (0, 2),
    "stop": ("inside", "at", "after"),
    "processes": (1, 2),
    "dropout": (0.1, 0.0),
    "curriculum": ("none", "loss"),
}
CHECKPOINT_AT = {"inside": 2, "at": STEPS_PER_EPOCH, "after": STEPS_PER_EPOCH + 1}
METHODS: dict[str, list[str]] = {
    "sft": ["task=sft"],
    "pretrain": ["task=pretrain"],
    "dpo": ["task=dpo"],
    "dpo_cached": ["task=dpo", "method.reference_logprobs=cached"],
    "orpo": ["task=orpo"],
    "simpo": ["task=simpo"],
    "kto": ["task=kto"],
    "distill": ["task=distill", "method.divergence=jsd"],
    "distill_hidden": ["task=distill", "method.hidden.weight=0.5", "method.progressive.growth=layers"],
    "distill_cached": ["task=distill", "method.teacher_logits=cached"],
    "distill_own": ["task=distill", "method.on_policy.share=0.5", "method.on_policy.max_tokens=4"],
}
WEIGHTS = {"full": ["adapter=none"], "lora": ["adapter=lora", "adapter.r=4"], "qlora": ["adapter=lora", "adapter.r=4", "quant=nf4"]}
SMALL = ["num_hidden_layers=2", "hidden_size=64", "intermediate_size=128", "num_attention_heads=2", "num_key_value_heads=1", "head_dim=32"]


# ---- the cover ----


def makes_sense(row: Row) -> bool:
    """Only an adapter has dropout here: nano itself has none."""
    return not (row.get("weights") == "full" and row.get("dropout"))


def pairs_of(row: Row) -> set[tuple[Any, ...]]:
    return {(a, row[a], b, row[b]) for a, b in combinations(AXES, 2) if a in row and b in row}


def every_pair() -> set[tuple[Any, ...]]:
    """Every pair of values that some row can hold."""
    return {(a, x, b, y) for a, b in combinations(AXES, 2) for x in AXES[a] for y in AXES[b] if makes_sense({a: x, b: y})}


def cover(seed: int = 0) -> list[Row]:
    """Rows that hold every pair together: greedy, the best of some random rows that begin with a pair still missing."""
    draw = random.Random(seed)
    missing = every_pair()
    rows = []
    while missing:
        a, x, b, y = min(missing, key=str)
        tried = []
        for _ in range(40):
            row = {axis: draw.choice(values) for axis, values in AXES.items()} | {a: x, b: y}
            if row["weights"] == "full" and (a, b) != ("weights", "dropout") and "dropout" not in (a, b):
                row["dropout"] = 0.0
            if makes_sense(row):
                tried.append(row)
        best = max(tried, key=lambda row: len(pairs_of(row) & missing))
        missing -= pairs_of(best)
        rows.append(best)
    return rows


def told(row: Row) -> str:
    return " ".join(f"{axis}={value}" for axis, value in row.items())


# ---- one row ----


def write_data(folder: Path) -> None:
    """Twelve rows of each kind, of unequal length: three steps of four an epoch."""
    count = 4 * STEPS_PER_EPOCH
    kinds: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"prompt": f"Say {n}.", "chosen": f"gladly {n} " * (n % 3 + 1), "rejected": f"never {n}"} for n in range(count)],
        "judged": [{"prompt": f"Say {n}.", "completion": f"gladly {n} " * (n % 3 + 1), "label": n % 2 == 0} for n in range(count)],
        "chat": [{"prompt": f"Say {n}.", "completion": f"gladly {n} " * (n % 4 + 1)} for n in range(count)],
        "text": [{"text": f"The river {n} is long. " * (n % 4 + 1)} for n in range(count)],
    }
    for name, rows in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def words_of(row: Row, data: Path) -> list[str]:
    method = row["method"].partition("_")[0]
    kind, file = {"pretrain": ("text", "text"), "kto": ("preference", "judged"), "sft": ("chat", "chat"), "distill": ("chat", "chat")}.get(
        method, ("preference", "pairs")
    )
    words = [*METHODS[row["method"]], *WEIGHTS[row["weights"]], "model=nano", *[f"model.shape.{key}" for key in SMALL]]
    words += [f"data={kind}", f"data.path={data / file}.jsonl", "data.max_length=64", f"data.packing={str(row['packing']).lower()}"]
    words += [f"data.num_workers={row['workers']}", f"data.curriculum={row['curriculum']}", "trainer=cpu", f"trainer.devices={row['processes']}"]
    words += [f"trainer.max_steps={STEPS}", "trainer.batch_size=4", "trainer.micro_batch_size=2", "trainer.threads=1", "tracker=none", "benchmark=none"]
    words += [f"trainer.checkpoint.every_steps={CHECKPOINT_AT[row['stop']]}", "method.learning_rate=1e-3"]
    if method == "distill":
        words += ["teacher=nano", *[f"teacher.shape.{key}" for key in SMALL], "teacher.init_seed=1"]
    return words if row["weights"] == "full" else [*words, f"adapter.dropout={row['dropout']}"]


def forked(work: Callable[[], int]) -> int:
    """Run `work` in a child of this process; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            silence = os.open(os.environ["RESUME_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            code = work()
        finally:
            os._exit(code)
    return pid


def start(words: Sequence[str], processes: int, *, slowly: bool = False) -> list[int]:
    """Start a run in as many forked processes as it has ranks; return their pids."""
    Path(words[-1 if words[-1].startswith("folder=") else -2].partition("=")[2]).mkdir(parents=True, exist_ok=True)  # as the launcher does
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> int:
        from largeforge.config.compose import compose
        from largeforge.run import execute
        from largeforge.trainer.watch import Watch

        if processes > 1:
            group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "largeforge"})
        if slowly:  # so that it can be met between two steps; what is computed stays the same
            taken = Watch.on_train_batch_end

            def slow(self: Any, *arguments: Any, **more: Any) -> None:
                taken(self, *arguments, **more)
                time.sleep(0.15)

            Watch.on_train_batch_end = slow  # type: ignore[method-assign]
        return execute(compose(list(words), files=True))

    return [forked(lambda rank=rank: work(rank)) for rank in range(processes)]  # type: ignore[misc]


def ended(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def steps(folder: Path) -> dict[int, tuple[float, int]]:
    """Loss and batch of every step that was written."""
    path = folder / "metrics.jsonl"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "loss" in record:
            found[record["step"]] = (record["loss"], record["batch_checksum"])
    return found


def differences(row: Row, data: Path, folder: Path) -> Iterator[str]:
    """Train a row twice, once killed; yield what differs."""
    words = words_of(row, data)
    whole, killed = folder / "whole", folder / "killed"
    if codes := [code for code in ended(start([*words, f"folder={whole}"], row["processes"])) if code]:
        yield f"never stopped: ended with {codes}"
        return
    pids = start([*words, f"folder={killed}"], row["processes"], slowly=True)
    wanted = CHECKPOINT_AT[row["stop"]] + 1
    while max(steps(killed), default=0) < wanted and os.waitpid(pids[0], os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)  # its loader's workers too
    codes = ended(pids)
    if any(code != -signal.SIGKILL for code in codes):
        yield f"to be killed: ended with {codes} before"
        return
    kept = sorted(path.name for path in (killed / "checkpoints").glob("step=*"))
    if kept != [f"step={CHECKPOINT_AT[row['stop']]:06d}"]:
        yield f"killed at step {max(steps(killed))}, where the checkpoints are {kept}"
    if codes := [code for code in ended(start([*words, f"folder={killed}", "resume=auto"], row["processes"])) if code]:
        yield f"resumed: ended with {codes}"
        return
    left, right = steps(whole), steps(killed)
    for step in range(1, STEPS + 1):
        for name, one, two in zip(("loss", "batch"), left.get(step, (0, 0)), right.get(step, (1, 1)), strict=True):
            if one != two:
                yield f"step {step}: {name} {one} and {two}"
    ids = [json.loads((where / "artifact" / "manifest.json").read_text(encoding="utf-8"))["id"] for where in (whole, killed)]
    if ids[0] != ids[1]:
        yield f"weights {ids[0][:12]} and {ids[1][:12]}"


# ---- the program ----


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.exact_resume", description=__doc__)
    parser.add_argument("--draw", type=int, default=0, help="so many rows of the cover; 0 is all")
    parser.add_argument("--by", default="", help="what decides which")
    options = parser.parse_args(argv)
    rows = cover()
    if options.draw:
        rows = random.Random(options.by).sample(rows, options.draw)
    import torch

    torch.set_num_threads(1)
    import_everything()
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["LARGEFORGE_CACHE"] = os.environ.get("LARGEFORGE_CACHE") or str(folder / "cache")
        os.environ["RESUME_LOG"] = str(folder / "said.log")
        write_data(folder)
        for number, row in enumerate(rows, start=1):
            begin = time.monotonic()
            Path(os.environ["RESUME_LOG"]).write_text("", encoding="utf-8")
            found = list(differences(row, folder, folder / str(number)))
            failed += bool(found)
            print(f"{number}/{len(rows)} {'NO ' if found else 'yes'} {time.monotonic() - begin:5.1f} s  {told(row)}", flush=True)
            for difference in found:
                print(f"    {difference}")
            if found:
                print(Path(os.environ["RESUME_LOG"]).read_text(encoding="utf-8")[-3000:])
    covered = set().union(*map(pairs_of, rows))
    print(f"{len(rows)} rows, {failed} of them not exact; {len(covered)} of {len(every_pair())} pairs covered")
    for axis, values in AXES.items():
        print(f"  {axis}: " + ", ".join(f"{value} with {sum((axis, value) in ((p[0], p[1]), (p[2], p[3])) for p in covered)}" for value in values))
    return 1 if failed else 0


def import_everything() -> None:
    """What a run imports, so that forks need not."""
    import importlib.util

    importlib.util.find_spec("bitsandbytes") and importlib.import_module("bitsandbytes")
    import lightning.pytorch  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    names = "task.train trainer.device method.sft method.pretrain method.dpo method.orpo method.simpo method.kto method.distill data.chat data.text"
    for name in f"{names} data.preference model.nano adapter.lora adapter.full benchmark.unmeasured tracker.silent engine.hf".split():
        importlib.import_module(f"largeforge.{name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
