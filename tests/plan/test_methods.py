"""Plans of every method, with second models, optimizers and several devices: through the command line's own way."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.errors import EXIT_DOES_NOT_FIT, EXIT_DONE
from largeforge.plan.report import Plan
from tests.plan.test_training import GIB, PARAMETERS
from tests.plan.test_training import plan_of as planned

NANO = PARAMETERS["nano"]
SMALL = ("model=nano", "data.num_rows=40", "data.num_heldout=4", "trainer=cpu", "trainer.precision=bf16", "data.packing=false")
SEVENTY = ("model=llama3_3_70b", "plan=h100-80gb", "benchmark=none", "trainer.batch_size=64", "trainer.micro_batch_size=1")


def plan_of(task: str, *words: str) -> Plan:
    """A plan of nano on a CPU; trainer and data are small."""
    return planned(f"task={task}", *SMALL, "plan=true", *words)


def tensors(plan: Plan) -> int:
    """Bytes of tensors alone: the allocator's holes change by some MB with the moment at which Python collects garbage."""
    return sum(size for name, size in plan.memory.items() if name not in ("allocator", "libraries"))


# ---- methods ----


@pytest.mark.parametrize("task", ["dpo", "kto", "orpo", "simpo"])
def test_preferences_are_planned(task: str, cache: Path) -> None:
    """Each makes the batches that its method learns from; a pair is two sequences."""
    plan = plan_of(task)
    assert plan.task == task
    assert plan.memory["activations"] > 0
    sequences = int(str(plan.facts["worst micro-batch"]).split()[0])
    assert sequences == (8 if task == "kto" else 16)
    assert ("reference" in plan.facts) == (task in ("dpo", "kto"))
    assert "reference" not in plan.memory  # the adapter is switched off: no second weights


def test_a_second_reference_is_counted_once(cache: Path) -> None:
    """A reference beside weights that all learn: bf16, of nano's parameters; asked once it is gone before training."""
    online = plan_of("dpo", "adapter=none")
    assert online.memory["reference"] == 2 * NANO
    assert online.memory["weights"] == 4 * NANO
    assert "asked in every step" in online.facts["reference"]
    named = plan_of("dpo", "reference=nano")
    assert named.memory["reference"] == 2 * NANO
    once = plan_of("dpo", "adapter=none", "reference=nano", "method.reference_logprobs=cached")
    assert "reference" not in once.memory
    assert tensors(once) < tensors(online)
    assert "before training" in once.facts["asked once"]
    assert any(note.startswith("Before training") and "reference" in note for note in once.notes)


def test_the_reference_takes_no_activations_of_its_own(cache: Path) -> None:
    """What it computes is let go layer by layer: the plan grows by its weights and little else."""
    with_it, without = plan_of("dpo", "reference=nano"), plan_of("dpo")
    grown = sum(with_it.memory[name] - without.memory[name] for name in ("activations", "logits"))
    assert abs(grown) < 0.1 * without.memory["activations"]


def test_distillation_is_planned(cache: Path) -> None:
    """The teacher's weights, the projections' where hidden states are matched, and nothing of a teacher that is asked once."""
    plain = plan_of("distill", "teacher=nano")
    assert plain.memory["teacher"] == 2 * NANO
    hidden = plan_of("distill", "teacher=nano", "method.hidden.weight=1")
    width, layers = 256, 4
    assert hidden.memory["weights"] - plain.memory["weights"] == layers * width * width * 4
    once = plan_of("distill", "teacher=nano", "method.teacher_logits=cached")
    assert "teacher" not in once.memory
    both = plan_of("distill", "teacher=nano", "assistant=nano")
    assert both.memory["assistant"] == both.memory["teacher"] == 2 * NANO
    assert plan_of("distill", "teacher=nano", "method.on_policy.share=0.5").notes != plain.notes


