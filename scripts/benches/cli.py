"""What it costs to ask: CPU time of `--help` and of `--cfg job`, each against `import hydra`.

Neither may load torch: what each imports is listed by the interpreter itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from scripts.benches.processes import in_turn, median_cpu_s
from scripts.benches.table import Row, Table

HEAVY = ("torch", "transformers", "datasets", "lightning", "peft", "pandas", "numpy")
HELP = ["-m", "largeforge", "--help"]
COMPOSE = ["-m", "largeforge", "task=sft", "--cfg", "job"]
PEER = ["-c", "import hydra"]


def main(argv: Sequence[str]) -> int:
    arguments = argparse.ArgumentParser(prog="scripts/bench cli", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="5 repeats instead of 15")
    repeats = 5 if arguments.parse_args(argv).quick else 15
    sides = {"import hydra": PEER, "--help": HELP, "task=sft --cfg job": COMPOSE}
    costs = in_turn({name: [sys.executable, *command] for name, command in sides.items()}, repeats=repeats)
    peer = median_cpu_s(costs["import hydra"])
    table = Table(
        name="cli",
        title=f"CPU seconds, user and system, medians of {repeats} runs taken in turn",
        ours="LargeForge",
        peer="import hydra",
        rows=[
            Row("python -m largeforge --help", median_cpu_s(costs["--help"]), peer, "s", at_most=1.0),
            Row("python -m largeforge task=sft --cfg job", median_cpu_s(costs["task=sft --cfg job"]), peer, "s", at_most=3.0),
        ],
        details={name: [cost.cpu_s for cost in runs] for name, runs in costs.items()},
    )
    for name, command in (("--help", HELP), ("--cfg job", COMPOSE)):
        modules = imported(command)
        heavy = sorted(modules & set(HEAVY))
        table.notes.append(
            f"{name} imports {len(modules)} top-level modules, " + (f"among them {', '.join(heavy)}." if heavy else "none of " + ", ".join(HEAVY) + ".")
        )
        table.details[f"{name} imports"] = sorted(modules)
    table.publish()
    return 0


def imported(command: Sequence[str]) -> set[str]:
    """Top-level names of every module that a Python command imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": ""})
    lines = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.partition(".")[0] for line in lines} - {"imported package"}
