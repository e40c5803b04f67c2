"""Checkpoints by themselves: recipes compared, random states, what is kept, copies elsewhere, a full disk, drafts of killed processes."""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import yaml

from largeforge.artifact import read_artifact, write_artifact
from largeforge.errors import ArtifactError, InputError
from largeforge.trainer.checkpoint import Checkpoints, StateFile, settle_loops
from largeforge.trainer.config import AutoConfig
from largeforge.trainer.copies import Copies, open_copies
from largeforge.trainer.random_state import random_state, seed_random_states, set_random_state
from largeforge.trainer.recipe import changes, covers, judge
from largeforge.trainer.resume import FACTS, Facts, find_checkpoint

VALUES = yaml.safe_load((Path(__file__).parents[2] / "conf" / "trainer" / "auto.yaml").read_text())
FACT = Facts(step=0, num_steps=9, warmup_steps=1, world_size=1, device="cpu", precision="fp32", sources={"model": "a", "data": "b"})


def config(**checkpoint: Any) -> AutoConfig:
    return AutoConfig.model_validate({**VALUES, "checkpoint": {**VALUES["checkpoint"], **checkpoint}})


class Strategy:
    """What Checkpoints asks of Lightning's strategy."""

    checkpoint_io = StateFile()
    root_device = torch.device("cpu")


class Lightning:
    """What Checkpoints asks of Lightning's trainer; its state is a tensor."""

    is_global_zero, world_size, global_rank = True, 1, 0
    strategy = Strategy()

    def __init__(self, num_floats: int = 8) -> None:
        self.global_step = 0
        self.num_floats = num_floats

    def save_checkpoint(self, path: Path) -> None:
        self.strategy.checkpoint_io.save_checkpoint({"state": torch.arange(self.num_floats, dtype=torch.float64) + self.global_step}, path)


def run_in(folder: Path, *, resume: str = "never", copies: str | None = None) -> Any:
    """What Checkpoints asks of a run."""
    said: list[str] = []
    trainer = SimpleNamespace(checkpoint=SimpleNamespace(folder=copies))
    return SimpleNamespace(
        folder=folder,
        config=SimpleNamespace(seed=0, resume=resume, trainer=trainer),
        composed=SimpleNamespace(values={"trainer": {"max_steps": 9}}),
        progress=SimpleNamespace(say=said.append),
        said=said,
        signal_number=0,
        listen=lambda: None,
        stop_asked=False,
        command=lambda **changes: "python -m largeforge " + " ".join(f"{key}={value}" for key, value in changes.items()),
    )


def write(
    run: Any, steps: list[int], *, num_floats: int = 8, lightning: Lightning | None = None, copies: Copies | None = None, **checkpoint: Any
) -> Checkpoints:
    """Write a checkpoint after each step."""
    checkpoints = Checkpoints(run, config=config(**checkpoint), facts=FACT, copies=copies)
    lightning = lightning or Lightning(num_floats)
    for step in steps:
        lightning.global_step = step
        checkpoints.save(lightning)  # type: ignore[arg-type]
    if copies is not None:
        copies.finish()
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- written and kept ----


def test_a_checkpoint_says_what_it_is_and_old_ones_go(tmp_path: Path) -> None:
    """Proves SYS-D-010: the last two stay; facts can be read without torch, and the manifest holds the recipe and a sha256 of each file."""
    run = run_in(tmp_path, resume="auto")
    write(run, [1, 2, 3], keep_last=2)
    assert names(tmp_path / "checkpoints") == ["step=000002", "step=000003"]
    found = find_checkpoint(run)
    assert found is not None and found.facts.step == 3 and found.facts.sources == {"model": "a", "data": "b"}
    assert found.recipe == {"trainer": {"max_steps": 9}}
    artifact = read_artifact(found.path, kind="checkpoint", full=True)
    assert set(artifact.files) == {"state.ckpt", FACTS} and all(len(facts["sha256"]) == 64 for facts in artifact.files.values())
    assert torch.load(found.path / "state.ckpt", weights_only=True)["state"][0] == 3


@pytest.mark.parametrize(("mode", "best"), [("min", ["step=000002", "step=000004"]), ("max", ["step=000001", "step=000004"])])
def test_the_best_are_kept_by_the_metric_that_is_asked_for(tmp_path: Path, mode: str, best: list[str]) -> None:
    """keep_best=1 with keep_last=1, ranked by any measure, less or more of it better."""
    values = {**VALUES, "checkpoint": {**VALUES["checkpoint"], "keep_best": 1}, "early_stopping": {**VALUES["early_stopping"], "metric": "m", "mode": mode}}
    checkpoints, lightning = Checkpoints(run_in(tmp_path), config=AutoConfig.model_validate(values), facts=FACT), Lightning()
    for step, value in ((1, 5.0), (2, 1.0), (3, 3.0), (4, 2.0)):
        lightning.global_step = step
        checkpoints._rank(step, SimpleNamespace(validation_metrics={"m": value, "validation_loss": 0.0}))  # type: ignore[arg-type]
        checkpoints.save(lightning)  # type: ignore[arg-type]
    assert [name for name in names(tmp_path / "checkpoints") if name.startswith("step")] == best


