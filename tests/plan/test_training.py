"""Plans of whole tasks, through the command line's own way: composed, checked, outlined, traced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge.__main__ import main
from largeforge.build import find
from largeforge.config.compose import compose
from largeforge.console import Console
from largeforge.errors import EXIT_DOES_NOT_FIT, EXIT_DONE
from largeforge.plan.report import Plan

GIB = 1 << 30
# Parameters as their makers count them, embeddings counted once where they are tied.
PARAMETERS = {
    "nano": 3_410_176,
    "smollm2": 134_515_008,
    "smollm2_360m": 361_821_120,
    "qwen3_0_6b": 596_049_920,
    "llama3_2_1b": 1_235_814_400,
    "mistral7b": 7_241_732_096,
    "llama3_1_8b": 8_030_261_248,
    "qwen3_8b": 8_190_735_360,
    "llama3_3_70b": 70_553_706_496,
}


def plan_of(*words: str) -> Plan:
    composed = compose(["task=sft", "tracker=none", *words], files=True)
    plan = find(composed.config.task.target)(composed.config).plan(progress=Console(stream=None, live=False))
    assert isinstance(plan, Plan)
    return plan


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_model_is_planned_offline(name: str, cache: Path) -> None:
    """70B too is planned from its shape, with no weight, no hub and no GPU."""
    plan = plan_of(f"model={name}", "adapter=none", "plan=h100-80gb", "data.packing=false", "trainer.micro_batch_size=1")
    assert plan.parameters == plan.trainable == PARAMETERS[name]
    # 4 bytes each for the weight, its gradient, and two moments
    assert plan.memory["weights"] == 4 * PARAMETERS[name]
    assert plan.memory["optimizer"] == pytest.approx(8 * PARAMETERS[name], rel=1e-3)
    assert plan.peak_bytes == sum(plan.memory.values()) >= 16 * PARAMETERS[name]
    assert plan.fits == (plan.peak_bytes <= plan.device.memory_bytes)
    assert plan.fits == (PARAMETERS[name] < 4e9)


def test_every_model_with_a_shape_is_in_the_list_above() -> None:
    folder = Path(__file__).resolve().parents[2] / "conf" / "model"
    with_shape = {path.stem for path in folder.glob("*.yaml") if yaml.safe_load(path.read_text(encoding="utf-8")).get("shape")}
    assert with_shape == set(PARAMETERS)


def test_a_model_without_its_tokenizer_is_planned_without_rows(cache: Path) -> None:
    plan = plan_of("model=mistral7b", "plan=rtx4090")
    assert not plan.shown
    assert "tokens" not in plan.facts
    assert any("tokenizer is not on this machine" in note for note in plan.notes)


@pytest.mark.slow
def test_70b_in_full_does_not_fit_a_4090(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=sft", "model=llama3_3_70b", "adapter=none", "plan=rtx4090"]) == EXIT_DOES_NOT_FIT
    told = capsys.readouterr().out
    assert "fits" in told
    assert "70,553,706,496" in told


def test_lora_on_7b_in_24_gb(cache: Path) -> None:
    """Proves SR-C-004 and SR-F-003 as a plan: LoRA on 7B fits 24 GB where activations are kept small, and full fine-tuning does not."""
    words = ["model=mistral7b", "plan=rtx4090", "data.max_length=1024", "trainer.micro_batch_size=1"]
    spare = plan_of(*words, "trainer.gradient_checkpointing=true")
    assert spare.fits
    assert spare.memory["weights"] > 7_241_732_096 * 2
    assert spare.memory["activations"] < plan_of(*words).memory["activations"] / 3
    assert not plan_of(*words, "adapter=none", "trainer.gradient_checkpointing=true").fits


def test_nano_is_planned_with_its_rows(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run would do is told before it is paid for; exit 0, and nothing is left behind."""
    words = ["task=sft", "model=nano", "plan=true", "data.num_rows=40", "data.num_heldout=4", "trainer.batch_size=8"]
    assert main(words) == EXIT_DONE
    told = capsys.readouterr().out
    assert told.count("tokens are trained") == 3
    assert "[<|im_end|>]" in told
    plan = plan_of(*words[1:])
    assert 35 <= plan.facts["rows"] <= 40  # a share is set aside for validation
    assert plan.facts["steps"] == -(-plan.facts["rows"] // 8)
    for row in plan.shown:
        assert len(row.tokens) == len(row.trained)
        answer = "".join(token for token, trained in zip(row.tokens, row.trained, strict=True) if trained)
        assert answer.startswith("python -m largeforge")
        assert answer.endswith("<|im_end|>")
        assert not any(row.trained[:5])
    assert json.loads(json.dumps(plan.as_dict()))["peak_bytes"] == plan.peak_bytes


def test_more_tokens_at_once_need_more(cache: Path) -> None:
    small, large = (plan_of("model=qwen3_0_6b", "plan=l4", f"trainer.micro_batch_size={size}", "data.packing=false") for size in (2, 8))
    assert large.memory["weights"] == small.memory["weights"]
    assert large.memory["activations"] == pytest.approx(4 * small.memory["activations"], rel=0.1)


def test_what_a_named_gpu_computes_does_not_depend_on_this_machine(cache: Path) -> None:
    """fp32 here, where the CPU has nothing else, is still bf16 there; the user's own word counts on both."""
    words = ["model=qwen3_0_6b", "plan=l4", "data.packing=false"]
    assert plan_of(*words).memory["weights"] < 2.2 * PARAMETERS["qwen3_0_6b"]
    assert plan_of(*words, "trainer.precision=fp32").memory["weights"] > 4 * PARAMETERS["qwen3_0_6b"]


def _talk(*words: str) -> Any:
    composed = compose(["task=chat", *words], files=True)
    return find(composed.config.task.target)(composed.config).plan(progress=Console(stream=None, live=False))


def test_talking_is_planned(cache: Path) -> None:
    """Keys and values: 2 x 32 layers x 8 heads x 128 x 2 bytes a token."""
    plan = _talk("model=mistral7b", "model.dtype=bf16", "plan=rtx4090")
    assert plan.fits
    assert plan.trainable == 0
    assert plan.memory["weights"] == 2 * PARAMETERS["mistral7b"]
    assert plan.memory["keys and values"] == (1024 + 256) * 2 * 32 * 8 * 128 * 2
    assert not _talk("model=llama3_3_70b", "model.dtype=bf16", "plan=rtx4090").fits
