"""A model of Mistral 7B's shape, with random weights in bf16, served on this machine's GPU: waiting, tokens a second, start, memory, how busy it is.

Started by `scripts/bench serve --gpu`. What is asked are streams of greedy answers through the door, as on a CPU.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benches.serve_engine import Case, Prompts
from scripts.benches.serve_load import Measured, load
from scripts.benches.serve_servers import Server, here, ours
from scripts.benches.table import Row, Table

SIDE = Path(__file__).with_name("serve_gpu_side.py")
FEW = Case("4 clients, 250-token prompts, 64 tokens", 250, 4, 64, 32)
MANY = Case("64 clients, 250-token prompts, 128 tokens", 250, 64, 128, 256)


def measure(folder: Path, *, quick: bool) -> int:
    """Serve, ask and publish; 2 where there is no GPU, 1 where a target is missed."""
    made = None
    if shutil.which("nvidia-smi"):
        done = subprocess.run([sys.executable, str(SIDE)], env=here(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the model could not be made:\n{done.stderr[-3000:]}")
        made = json.loads(done.stdout.splitlines()[-1])
    if made is None:
        print("scripts/bench serve --gpu needs an NVIDIA GPU that torch can use; there is none here: not run.", file=sys.stderr)
        return 2
    model = Path(made["folder"])
    table = Table("serve_gpu", f"task=serve, Mistral 7B's shape, random weights in bf16, on {made['card']}", ours="LargeForge", peer="target")
    with ours(folder / "server", f"model={model}", "model.dtype=bf16", "serve.name=mistral", model="mistral") as server:
        prompts = Prompts(model)
        run(server, prompts, MANY, MANY.clients, pair=-1)  # warm-up
        few = run(server, prompts, FEW, FEW.requests // 2 if quick else FEW.requests, pair=0)
        with watched() as seen:
            many = run(server, prompts, MANY, MANY.clients * 2 if quick else MANY.requests, pair=1)
    busy = [share for share, _ in seen]
    peak_mib = max((mib for _, mib in seen), default=0.0)
    table.rows += [
        Row(f"{FEW.name}: first token p95", few.first_ms(0.95), 100.0, "ms", at_most=1.0),
        Row(MANY.name, many.tokens_per_s, 1000.0, "tokens/s", at_least=1.0),
        Row("ready, proof of its answers included", server.ready_s, 60.0, "s", at_most=1.0),
        Row("peak of the card's memory beside all of it", peak_mib, made["total_mib"], "MiB", at_most=0.95),
        Row("GPU busy under load, mean", statistics.mean(busy) if busy else 0.0, 80.0, "%", at_least=1.0),
        Row("requests that were answered", len(few.good) + len(many.good), len(few.replies) + len(many.replies), "requests", at_least=1.0),
    ]
    table.notes.append(f"First token at {MANY.clients} clients: p50 {many.first_ms(0.5):.0f} ms, p95 {many.first_ms(0.95):.0f} ms.")
    table.details = {"few": few.numbers(), "many": many.numbers(), "nvidia_smi": seen}
    table.publish()
    return int(any(row.met is False for row in table.rows))


def run(server: Server, prompts: Prompts, case: Case, requests: int, *, pair: int) -> Measured:
    """One measurement."""
    bodies = [server.ask(prompt, max_tokens=case.max_tokens) for prompt in prompts.of(case, pair, requests)]
    told = load(server.url, bodies, clients=min(case.clients, requests), requests=requests)
    print(f"{case.name}: {told.tokens_per_s:.0f} tokens/s, first token p95 {told.first_ms(0.95):.0f} ms, failed {told.num_failed}", file=sys.stderr)
    return told


@contextmanager
def watched() -> Iterator[list[tuple[float, float]]]:
    """What nvidia-smi says four times a second while the block runs: per cent busy, and MiB taken; filled when the block ends."""
    seen: list[tuple[float, float]] = []
    words = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "250"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield seen
    finally:
        process.terminate()
        told, _ = process.communicate(timeout=10)
        for line in told.splitlines():
            cells = line.split(",")
            if len(cells) == 2 and cells[0].strip().isdigit():
                seen.append((float(cells[0]), float(cells[1])))