def test_drafts_of_a_killed_process_and_checkpoints_of_another_way_go(tmp_path: Path) -> None:
    """What kill -9 left half written is removed at the next start; so is what lies after the step that is gone on from, by name."""
    run = run_in(tmp_path)
    write(run, [1, 2, 3], keep_last=3)
    folder = tmp_path / "checkpoints"
    (folder / ".step=000004.123").mkdir()
    (folder / ".step=000004.123" / "state.ckpt").write_bytes(b"half")
    (folder / ".validation.json.123").write_text("{")
    checkpoints = Checkpoints(run, config=config(keep_last=3), facts=FACT, start_step=2)
    checkpoints.on_train_start(Lightning(), SimpleNamespace())  # type: ignore[arg-type]
    assert names(folder) == ["step=000001", "step=000002"]
    assert run.said == ["step=000003 is removed: the run goes on from step 2."]


def test_a_minute_is_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """every_minutes looks at the time since the last one, whoever asked for that."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(run_in(tmp_path), config=config(every_minutes=2, every_steps=5), facts=FACT)
    lightning = Lightning()
    assert checkpoints._wish(1, last=False) == 0
    now[0] += 119
    assert checkpoints._wish(2, last=False) == 0
    now[0] += 1
    assert checkpoints._wish(3, last=False) == 1
    lightning.global_step = 3
    checkpoints.save(lightning)  # type: ignore[arg-type]
    assert checkpoints._wish(4, last=False) == 0 and checkpoints._wish(5, last=False) == 1 and checkpoints._wish(7, last=True) == 1
    assert Checkpoints(run_in(tmp_path), config=config(), facts=FACT)._wish(7, last=True) == 0  # nobody asked for any


# ---- damaged ----


def test_damage_is_found_and_named_and_the_one_before_is_taken(tmp_path: Path) -> None:
    """Proves SYS-D-020: cut short, altered by one bit, without its manifest, without a file: each is left out by name."""
    run = run_in(tmp_path, resume="auto")
    write(run, [1, 2, 3, 4, 5], keep_last=5)
    folder = tmp_path / "checkpoints"
    (folder / "step=000005" / "manifest.json").unlink()
    state = folder / "step=000004" / "state.ckpt"
    state.write_bytes(state.read_bytes()[:-3])
    state = folder / "step=000003" / "state.ckpt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(bytes(content))
    (folder / "step=000002" / FACTS).unlink()
    found = find_checkpoint(run)
    assert found is not None and found.facts.step == 1
    for name, words in (("5", "no manifest.json"), ("4", "bytes; its manifest says"), ("3", "sha256 differs"), ("2", "is missing")):
        assert any(f"step=00000{name}" in line and words in line for line in run.said), (name, run.said)
    (folder / "step=000001" / "state.ckpt").write_bytes(b"")
    with pytest.raises(ArtifactError, match="no checkpoint of .* is sound"):
        find_checkpoint(run)


def test_a_named_one_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    write(run_in(tmp_path), [1, 2], keep_last=2)
    named = tmp_path / "checkpoints" / "step=000001"
    assert find_checkpoint(run_in(tmp_path / "other", resume=str(named))).facts.step == 1  # type: ignore[union-attr]
    assert find_checkpoint(run_in(tmp_path / "other", resume=str(tmp_path))).facts.step == 2  # type: ignore[union-attr]
    (named / "state.ckpt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="step=000001"):
        find_checkpoint(run_in(tmp_path / "other", resume=str(named)))


def test_weights_alone_are_refused_with_what_they_are_good_for(tmp_path: Path) -> None:
    def fill(draft: Path) -> str:
        (draft / "adapter_config.json").write_text("{}")
        return "adapter"

    write_artifact(tmp_path / "checkpoints" / "step=000004", fill=fill, parents=[], config={})
    with pytest.raises(InputError, match="content=weights") as caught:
        find_checkpoint(run_in(tmp_path, resume="auto"))
    assert f"model={tmp_path}/checkpoints/step=000004" in caught.value.next_step


def test_a_finished_run_says_how_its_model_is_trained_further(tmp_path: Path) -> None:
    write(run_in(tmp_path), [9])
    write_artifact(tmp_path / "artifact", fill=lambda draft: (draft / "a").write_text("a") and "model" or "model", parents=[], config={})
    with pytest.raises(InputError, match="is finished") as caught:
        find_checkpoint(run_in(tmp_path, resume="auto"))
    assert f"resume={tmp_path}/checkpoints" in caught.value.next_step


# ---- a full disk ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_what_stands_and_no_draft(small_disk: Path) -> None:
    """Proves SYS-R-006 in part: the checkpoint before stays sound, nothing half is left, and the error says how to go on."""
    run = run_in(small_disk, resume="auto")
    write(run, [1], num_floats=50_000, keep_last=3)  # 400 kB
    with pytest.raises(InputError, match="disk is full .*; step=000002 before it stands") as caught:
        write(run, [2, 3], num_floats=50_000, keep_last=3)
    assert "resume=auto" in caught.value.next_step
    assert names(small_disk / "checkpoints") == ["step=000001", "step=000002"]
    assert find_checkpoint(run) is not None and not run.said


def test_a_write_that_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where no file system can be mounted; any other fault stays what it is."""
    run = run_in(tmp_path, resume="auto")
    write(run, [1], keep_last=3)
    number = errno.ENOSPC

    def save(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(InputError, match="disk is full"):
        write(run, [2], keep_last=3)
    assert names(tmp_path / "checkpoints") == ["step=000001"] and find_checkpoint(run).facts.step == 1  # type: ignore[union-attr]
    number = errno.EIO
    with pytest.raises(OSError, match="No space"):
        write(run, [2], keep_last=3)


# ---- recipes ----

RECIPE = {
    "seed": 0,
    "name": "a",
    "model": {"path": "x", "shape": {"layers": 2}, "sha256": "m"},
    "adapter": {"r": 8, "dropout": 0.0},
    "data": {"path": "rows.jsonl", "max_length": 128, "num_workers": 0, "sha256": "d"},
    "trainer": {"max_steps": 9, "log_every_steps": 1, "checkpoint": {"keep_last": 1}, "optimizer": "adamw"},
}


def changed(**values: Any) -> dict[str, Any]:
    """The recipe with dotted keys set; "." is written "__"."""
    recipe = json.loads(json.dumps(RECIPE))
    for key, value in values.items():
        *above, last = key.split("__")
        node = recipe
        for part in above:
            node = node[part]
        node[last] = value
    return recipe  # type: ignore[no-any-return]


def judged(now: dict[str, Any], *, allowed: tuple[str, ...] = (), harmless: tuple[str, ...] = ()) -> list[str]:
    found = judge(changes(RECIPE, now), allowed=allowed, harmless=harmless, known=now, command="python -m largeforge task=sft resume=auto", place="step=3")
    return [change.key for change in found]


def test_what_cannot_matter_is_no_difference() -> None:
    """Where a run lies, what it shows, where its rows lie (their content is compared), how many load them, what is kept."""
    other = changed(name="b", data__path="moved.jsonl", data__num_workers=2, model__path="y", trainer__log_every_steps=5)
    other["trainer"]["checkpoint"] = {"keep_last": 7, "allow_changes": ["trainer"]}
    assert judged(other) == []


def test_a_changed_recipe_is_told_as_a_diff() -> None:
    """Every key with what it was and is; the command that goes on all the same allows exactly these."""
    with pytest.raises(InputError) as caught:
        judged(changed(seed=1, trainer__max_steps=12, data__sha256="other"))
    lines = [line.split() for line in caught.value.message.splitlines() if line.startswith("  ")]
    assert lines == [["data.sha256", "was", '"d"', "is", '"other"'], ["seed", "was", "0", "is", "1"], ["trainer.max_steps", "was", "9", "is", "12"]]
    assert "trainer.max_steps decides the learning rate" in caught.value.message
    assert caught.value.next_step.endswith("resume=auto 'trainer.checkpoint.allow_changes=[data.sha256,seed,trainer.max_steps]'")


def test_what_is_allowed_is_taken() -> None:
    assert judged(changed(trainer__max_steps=12), allowed=("trainer",)) == ["trainer.max_steps"]
    assert judged(changed(trainer__max_steps=12), harmless=("trainer.max_steps",)) == ["trainer.max_steps"]
    with pytest.raises(InputError, match="seed"):
        judged(changed(trainer__max_steps=12, seed=1), allowed=("trainer.max_steps",))
    with pytest.raises(InputError, match="trainer.max_step, which no recipe has"):
        judged(RECIPE, allowed=("trainer.max_step",))
    assert not covers(["trainer.max"], "trainer.max_steps")


@pytest.mark.parametrize(("key", "value"), [("model__shape__layers", 3), ("adapter__r", 16), ("trainer__optimizer", "adafactor"), ("model__sha256", "n")])
def test_another_shape_cannot_be_allowed(key: str, value: Any) -> None:
    dotted = key.replace("__", ".")
    with pytest.raises(InputError, match="cannot be put into this one"):
        judged(changed(**{key: value}), allowed=(dotted,))


# ---- random states ----


def test_random_states_come_back() -> None:
    """Proves SYS-F-018 in part: torch, Python and numpy draw after the load what they drew after the save; through a weights-only file."""
    seed_random_states(3)
    state = random_state()

    def draw() -> tuple[list[float], float, float, float]:
        return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), float(numpy.random.rand())

    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first
    seed_random_states(3)
    assert draw() == first


