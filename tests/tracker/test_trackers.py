"""Where curves go: what each tracker has on disk afterwards are the numbers of metrics.jsonl, also where a run was stopped and went on."""

from __future__ import annotations

import csv
import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from largeforge.build import build
from largeforge.config.command_line import read_setting
from largeforge.config.completion import complete
from largeforge.config.compose import compose
from largeforge.config.schema import recipe_schema
from largeforge.errors import ConfigError, InputError, MissingExtra
from largeforge.tracker.config import MLflowConfig, WandBConfig
from largeforge.tracker.mlflow import MLflow
from largeforge.tracker.wandb import WandB
from tests.task.conftest import Runner
from tests.task.test_train import StopAt


def told(folder: Path) -> dict[int, float]:
    """Step -> loss, as metrics.jsonl has it."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def in_csv(folder: Path) -> list[tuple[int, float]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as stream:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(stream) if row["loss"]]


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: LevelDB's log, blocks of 32 KiB, each piece after 7 bytes: checksum, length, kind (1 whole, 4 last)."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, pieces = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record
            pieces = b""


def in_wandb(path: Path) -> tuple[dict[int, float], dict[str, Any], Any]:
    """Step -> loss, the config, and the run, as a file of wandb's has them."""
    losses: dict[int, float] = {}
    config: dict[str, Any] = {}
    run = None
    for record in wandb_records(path):
        if record.HasField("run"):
            run = record.run
            config.update({item.key: json.loads(item.value_json) for item in run.config.update})
        elif record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "loss" in row:
                losses[row["trainer/global_step"]] = row["loss"]
    return losses, config, run


def in_mlflow(folder: Path) -> tuple[MlflowClient, list[Any]]:
    client = MlflowClient(f"sqlite:///{folder.resolve() / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("largeforge")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def test_several_at_once_all_have_the_numbers(train: Runner, tmp_path: Path) -> None:
    """Proves SYS-F-022: TensorBoard, the table, Weights & Biases and MLflow, in one run; each read back with its own reader."""
    words = ["tracker=[tensorboard,csv,wandb,mlflow]", "tracker.wandb.mode=offline", "tracker.wandb.project=mine", "name=first"]
    code, _ = train("run", *words, "trainer.max_steps=2", "trainer.log_every_steps=1", "method.learning_rate=3e-4")
    run = tmp_path / "run"
    losses = told(run)
    assert code == 0 and list(losses) == [1, 2]
    assert in_csv(run) == list(losses.items())
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == list(losses.items())
    (written,) = (run / "wandb").glob("offline-run-*/*.wandb")
    found, config, its_run = in_wandb(written)
    assert found == pytest.approx(losses)
    assert its_run.project == "mine" and its_run.display_name == "first" and config["method"]["learning_rate"] == 3e-4
    client, (mlflow_run,) = in_mlflow(run)
    assert mlflow_run.info.run_name == "first" and mlflow_run.info.status == "FINISHED" and mlflow_run.data.params["method/learning_rate"] == "0.0003"
    assert [(one.step, one.value) for one in client.get_metric_history(mlflow_run.info.run_id, "loss")] == list(losses.items())
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "wandb").exists()


def test_a_run_that_goes_on_goes_on_in_the_same_curves(train: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is appended to, MLflow's run and wandb's id stay: no step is lost, and none is there twice."""
    words = ["tracker=[csv,wandb,mlflow]", "tracker.wandb.mode=offline", "trainer.max_steps=4", "trainer.log_every_steps=1"]
    with monkeypatch.context() as patch:
        StopAt(2, patch)
        assert train("run", *words)[0] == 143
    run = tmp_path / "run"
    client, (before,) = in_mlflow(run)
    assert len(in_csv(run)) == 2 and before.info.status == "FAILED"
    assert train("run", *words, "resume=auto")[0] == 0
    losses = told(run)
    assert list(losses) == [1, 2, 3, 4] and in_csv(run) == list(losses.items())
    client, (after,) = in_mlflow(run)
    assert after.info.run_id == before.info.run_id and after.info.status == "FINISHED"
    assert [one.step for one in client.get_metric_history(after.info.run_id, "loss")] == [1, 2, 3, 4]
    pieces = [in_wandb(path) for path in sorted((run / "wandb").glob("offline-run-*/*.wandb"))]
    assert len({its_run.run_id for _, _, its_run in pieces}) == 1
    assert {step: loss for found, _, _ in pieces for step, loss in found.items()} == pytest.approx(losses)


def test_what_a_machine_cannot_do_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is logged in, MLflow's folders of old, a missing library: each with the next command."""
    wandb = WandBConfig(_target_="x", project="p", mode="online", entity=None, tags=[])
    mlflow = MLflowConfig(_target_="x", tracking_uri=None, experiment="e")
    live = {"folder": tmp_path, "values": {}, "name": None}
    with pytest.raises(InputError, match="nobody is logged in") as refused:
        WandB(wandb, **live)
    assert "mode=offline" in str(refused.value.next_step)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "a key that W&B never gave")
        with pytest.raises(InputError, match="does not let this machine in"):
            WandB(wandb, **live)
    for uri in ("file:///tmp/mlruns", "mlruns", "./mlruns"):
        with pytest.raises(InputError, match="database or on a server"):
            MLflow(mlflow.model_copy(update={"tracking_uri": uri}), **live)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make, config in ((WandB, wandb), (MLflow, mlflow)):
        with pytest.raises(MissingExtra) as missing:
            make(config, **live)
        assert missing.value.next_step == "pip install 'largeforge[trackers]'"


