"""One process that imports what a run imports, then forks a child for every job: plan it, train it, or bring its model here.

A child starts with the imports' memory and nothing else, so what it grows by is the run's own. Jobs come as JSON lines
`{"do": "plan" | "train" | "fetch", "argv": [...]}` on standard input, answers leave as JSON lines on standard output.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch",
    "lightning.pytorch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "peft",
    "datasets",
    "largeforge.task.train",
    "largeforge.trainer.device",
    "largeforge.trainer.base",
    "largeforge.method.sft",
    "largeforge.method.dpo",
    "largeforge.method.kto",
    "largeforge.method.orpo",
    "largeforge.method.distill",
    "largeforge.model.nano",
    "largeforge.model.smollm2",
    "largeforge.data.demo",
    "largeforge.data.chat",
    "largeforge.data.steps",
    "largeforge.adapter.lora",
    "largeforge.adapter.full",
    "largeforge.engine.hf",
    "largeforge.tracker.silent",
    "largeforge.benchmark.unmeasured",
    "largeforge.plan.training",
    "largeforge.plan.step",
)


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(in_child(json.loads(line))), file=answers, flush=True)
    return 0


def in_child(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            answer = DO[job["do"]](job["argv"])
        except BaseException:
            answer = {"error": traceback.format_exc()[-3000:]}
        with os.fdopen(write, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"error": f"the child ended with status {status}"}


def fetch(argv: list[str]) -> dict[str, Any]:
    """Bring the model to this machine, so that a run finds it."""
    from largeforge.build import build
    from largeforge.config.compose import compose

    composed = compose(argv, files=True)
    build(composed.config.model).place()  # type: ignore[attr-defined]
    return {}


def plan(argv: list[str]) -> dict[str, Any]:
    """Plan the run; return the plan as plain values."""
    from largeforge.build import find
    from largeforge.config.compose import compose
    from largeforge.console import Console

    composed = compose([*argv, "plan=cpu"], files=True)
    found = find(composed.config.task.target)(composed.config).plan(progress=Console())
    values = found.as_dict()
    values["shown"] = []
    return values  # type: ignore[no-any-return]


def train(argv: list[str]) -> dict[str, Any]:
    """Run the real task; return by how much memory grew over what the imports had taken."""
    from largeforge.config.compose import compose
    from largeforge.run import execute

    start = resident()
    composed = compose(argv, files=True)
    code = execute(composed)
    result = json.loads((Path(composed.config.folder or "") / "result.json").read_text(encoding="utf-8"))
    if code:
        return {"error": f"exit code {code}"}
    return {"growth_bytes": result["metrics"]["peak_memory_bytes"] - start, "start_bytes": start, "metrics": result["metrics"]}


def resident() -> int:
    """Resident bytes of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


DO = {"fetch": fetch, "plan": plan, "train": train}

if __name__ == "__main__":
    sys.exit(main())