def test_random_states_pass_a_weights_only_load(tmp_path: Path) -> None:
    torch.save([random_state()], tmp_path / "state")
    want = torch.rand(2).tolist()
    set_random_state(torch.load(tmp_path / "state", weights_only=True)[0])
    assert torch.rand(2).tolist() == want


def test_ranks_of_another_number_draw_anew(tmp_path: Path) -> None:
    """The states of two ranks are of no use to one: it starts from seed and step, and each rank from a number of its own."""
    seed_random_states(5)
    states = [random_state(), random_state()]
    drawn = []
    for start in (4, 4, 5):
        checkpoints = Checkpoints(run_in(tmp_path), config=config(), facts=FACT, start_step=start)
        checkpoints._pending = states
        checkpoints._restore(Lightning())  # type: ignore[arg-type]
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] != drawn[2]


def test_counters_say_after_the_step_wherever_it_was_saved() -> None:
    progress = {"total": {"ready": 4, "started": 4, "processed": 4, "completed": 3}, "current": {"ready": 4}, "is_last_batch": False}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress, "epoch_loop.val_loop.batch_progress": {"total": {}, "current": {}}}}}
    settle_loops(checkpoint, step=3, validation_due=True)
    loop = checkpoint["loops"]["fit_loop"]
    assert loop["epoch_loop.batch_progress"]["total"] == dict.fromkeys(("ready", "started", "processed", "completed"), 3)
    assert loop["epoch_loop.val_loop.batch_progress"]["total"] == {"ready": 1, "started": 1, "processed": 0, "completed": 0}