@pytest.mark.slow
def test_where_asking_before_needs_more_than_training(cache: Path) -> None:
    """A teacher of 8B parameters that is asked once beside a student of 1B: the peak comes before training, eight rows at a time, and is the plan's."""
    words = ["task=distill", "model=llama3_2_1b", "teacher=llama3_1_8b", "plan=rtx4090", "adapter=lora", "data.packing=false", "trainer.micro_batch_size=1"]
    online, once = planned(*words), planned(*words, "method.teacher_logits=cached")
    teacher = 2 * PARAMETERS["llama3_1_8b"]
    assert once.memory["teacher"] == online.memory["teacher"] == teacher
    assert once.memory["optimizer"] == 0 < online.memory["optimizer"]
    assert teacher < once.peak_bytes < planned(*words, "trainer.micro_batch_size=8").peak_bytes
    assert any("That is the peak of the run" in note for note in once.notes)


@pytest.mark.slow
def test_three_layers_stand_for_a_second_model_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["task=dpo", "model=qwen3_0_6b", "reference=llama3_2_1b", "model.shape.vocab_size=128256", "model.shape.num_hidden_layers=6", "plan=l4"]
    words += ["adapter=none", "trainer.micro_batch_size=2", "reference.shape.num_hidden_layers=7"]
    short = planned(*words)
    monkeypatch.setattr("largeforge.plan.step.TRACED_LAYERS", 99)
    whole = planned(*words)
    for name, size in whole.memory.items():
        assert short.memory[name] == pytest.approx(size, rel=0.02, abs=1 << 20), name


