"""Data at scale: memory and rows/s of preparing up to 10 million rows, near duplicates beside datatrove, tokenizing and packing beside TRL, broken files.

    scripts/bench data [--quick] [--only scale start near pack fuzz]

Each section prints a table of its own. --quick takes 100k and 1M rows, fewer near rows, one repeat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from scripts.benches.table import Row, Table

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("scale", "start", "near", "pack", "fuzz")
STEPS = "[normalise,length,exact_duplicates,split]"
SAMPLE_S = 0.2
MEMORY_GB = 1.5
REPEATED_EVERY = 20  # every 20th row repeats an earlier one


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench data", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="smaller sizes: at most five minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION", help=f"of: {', '.join(SECTIONS)}")
    parser.add_argument("--gsm8k", default=str(ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"), help="rows to tokenize and pack")
    arguments = parser.parse_args(argv)
    if "scale" in arguments.only:
        scale([100_000, 1_000_000] if arguments.quick else [100_000, 1_000_000, 10_000_000])
    if "start" in arguments.only:
        start([100_000, 1_000_000] if arguments.quick else [100_000, 1_000_000, 10_000_000])
    if "near" in arguments.only:
        from scripts.benches import near_duplicates

        near_duplicates.main(["--quick"] if arguments.quick else [])
    if "pack" in arguments.only:
        from scripts.benches import pack

        pack.main([arguments.gsm8k, *(["--quick"] if arguments.quick else [])])
    if "fuzz" in arguments.only:
        subprocess.run([sys.executable, "-m", "tests.data.fuzz_files", "150" if arguments.quick else "1000"], cwd=ROOT, check=True)
    return 0


# ---- 10 million rows ----


@dataclass(frozen=True)
class Measured:
    """One whole run of task=prepare.

    Args:
        peak_bytes: of the command and its workers together, shared pages counted once (PSS), read every 0.2 s.
    """

    num_rows: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    metrics: dict[str, float]


def scale(sizes: Sequence[int]) -> None:
    """Prepare files of growing size; print rows/s, memory, and what a row costs against the smallest file."""
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="largeforge-bench-") as place:
        for size in sizes:
            path = Path(place) / "rows.jsonl"
            make_rows(path, size)
            measured.append(prepare(path, Path(place) / "out", size))
            one = measured[-1]
            expected = size // REPEATED_EVERY
            found = int(one.metrics["duplicates_exact"])
            print(
                f"{size:>10,} rows: {one.seconds:7.1f} s, {size / one.seconds:9,.0f} rows/s, peak {one.peak_bytes / 1e9:.3f} GB, {found:,} duplicates",
                flush=True,
            )
            if found != expected:
                raise SystemExit(f"{expected:,} duplicates were planted, {found:,} found")
            shutil.rmtree(Path(place) / "out")
            path.unlink()
    last = measured[-1]
    rows = [Row(f"peak memory, {last.num_rows:,} rows, of {MEMORY_GB} GB", last.peak_bytes / 1e9, MEMORY_GB, "GB", at_most=1.0)]
    if len(measured) > 1:
        before = measured[-2]
        rows.append(Row(f"peak memory, {last.num_rows:,} rows beside {before.num_rows:,}", last.peak_bytes / 1e9, before.peak_bytes / 1e9, "GB", at_most=1.1))
        for one, other in zip(measured[1:], measured, strict=False):
            name = f"CPU of a row, {one.num_rows:,} rows beside {other.num_rows:,}"
            rows.append(Row(name, 1e6 * one.cpu_s / one.num_rows, 1e6 * other.cpu_s / other.num_rows, "us", at_most=1.1))
        rows.append(Row(f"rows/s, {last.num_rows:,} rows beside {before.num_rows:,}", last.num_rows / last.seconds, before.num_rows / before.seconds, "rows/s"))
    Table(
        "data_scale",
        f"task=prepare on rows of 200 characters: {STEPS[1:-1].replace(',', ', ')} (by the question's hash), check=none, 2 workers",
        "larger",
        "smaller",
        rows,
        ["Memory is of the command and its workers together, shared pages once. The smallest file's cost holds the start of the processes (seconds)."],
        {"runs": [vars(one) for one in measured]},
    ).publish()


def make_rows(path: Path, count: int) -> None:
    """Write rows of about 200 characters of text; every 20th repeats an earlier one."""
    with path.open("w", encoding="utf-8", buffering=1 << 20) as stream:
        for number in range(count):
            said = number if number % REPEATED_EVERY != REPEATED_EVERY - 1 else number // 2 - (number // 2 % REPEATED_EVERY == REPEATED_EVERY - 1)
            digest = hashlib.blake2b(b"%d" % said, digest_size=32).hexdigest()
            question = " ".join(digest[place : place + 6] for place in range(0, 60, 6))
            answer = " ".join(digest[place : place + 4] for place in range(0, 64, 4))
            stream.write(
                f'{{"messages": [{{"role": "user", "content": "{question} and {said % 97} more?"}}, '
                f'{{"role": "assistant", "content": "It is {answer}, said {said % 89}."}}]}}\n'
            )


def prepare(path: Path, folder: Path, size: int) -> Measured:
    """Run the command and watch its memory."""
    words = [
        f"data.path={path}",
        f"folder={folder}",
        f"steps={STEPS}",
        "step.length.min_chars=10",
        "step.split.keep_together=prompt",
        "check=none",
        "executor.num_workers=2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with (folder.parent / "said.txt").open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", "largeforge", "task=prepare", *words], stdout=said, stderr=said, env=environment)
        watch = Watch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.over.set()
        watch.join()
    if process.returncode:
        raise SystemExit((folder.parent / "said.txt").read_text(encoding="utf-8")[-3000:])
    seconds = time.perf_counter() - start
    metrics: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    return Measured(size, seconds, usage.ru_utime + usage.ru_stime, watch.peak, metrics)


# ---- training on them ----


def start(sizes: Sequence[int]) -> None:
    """Open token caches of growing size and take the first 20 steps; print seconds and memory."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="largeforge-bench-") as place:
        for size in sizes:
            path = Path(place) / "train.arrow"
            make_tokens(path, size)
            done = subprocess.run([sys.executable, "-m", "scripts.benches.start_side", str(path)], check=True, capture_output=True, text=True, cwd=ROOT)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{size:>10,} rows: first 20 steps after {found[-1]['seconds']:.2f} s, {found[-1]['bytes'] / 1e6:.1f} MB more than with none", flush=True)
            path.unlink()
    rows = [
        Row(f"seconds to 20 steps, {sizes[-1]:,} rows beside {sizes[0]:,}", found[-1]["seconds"], found[0]["seconds"], "s", at_most=1.1),
        Row(f"memory of 20 steps, {sizes[-1]:,} rows beside {sizes[0]:,}", found[-1]["bytes"] / 1e6, found[0]["bytes"] / 1e6, "MB", at_most=1.1),
    ]
    notes = ["Rows and their lengths stay on disk; the order of more than a million rows is computed place by place, that of fewer is held (8 bytes a row)."]
    Table("data_start", "Start of training on a memory-mapped token cache", "larger", "smaller", rows, notes, {"sizes": list(sizes), "runs": found}).publish()


def make_tokens(path: Path, count: int) -> None:
    """Write a token cache of rows of 12 tokens."""
    from largeforge.batch import TokenizedRow
    from largeforge.data.cache import TableWriter

    writer = TableWriter(path)
    supervised = [False] * 6 + [True] * 6
    for number in range(count):
        writer.add(TokenizedRow([number % 1000 + place for place in range(12)], supervised, ""))
    writer.close()


class Watch(threading.Thread):
    """Reads the memory of a process and of its children until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.over = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self.over.wait(SAMPLE_S):
            try:
                family = [self.process, *self.process.children(recursive=True)]
                self.peak = max(self.peak, sum(self._pss(one) for one in family))
            except psutil.Error:
                continue

    @staticmethod
    def _pss(process: psutil.Process) -> int:
        try:
            return int(process.memory_full_info().pss)
        except psutil.Error:
            return 0