# ---- copies elsewhere: the folder of another disk stands for a bucket; a real one is in tests/task/test_resume_bucket.py ----


def local_storage() -> Any:
    from largeforge.storage.config import LocalConfig
    from largeforge.storage.local import Local

    return Local(LocalConfig(_target_="largeforge.storage.local.Local"))


def test_copies_hold_what_is_kept(tmp_path: Path) -> None:
    """Each kept checkpoint stands there too, and goes when it goes; a run whose own folder is empty goes on from them."""
    elsewhere = str(tmp_path / "elsewhere")
    run = run_in(tmp_path / "run", copies=elsewhere)
    copies = open_copies(run, storage=local_storage(), folder=elsewhere)
    assert copies is not None
    write(run, [1, 2, 3], keep_last=2, copies=copies)
    assert names(tmp_path / "elsewhere") == ["step=000002", "step=000003"] and not copies.missing
    shutil.rmtree(tmp_path / "run")
    again = run_in(tmp_path / "run", resume="auto", copies=elsewhere)
    found = find_checkpoint(again, storage=local_storage())
    assert found is not None and found.facts.step == 3 and found.path == tmp_path / "elsewhere" / "step=000003"
    with pytest.raises(InputError, match="holds checkpoints of a run already"):
        open_copies(run, storage=local_storage(), folder=elsewhere)


def test_a_sound_copy_is_taken_before_an_older_one_here(tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    run = run_in(tmp_path / "run", resume="auto", copies=elsewhere)
    write(run, [1, 2], keep_last=2, copies=open_copies(run, storage=local_storage(), folder=elsewhere))
    (tmp_path / "run" / "checkpoints" / "step=000002" / "state.ckpt").write_bytes(b"")
    found = find_checkpoint(run, storage=local_storage())
    assert found is not None and found.path == tmp_path / "elsewhere" / "step=000002"


def test_a_copy_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    """It is told, the checkpoint here stands, and the next one is tried."""
    elsewhere = tmp_path / "elsewhere"
    run = run_in(tmp_path / "run", copies=str(elsewhere))
    copies = open_copies(run, storage=local_storage(), folder=str(elsewhere))
    assert copies is not None
    elsewhere.mkdir()
    (elsewhere / "step=000001").write_text("a file in its place")
    write(run, [1, 2], keep_last=2, copies=copies)
    assert copies.missing == {"step=000001"} and copies.names == {"step=000002"}
    assert len(run.said) == 1 and "could not be copied" in run.said[0]
