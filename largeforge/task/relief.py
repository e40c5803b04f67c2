"""Where memory ran out: what to change, with the peaks that the plan predicts for each change. Trains nothing."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from largeforge.build import find
from largeforge.contract import Progress
from largeforge.errors import DoesNotFit
from largeforge.run import Run

BUDGET_S = 120.0  # a plan of a large model takes half a minute; whoever waits for advice would rather have some than all
RESUMABLE = ("trainer.micro_batch_size", "trainer.gradient_checkpointing")


@dataclass(frozen=True)
class Candidate:
    """A change and what it is predicted to need; no keys is the run as it was."""

    changes: dict[str, str]
    peak_bytes: int
    fits: bool

    @property
    def told(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items()) or "as it is"


def relief(run: Run, *, progress: Progress) -> DoesNotFit | None:
    """Plan the run with less, one change after another, and say which would fit; None where nothing could be planned."""
    gc.collect()  # the model and its optimizer hang in cycles
    progress.say("Out of memory: planning what would fit ...")
    planned = find("largeforge.plan.suggestions.suggestions")(run.composed.overrides, run.config, budget_s=BUDGET_S)
    found = [Candidate(one.changes, one.peak_bytes, one.fits) for one in planned]
    if not found:
        return None
    device = f"{planned[0].device.title}, {planned[0].device.memory_bytes / 2**30:,.1f} GiB"
    width = max(len(one.told) for one in found)
    lines = [f"  {one.told:<{width}}   {one.peak_bytes / 2**30:8,.2f} GiB   {'fits' if one.fits else 'does not fit'}" for one in found]
    best = chosen(found)
    note = "\nAs it is it should fit: something else holds memory of this device, or the plan is too low." if found and found[0].fits else ""
    return DoesNotFit(
        "\n".join([f"Predicted peaks on {device}:", *lines]) + note, next_step=command(run, best) if best else "a smaller model=..., or a larger device"
    )


def chosen(found: list[Candidate]) -> Candidate | None:
    """The first that fits and needs clearly less than what ran out of memory; else the smallest."""
    if len(found) < 2:
        return None
    limit = 0.95 * found[0].peak_bytes
    smaller = [one for one in found[1:] if one.peak_bytes < limit]
    return next((one for one in smaller if one.fits), min(smaller, key=lambda one: one.peak_bytes, default=None))


def command(run: Run, best: Candidate) -> str:
    """What to type: going on from the last checkpoint where there is one and the change allows it."""
    kept = list((run.folder / "checkpoints").glob("step=*"))
    if not kept:
        return run.command(**{**best.changes, "folder": str(run.folder), "resume": "auto"})
    if all(key in RESUMABLE for key in best.changes):
        allowed = f"[{','.join(best.changes)}]"
        return run.command(**{**best.changes, "folder": str(run.folder), "resume": "auto", "trainer.checkpoint.allow_changes": allowed})
    return run.command(**{**best.changes, "folder": f"{run.folder}-smaller", "resume": "never"})
