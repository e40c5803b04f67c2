"""verify=invariance: how a batch is split, packed or shared among processes changes nothing that is learnt.

In fp32 with dropout off, so that only the order of sums is left to differ. Knows nothing about what a step does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import torch

from largeforge.proof.certificate import Certificate, alone, finished, words_of
from largeforge.proof.resume import steps as logged_steps
from largeforge.proof.rig import Steps, distance, relative, same_bits, take_steps
from largeforge.run import Run

STEPS = 3
FIRST = 1e-6  # relative difference of the first step's gradient that rounding explains
LATER = 1e-5  # of a packed row's, whose attention sums in another order, and of losses after steps that amplify what was there
COLUMNS = ("variant", "gradient, step 1", "loss, step 1", f"loss, step {STEPS}", "allowed", "holds")


def prove(run: Run) -> None:
    """Take the same steps over the same rows in several ways; compare losses and the first gradient with those of the whole batch at once.

    Raises:
        CheckFailed: they differ by more than rounding.
    """
    alone(run)
    config = run.config
    changed = changes_of(run)
    certificate = Certificate(
        "micro-batches, packing and processes change neither the gradient of a step nor what the steps lead to, and the same seed gives the same bits",
        COLUMNS,
        changed=changed,
        facts={"steps": STEPS, "rows_per_step": config.trainer.batch_size},
        notes=[f"Relative differences from all {config.trainer.batch_size} rows at once, not packed. Allowed is what the order of sums in fp32 explains."],
    )
    batch = config.trainer.batch_size
    whole = take_steps(run, {**changed, "data.packing": False, "trainer.micro_batch_size": batch})
    for name, more, allowed in variants(batch):
        run.progress.say(f"  {name} ...")
        found = take_steps(run, {**changed, **more})
        _compare(certificate, name, whole, found, allowed)
    again = take_steps(run, {**changed, "data.packing": False, "trainer.micro_batch_size": batch})
    same = same_bits(again.weights, whole.weights) and again.losses == whole.losses
    certificate.row("the same seed again", distance(again.gradient, whole.gradient), 0.0 if same else 1.0, 0.0 if same else 1.0, "equal bits", holds=same)
    if whole.device == "cuda" and torch.cuda.device_count() < 2:
        certificate.notes.append("Two processes were not tried: there is one GPU here.")
    elif batch > 1:
        run.progress.say("  two processes ...")
        _two_processes(certificate, run, changed, whole)
    certificate.facts |= {"device": whole.device, "precision": "fp32"}
    certificate.conclude(run, title=f"Invariance: {STEPS} steps over the same rows")
    shutil.rmtree(run.folder / "two_processes", ignore_errors=True)


def changes_of(run: Run) -> dict[str, Any]:
    """What the proof changes in the recipe: fp32, no dropout, few steps, one process."""
    changed: dict[str, Any] = {
        "trainer.max_steps": STEPS,
        "trainer.precision": "fp32",
        "trainer.devices": 1,
        "trainer.nodes": 1,
        "trainer.strategy": "auto",
        "trainer.log_every_steps": 1,
        "trainer.checkpoint.every_steps": 0,
        "trainer.checkpoint.every_minutes": 0,
        "trainer.checkpoint.keep_best": 0,
        "trainer.checkpoint.folder": None,
        "trainer.early_stopping.patience": 0,
        "tracker": "none",
        "benchmark": "none",
    }
    if getattr(run.config.adapter, "dropout", 0.0):
        changed["adapter.dropout"] = 0.0
    if getattr(getattr(run.config.method, "on_policy", None), "share", 0.0):
        changed["method.on_policy.share"] = 0.0  # what a student draws depends on whom it draws beside
    return changed


def variants(batch: int) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Name, changes, and the relative difference that is allowed of the first gradient."""
    for parts in (4, batch):
        size = -(-batch // parts)
        if size < batch:
            yield f"{-(-batch // size)} micro-batches of {size}", {"data.packing": False, "trainer.micro_batch_size": size}, FIRST
    yield "packed", {"data.packing": True, "trainer.micro_batch_size": batch}, LATER
    yield "packed, one sequence at a time", {"data.packing": True, "trainer.micro_batch_size": 1}, LATER


def _compare(certificate: Certificate, name: str, whole: Steps, found: Steps, allowed: float) -> None:
    apart = distance(found.gradient, whole.gradient)
    first, last = relative(found.losses[0], whole.losses[0]), relative(found.losses[-1], whole.losses[-1])
    certificate.row(name, apart, first, last, f"{allowed:g}, then {LATER:g}", holds=apart <= allowed and first <= LATER and last <= LATER)


def _two_processes(certificate: Certificate, run: Run, changed: dict[str, Any], whole: Steps) -> None:
    """The same steps by two processes on this machine's CPU or GPUs; their gradient is compared by its norm."""
    folder = run.folder / "two_processes"
    half = -(-run.config.trainer.batch_size // 2)
    more = {**changed, "verify": "none", "data.packing": False, "trainer.devices": 2, "trainer.micro_batch_size": half, "folder": folder}
    words = words_of(run, more, without=("name", "resume"))
    finished(run, words)
    found = logged_steps(folder)
    apart = relative(float(found[1]["gradient_norm"]), whole.norms[0])
    first, last = relative(found[1]["loss"], whole.losses[0]), relative(found[STEPS]["loss"], whole.losses[-1])
    holds = apart <= FIRST and first <= LATER and last <= LATER
    certificate.row(f"2 processes, {half} rows each (norm of the gradient)", apart, first, last, f"{FIRST:g}, then {LATER:g}", holds=holds)