def test_a_list_is_completed_and_known_to_editors(tmp_path: Path) -> None:
    assert complete(["task=sft", "tracker=[csv,wa"]) == ["tracker=[csv,wandb"]
    allowed = recipe_schema()["properties"]["defaults"]["items"]["anyOf"][0]["properties"]["override /tracker"]["oneOf"]
    assert {"csv", "mlflow", "tensorboard", "wandb"} == set(allowed[-1]["items"]["enum"])
    assert "project" in recipe_schema()["properties"]["tracker"]["properties"]["wandb"]["anyOf"][0]["properties"]
    with pytest.raises(InputError, match="names no trackers"):
        build(compose(["task=sft", "model=nano", "tracker=several"]).config.tracker, folder=tmp_path, values={}, name=None)


def test_a_list_is_one_point_of_a_sweep() -> None:
    """-m with tracker=a,b sweeps; tracker=[a,b] is one value, and so is each list of several."""
    read = {text: read_setting(f"tracker={text}", multirun=True).sweep for text in ("csv,none", "[csv,wandb]", "[csv],[csv,wandb]")}
    assert read == {"csv,none": ("csv", "none"), "[csv,wandb]": None, "[csv],[csv,wandb]": ("[csv]", "[csv,wandb]")}


@pytest.mark.parametrize(
    ("words", "key", "mended"),
    [
        (["tracker=[tensorbord,csv]"], "tracker", "tracker='[tensorboard,csv]'"),
        (["tracker=[csv,wandb]", "tracker.wandb.projct=x"], "tracker.wandb.projct", "tracker.wandb.project=x"),
        (["tracker=[csv,wandb]", "tracker.wandb.mode=ofline"], "tracker.wandb.mode", "tracker.wandb.mode=offline"),
        (["tracker=[]"], "tracker", "tracker=none"),
        (["tracker=[none,csv]"], "tracker", "tracker='[csv]'"),
    ],
)
def test_mistakes_in_a_list(words: list[str], key: str, mended: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["task=sft", "model=nano", *words])
    assert [problem.key for problem in refused.value.problems] == [key]
    assert mended in str(refused.value.next_step)


def test_the_command_line_wins_over_the_list_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is taken whole: the choices of another are not mixed into it."""
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        "defaults:\n  - override /task: sft\n  - override /model: nano\n  - override /tracker: [csv, mlflow]\ntracker:\n  mlflow:\n    experiment: y\n"
    )

    def chosen(*words: str) -> list[str]:
        values = compose([f"recipe={recipe}", *words]).values["tracker"]
        return [name for name, value in values.items() if isinstance(value, dict)]

    assert chosen() == ["csv", "mlflow"]
    recipe.write_text(recipe.read_text().partition("tracker:\n  mlflow")[0])
    assert chosen("tracker=[tensorboard,csv]") == ["tensorboard", "csv"]
    (tmp_path / "more.yaml").write_text("defaults:\n  - /recipe/two\n  - override /tracker: [tensorboard, csv]\n")
    more = compose([f"recipe={tmp_path / 'more.yaml'}"]).values["tracker"]
    assert [name for name, value in more.items() if isinstance(value, dict)] == ["tensorboard", "csv"]
    (tmp_path / "more.yaml").write_text("defaults:\n  - /recipe/two\n  - override /tracker: none\n")
    assert compose([f"recipe={tmp_path / 'more.yaml'}"]).values["tracker"] == {"_target_": "largeforge.tracker.silent.Silent"}
    assert compose([f"recipe={recipe}", "tracker=csv"]).values["tracker"] == {"_target_": "largeforge.tracker.csv.CSV"}
