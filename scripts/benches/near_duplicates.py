"""Near-duplicates against datatrove's MinHash: recall and precision on planted rows, seconds and memory of both.

Both sides read the same JSON Lines files and write the rows that stay, with two processes, as processes of their own, in turn. datatrove lives in an
environment that this bench makes in the user's cache. Planted: a tenth of the rows, edited copies at a Jaccard of 0.8 to 0.95 of word 5-grams, counted
over all of them; and half as many decoys, at 0.6 to below 0.8, which must stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from scripts.benches.near_rows import LOW, Made, jaccard, ngrams, rows
from scripts.benches.table import Row, Table
from scripts.environments import programs

ROOT = Path(__file__).resolve().parents[2]
SIDE = Path(__file__).with_name("near_duplicates_side.py")
POLL_S = 0.1
MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One run of one side."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    kept: list[int]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench near_duplicates", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, each side once")
    options = parser.parse_args(argv)
    if options.quick:
        options.rows, options.repeats = min(options.rows, 20_000), 1
    peer = programs("datatrove") / "python"
    with tempfile.TemporaryDirectory(prefix="largeforge-bench-") as name:
        folder = Path(name)
        made = rows(options.rows, options.seed)
        write_shards(made, folder / "rows", options.processes)
        commands = {"ours": sys.executable, "datatrove": str(peer)}
        runs: dict[str, list[Measured]] = {side: [] for side in commands}
        for repeat in range(options.repeats):
            for side, python in commands.items():
                runs[side].append(measure([python, str(SIDE), side, str(folder / "rows"), str(folder / f"{side}-{repeat}"), str(options.processes)]))
                shutil.rmtree(folder / f"{side}-{repeat}")
                told = runs[side][-1]
                print(
                    f"{side} #{repeat + 1}: {told.wall_s:.1f} s, {told.cpu_s:.1f} CPU s, {told.peak_mib:.0f} MiB, {len(told.kept)} rows kept", file=sys.stderr
                )
    assert all(run.kept == runs["ours"][0].kept for run in runs["ours"]), "the same rows must stay at every run"
    table(made, runs, options).publish()
    return 0


def table(made: Sequence[Made], runs: dict[str, list[Measured]], options: argparse.Namespace) -> Table:
    """Compare the sides' medians and what they dropped."""
    ours, theirs = (judge(made, runs[side][0].kept) for side in ("ours", "datatrove"))

    def both(name: str) -> tuple[float, float]:
        mine, peers = (statistics.median(getattr(run, name) for run in runs[side]) for side in ("ours", "datatrove"))
        return mine, peers

    num_planted, num_decoys = sum(one.origin >= 0 for one in made), sum(one.decoy_of >= 0 for one in made)
    title = (
        f"Near-duplicates: {len(made):,} rows, {num_planted:,} planted, {num_decoys:,} decoys, seed {options.seed},"
        f" {options.processes} processes, medians of {options.repeats}"
    )
    result = Table("near_duplicates", title, ours="LargeForge", peer="datatrove")
    result.rows = [
        Row("seconds", *both("wall_s"), "s", at_most=1.0),
        Row("CPU seconds", *both("cpu_s"), "s"),
        Row("peak memory, all processes", *both("peak_mib"), "MiB"),
        Row("recall", ours["recall"], theirs["recall"], ""),
        Row("precision", ours["precision"], theirs["precision"], ""),
    ]
    met = ours["recall"] >= 0.95 and ours["precision"] >= 0.95
    result.notes = [
        f"Ours: recall {ours['recall']:.4f}, precision {ours['precision']:.4f} (at least 0.95 each: {'met' if met else 'MISSED'});"
        f" {ours['false']:.0f} of {ours['dropped']:.0f} dropped rows were near to no row that stayed.",
        f"datatrove: recall {theirs['recall']:.4f}, precision {theirs['precision']:.4f};"
        f" {theirs['false']:.0f} of {theirs['dropped']:.0f} dropped rows were near to no row that stayed.",
        "Recall: of each planted pair at most one row stays. Precision: of the dropped rows, those with a true Jaccard of at least 0.8 to a row that stayed.",
        "datatrove as it ships (14 buckets of 8 hashes, no verification), but words are split at white space: its default for English, spaCy, takes longer.",
        "Seconds are those of whole processes, starts and imports included; memory is proportional set size, summed over the process tree.",
    ]
    result.details = {
        "runs": {side: [{**asdict(run), "kept": len(run.kept)} for run in of_side] for side, of_side in runs.items()},
        "ours": ours,
        "datatrove": theirs,
    }
    return result


def judge(made: Sequence[Made], kept: Sequence[int]) -> dict[str, float]:
    """Recall over the planted pairs, and precision over what was dropped, each row against every row that stayed and shares a 5-gram with it."""
    staying = set(kept)
    planted = [number for number, one in enumerate(made) if one.origin >= 0]
    found = sum(not (number in staying and made[number].origin in staying) for number in planted)
    dropped = [number for number in range(len(made)) if number not in staying]
    wanted = {gram for number in dropped for gram in ngrams(made[number].text)}
    having: dict[tuple[str, ...], list[int]] = {}
    for number in kept:
        for gram in ngrams(made[number].text) & wanted:
            having.setdefault(gram, []).append(number)
    false = 0
    for number in dropped:
        mine = ngrams(made[number].text)
        others = {other for gram in mine for other in having.get(gram, ())}
        false += not any(jaccard(mine, ngrams(made[other].text)) >= LOW for other in others)
    return {
        "recall": found / max(1, len(planted)),
        "precision": 1 - false / max(1, len(dropped)),
        "dropped": float(len(dropped)),
        "false": float(false),
    }


def write_shards(made: Sequence[Made], folder: Path, count: int) -> None:
    """One JSON Lines file a process."""
    folder.mkdir()
    for shard in range(count):
        first, end = (len(made) * edge // count for edge in (shard, shard + 1))
        lines = [json.dumps({"id": str(number), "text": made[number].text}) for number in range(first, end)]
        (folder / f"{shard:05d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(command: Sequence[str]) -> Measured:
    """Run one side to its end. Raises RuntimeError with what it said where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        peak = 0
        tree = psutil.Process(process.pid)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, resident(tree))
            time.sleep(POLL_S)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said.read()[-3000:]}")
    kept = sorted(int(json.loads(line)["id"]) for path in Path(command[4]).glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines())
    return Measured(wall_s, ended[2].ru_utime + ended[2].ru_stime, peak / MIB, kept)


def resident(tree: psutil.Process) -> int:
    """Bytes of a process and its children; pages that several share are counted once."""
    total = 0
    for process in [tree, *_children(tree)]:
        try:
            total += int(process.memory_full_info().pss)
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def _children(tree: psutil.Process) -> list[Any]:
    try:
        return list(tree.children(recursive=True))
    except psutil.Error:
        return []
