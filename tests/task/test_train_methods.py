"""Every method through the real entry point, on nano and a few rows: it learns, leaves an artifact, and says what was asked wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from largeforge.config.compose import compose
from largeforge.errors import ConfigError
from largeforge.run import execute
from tests.data.tiny import write_jsonl

Go = Callable[..., tuple[int, dict[str, Any]]]
SMALL = ["model.shape.num_hidden_layers=2", "model.shape.hidden_size=64", "model.shape.intermediate_size=128"]


@pytest.fixture
def go(model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Run a task on a small nano; returns the exit code and the metrics."""
    monkeypatch.setenv("LARGEFORGE_CACHE", str(model_cache))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {n}.", "chosen": f"gladly {n} " * (n % 3 + 1), "rejected": f"never {n}"} for n in range(24)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    write_jsonl(tmp_path / "text.jsonl", [{"text": f"The river {n} is long and wide. " * (n % 4 + 1)} for n in range(40)])

    def run(folder: str, *words: str) -> tuple[int, dict[str, Any]]:
        task = next(word for word in words if word.startswith("task="))
        data = ["data=text", "data.path=text.jsonl"] if task == "task=pretrain" else ["data=preference", "data.path=pairs.jsonl"]
        size = ["data.max_length=64", "trainer.batch_size=6", "trainer.micro_batch_size=3"]
        common = ["model=nano", *SMALL, *data, *size, "trainer=cpu", "trainer.precision=fp32", "tracker=none", f"folder={folder}"]
        code = execute(compose([*words, *[word for word in common if word.partition("=")[0] not in {w.partition("=")[0] for w in words}]]))
        result = tmp_path / folder / "result.json"
        return code, json.loads(result.read_text(encoding="utf-8"))["metrics"] if result.is_file() else {}

    return run


@pytest.mark.parametrize("task", ["dpo", "orpo", "simpo"])
def test_preferences_are_learnt(go: Go, task: str, tmp_path: Path) -> None:
    """Proves SR-F-004, SYS-F-012 and SYS-F-013: on pairs that it has seen a model prefers the chosen answers, and the loss falls."""
    code, metrics = go(
        "run", f"task={task}", "adapter=none", "trainer.epochs=8", "method.learning_rate=1e-3", "data.validation=pairs.jsonl", "trainer.validate_first=true"
    )
    assert code == 0
    assert metrics["loss"] < metrics["loss_first"]
    assert metrics["validation_preference_accuracy"] > 0.9 > metrics["validation_preference_accuracy_before"]
    assert metrics["validation_preference_margin"] > metrics["validation_preference_margin_before"]
    assert json.loads((tmp_path / "run" / "artifact" / "manifest.json").read_text())["kind"] == "model"
    assert "preference_accuracy" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_judged_answers_are_learnt(go: Go) -> None:
    code, metrics = go("run", "task=kto", "trainer.epochs=6", "method.learning_rate=5e-3", "data.validation=pairs.jsonl")
    assert code == 0 and metrics["rows_in"] == 96  # two answers a pair, to train and to validate on
    assert metrics["validation_reward_chosen"] > metrics["validation_reward_rejected"]


def test_text_is_learnt(go: Go) -> None:
    """Proves SYS-F-015 and SR-F-002: held-out bits per byte fall."""
    code, metrics = go("run", "task=pretrain", "trainer.epochs=4", "method.learning_rate=3e-3", "data.validation=0.2", "trainer.validate_first=true")
    assert code == 0
    assert metrics["validation_bits_per_byte"] < 0.8 * metrics["validation_bits_per_byte_before"] < 8


def test_a_validation_before_the_first_step_changes_nothing(go: Go, tmp_path: Path) -> None:
    words = ["task=dpo", "trainer.max_steps=2", "adapter.dropout=0.1", "data.validation=0.3"]
    ids = []
    for folder, more in (("plain", []), ("first", ["trainer.validate_first=true"])):
        go(folder, *words, *more)
        ids.append(json.loads((tmp_path / folder / "artifact" / "manifest.json").read_text())["id"])
    assert ids[0] == ids[1]


def test_a_cached_reference_gives_the_run_of_one_that_is_asked(go: Go, tmp_path: Path) -> None:
    """The same weights in the end, to rounding: values computed beside other rows differ in the last bit."""
    from safetensors.torch import load_file

    found = []
    for folder, mode in (("online", "online"), ("cached", "cached")):
        code, metrics = go(folder, "task=dpo", "trainer.max_steps=3", "data.packing=true", f"method.reference_logprobs={mode}")
        assert code == 0
        found.append((metrics["loss"], load_file(tmp_path / folder / "artifact" / "adapter_model.safetensors")))
    (loss, weights), (other_loss, others) = found
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert all((weights[name] - others[name]).abs().max() < 1e-5 for name in weights)


def test_a_checkpoint_of_weights_and_the_artifact_load_in_transformers(go: Go, tmp_path: Path) -> None:
    """Proves SYS-D-004: Hugging Face's own files, the last checkpoint's weights being the artifact's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    every = ["trainer.max_steps=2", "trainer.checkpoint.every_steps=2", "trainer.checkpoint.content=weights"]
    assert go("run", "task=orpo", "adapter=none", *every)[0] == 0
    folders = (tmp_path / "run" / "checkpoints" / "step=000002", tmp_path / "run" / "artifact")
    kept, left = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert kept.keys() == left.keys() and all(torch.equal(kept[name], left[name]) for name in kept)
    assert all(AutoTokenizer.from_pretrained(folder).chat_template for folder in folders)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task=dpo", "data=chat", "data.path=rows.jsonl"], "task=dpo takes one of: artifact, demo, preference"),
        (["task=pretrain", "data=preference", "data.path=pairs.jsonl"], "task=pretrain takes one of: artifact, text"),
        (["task=orpo", "method=dpo"], "task=orpo takes one of: orpo, simpo"),
        (["task=orpo", "reference=nano"], "task=orpo has no model@reference"),
        (["task=dpo", "method.label_smoothing=0.5"], "below 0.5"),
        (["task=kto", "method.train_on=all"], "answer"),
        (["task=prepare", "data=preference", "data.path=pairs.jsonl", "data.curriculum=length"], "this is for training"),
    ],
)
def test_what_a_method_cannot_take_is_told(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert says in str(caught.value)
