"""Help, from YAML comments and typed configs."""

from __future__ import annotations

import pytest

from largeforge.__main__ import main
from largeforge.config.help import overview, task_help
from largeforge.config.places import Library

from .conftest import Put


def test_overview_names_everything_that_can_be_chosen() -> None:
    text = overview()
    library = Library()
    for group in library.groups():
        for choice in library.choices(group):
            assert choice in text, f"{group}={choice}"
    for recipe in library.recipes():
        assert f"recipe={recipe}" in text
    assert "Fine-tune a model on rows of chat" in text
    assert "--completion" in text


def test_no_arguments_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare


def test_help_of_a_task_has_every_key_with_type_default_and_a_line(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    put("recipes/r.yaml", "defaults: [override /task: sft]\nadapter: {r: 77}\n")
    text = task_help(["task=sft", "model=nano"])
    assert "* model=nano" in text
    assert "  model=smollm2" in text
    assert "trainer.max_steps" in text
    lines = [line for line in text.splitlines() if line.strip().startswith("adapter.r ")]
    assert [" ".join(line.split()) for line in lines] == ["adapter.r a whole number, 1 or more [16]: rank of the update"]
    assert "model.init_seed" in text
    assert "one of: auto, fp32, bf16, fp16 [auto]" in text
    assert "[77]" in task_help(["recipe=r"])
    assert "prompt" in task_help(["task=chat"])
    assert "adapter.r" not in task_help(["task=chat"])


def test_help_offers_only_what_the_task_takes() -> None:
    text = task_help(["task=prepare", "data.path=x"])
    assert "* data=rows" in text
    assert "data=demo" not in text
    assert "step.normalise=augment" not in text
    assert "step.augment=augment_simplify" in text
    assert "* teacher=smollm2" in text
    assert "step.length.min_chars" in text


def test_help_of_a_mistaken_command_line_still_helps() -> None:
    assert "trainer.max_steps" in task_help(["task=sft", "adapter.rnk=1", "data=chat"])
    assert task_help(["model=nano"]) == overview()