def test_text_is_planned(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One small step for a plan. " * 400, encoding="utf-8")
    plan = planned("task=pretrain", "model=nano", "trainer=cpu", "plan=true", "data=text", f"data.path={path}", "adapter=none", "data.validation=0.0")
    assert plan.task == "pretrain"
    # of each text every token but the first is learnt
    assert 0 < plan.facts["tokens"] - plan.facts["supervised tokens"] <= plan.facts["rows"] * plan.facts["steps"]


def test_dpo_from_the_command_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=dpo", *SMALL, "plan=true"]) == EXIT_DONE
    assert "its adapter switched off" in capsys.readouterr().out


# ---- optimizers, weights of few bits ----


def test_optimizers_keep_what_they_keep(cache: Path) -> None:
    """AdamW 8 bytes a parameter, in 8 bits a little over 2, Adafactor rows and columns."""
    whole = ["task=sft", "model=qwen3_0_6b", "adapter=none", "plan=l4", "trainer.micro_batch_size=1"]
    kept = {name: planned(*whole, f"trainer.optimizer={name}").memory["optimizer"] / PARAMETERS["qwen3_0_6b"] for name in ("adamw", "adamw_8bit", "adafactor")}
    assert kept["adamw"] == pytest.approx(8, rel=1e-3)
    assert kept["adamw_8bit"] == pytest.approx(2 + 2 * 4 / 256, rel=2e-3)
    assert kept["adafactor"] < 0.2


def test_qlora_of_7b_in_16_gb(cache: Path) -> None:
    """Proves SR-C-004 as a plan: NF4 holds the blocks of Mistral-7B in 4 bits and a scale for 64 of them, embedding and head in bf16."""
    words = ["task=sft", "model=mistral7b", "data.max_length=512", "trainer.micro_batch_size=2", "data.packing=false", "quant=nf4"]
    plan = planned(*words, "plan=rtx4080")
    ends, lora = 2 * 32000 * 4096, plan.trainable
    blocks = PARAMETERS["mistral7b"] - ends
    assert plan.parameters == PARAMETERS["mistral7b"] + lora
    assert plan.memory["weights"] == pytest.approx(blocks * (0.5 + (1 + 4 / 256) / 64) + 2 * ends + 4 * lora, rel=1e-3)
    assert plan.fits
    assert planned(*words, "plan=rtx4080", "quant=none").peak_bytes > plan.peak_bytes + 9 * GIB


# ---- several devices ----


def test_ddp_holds_all_and_shares_rows(cache: Path) -> None:
    """Two devices: half of the rows each; gradients have their room from the start; on a CPU both take the same memory."""
    one, two = plan_of("sft", "adapter=none"), plan_of("sft", "adapter=none", "trainer.devices=2")
    assert (one.facts["worst micro-batch"].split()[0], two.facts["worst micro-batch"].split()[0]) == ("8", "4")
    for name in ("rows", "steps", "tokens", "supervised tokens"):
        assert one.facts[name] == two.facts[name], name
    assert two.memory["weights"] == one.memory["weights"] == 4 * NANO
    assert two.memory["gradients"] == 4 * NANO
    assert two.needed_bytes == 2 * two.peak_bytes
    assert one.needed_bytes == one.peak_bytes


@pytest.mark.parametrize(("devices", "nodes"), [pytest.param(2, 1, marks=pytest.mark.slow), pytest.param(8, 1, marks=pytest.mark.slow), (8, 8)])
def test_70b_on_2_to_64_devices(devices: int, nodes: int, cache: Path) -> None:
    """Proves SYS-S-002 as a plan: of 70B in full each device holds its share of weights and moments, and whole only what computes."""
    plan = planned(
        "task=sft", *SEVENTY, "adapter=none", "trainer.strategy=fsdp", f"trainer.devices={devices}", f"trainer.nodes={nodes}", "trainer.batch_size=64"
    )
    world, total = devices * nodes, PARAMETERS["llama3_3_70b"]
    assert plan.num_devices == world
    assert plan.memory["weights"] == pytest.approx(4 * total / world, rel=1e-3)
    assert plan.memory["optimizer"] == pytest.approx(8 * total / world, rel=1e-3)
    layer = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192 + 2 * 8192
    root = total - 80 * layer
    assert root == 2 * 128256 * 8192 + 8192
    if world == 64:  # one micro-batch a step: the root and its gradient, three layers, twice the gradient of one
        assert plan.memory["gathered"] == 4 * (2 * root + 5 * layer)
    else:  # several: gradients are whole until the last
        assert plan.memory["gathered"] == 4 * (root + 4 * layer)
        assert plan.memory["gradients"] == pytest.approx(4 * total, rel=1e-2)
        assert any("takes one micro-batch a step" in note for note in plan.notes)
    assert not plan.fits  # activations of 80 layers: they are computed again, or it does not fit


@pytest.mark.slow
def test_70b_fits_64_devices(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-S-002 as a plan, from the command line: LoRA, and all weights where activations are computed again."""
    words = ["task=sft", *SEVENTY, "trainer.strategy=fsdp", "trainer.devices=8", "trainer.nodes=8"]
    assert main(words) == EXIT_DONE
    told = capsys.readouterr().out
    assert "memory: peak of each" in told and "64 in 8 machines" in told
    assert main([*words, "adapter=none", "trainer.gradient_checkpointing=true"]) == EXIT_DONE


# ---- what would fit ----


@pytest.mark.slow
def test_what_would_fit_is_planned_like_the_run(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=sft", "model=llama3_2_1b", "plan=rtx3060-12gb", "trainer.micro_batch_size=8", "data.max_length=2048", "data.packing=false", "benchmark=none"]
    assert main(words) == EXIT_DOES_NOT_FIT
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("What would change it"))
    told = {line.split("fit")[-1].lstrip("s ").strip(): line for line in lines[start + 1 : start + 8] if "fit" in line}
    change = "trainer.micro_batch_size=1 trainer.gradient_checkpointing=true"
    assert {"trainer.micro_batch_size=4", "trainer.micro_batch_size=1", "trainer.gradient_checkpointing=true", change} <= set(told)
    alone = planned(*words, *change.split())
    assert alone.fits
    assert f"{alone.peak_bytes / GIB:.2f} GiB  fits" in told[change]
    assert "does not fit" in told["trainer.micro_batch_size=4"]
