"""What judges a run, by numbers worked out by hand: spikes, validations without gain, metrics that nobody measures; and what Watch sums up."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from largeforge.errors import InputError
from largeforge.trainer.config import AutoConfig
from largeforge.trainer.stopping import Stopping
from largeforge.trainer.watch import Watch

VALUES = yaml.safe_load((Path(__file__).parents[2] / "conf" / "trainer" / "auto.yaml").read_text())


def config(spike_factor: float = 0, **stopping: Any) -> AutoConfig:
    return AutoConfig.model_validate({**VALUES, "spike_factor": spike_factor, "early_stopping": {**VALUES["early_stopping"], **stopping}})


def run() -> Any:
    said: list[str] = []
    bar = SimpleNamespace(advance=lambda *_, **__: None, close=lambda: None)
    logged: list[tuple[int, dict[str, float]]] = []
    progress = SimpleNamespace(say=said.append, bar=lambda *_, **__: bar)
    return SimpleNamespace(progress=progress, said=said, logged=logged, log_metrics=lambda step, metrics: logged.append((step, metrics)))


def stopping(config: AutoConfig) -> Stopping:
    return Stopping(run(), config=config, checkpoints=SimpleNamespace(), origins=lambda step: [])  # type: ignore[arg-type]


def lightning(step: int = 2, max_steps: int = 100) -> Any:
    return SimpleNamespace(
        global_step=step, max_steps=max_steps, should_stop=False, sanity_checking=False, enable_validation=True, is_global_zero=True, loggers=[], world_size=1
    )


def validate(judge: Stopping, values: list[float], *, name: str = "validation_loss") -> list[bool]:
    """Judge validations one after another; whether each one stops the run."""
    told = []
    for number, value in enumerate(values):
        trainer = lightning(step=2 * number + 2)
        judge.on_validation_end(trainer, SimpleNamespace(validation_metrics={"validation_loss": 0.0, name: value}))  # type: ignore[arg-type]
        told.append(trainer.should_stop)
    return told


# ---- validations ----


def test_stops_after_validations_without_gain() -> None:
    """Proves SYS-F-023: best 3.0, then 2.95 is no gain of 0.1, 2.85 is one, then three without."""
    judge = stopping(config(patience=3, min_delta=0.1))
    assert validate(judge, [3.0, 2.95, 2.85, 2.8, 2.76, 2.9]) == [False] * 5 + [True]
    assert judge.best == 2.85 and judge.run.said == ["Stopping early at step 12: no validation_loss below 2.8500 in 3 validations."]


def test_more_may_be_better_and_no_number_is_no_gain() -> None:
    judge = stopping(config(patience=2, mode="max", metric="validation_preference_accuracy"))
    assert validate(judge, [0.5, 0.7, math.nan, 0.7], name="validation_preference_accuracy") == [False, False, False, True]


def test_counts_survive_a_resume() -> None:
    """Judged in two halves, through the state of a checkpoint, is judged at once."""
    first, second = stopping(config(patience=2)), stopping(config(patience=2))
    assert validate(first, [1.0, 1.5]) == [False, False]
    second.load_state_dict(first.state_dict())
    assert validate(second, [1.2]) == [True] and second.state_dict()["stopped"] is True


def test_patience_zero_never_stops_and_the_last_step_needs_no_stop() -> None:
    assert validate(stopping(config(patience=0)), [1.0, 2.0, 3.0]) == [False] * 3
    judge, last = stopping(config(patience=1)), lightning(step=100)
    validate(judge, [1.0])
    judge.on_validation_end(last, SimpleNamespace(validation_metrics={"validation_loss": 2.0}))  # type: ignore[arg-type]
    assert not last.should_stop and not judge.run.said


def test_a_metric_that_nobody_measures_is_named_at_the_first_step() -> None:
    judge = stopping(config(patience=1, metric="validation_acuracy"))
    outputs = {"loss": 1.0, "taken": True, "gradient_norm": 1.0}
    with pytest.raises(InputError, match="there are: validation_loss, validation_preference_accuracy"):
        judge.on_train_batch_end(lightning(step=1), SimpleNamespace(measured=lambda: {"preference_accuracy": 0.5}), outputs, [], 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="validation_acuracy is measured by no validation"):
        validate(judge, [1.0])


# ---- losses ----


def test_a_spike_is_measured_against_the_median() -> None:
    """Of 1..9 the median is 5: 15 is three times that and may pass, a little more may not; one large loss does not move the bar."""
    judge = stopping(config(spike_factor=3))
    judge.recent.extend(range(1, 8))
    assert judge.accepts(1000.0)  # too few steps to say
    judge.recent.extend([8, 9])
    assert judge.accepts(15.0) and not judge.accepts(15.1)
    judge.recent.append(1e9)
    assert not judge.accepts(16.6) and judge.accepts(16.4)  # the median of ten is 5.5


def test_losses_that_are_no_numbers_are_never_taken() -> None:
    judge = stopping(config())
    assert judge.accepts(1e30) and not any(judge.accepts(loss) for loss in (math.nan, math.inf, -math.inf))


def test_losses_below_zero_are_no_spike() -> None:
    judge = stopping(config(spike_factor=2))
    judge.recent.extend([-1.0] * 10)
    assert judge.accepts(5.0)


# ---- watch ----


class Micro:
    num_supervised = 10
    input_ids_BT = position_ids_BT = supervised_BT = torch.zeros(1, 2)


def test_numbers_are_of_the_whole_run() -> None:
    """Two steps, a checkpoint, two more in another process: losses, tokens and steps are those of four; a step not taken counts nowhere."""
    module = SimpleNamespace(measured=lambda: {"preference_accuracy": 0.25}, validation_metrics={"validation_loss": 7.0})

    def steps(watch: Watch, numbers: list[int]) -> None:
        for step in numbers:
            outputs = {"loss": float(step), "taken": True, "gradient_norm": 1.0, "learning_rate": 0.1, "supervised_tokens": 20}
            watch.on_train_batch_start(lightning(), module, [], 0)  # type: ignore[arg-type]
            watch.on_train_batch_end(lightning(step), module, outputs, [Micro(), Micro()], 0)  # type: ignore[arg-type]

    first = Watch(run(), num_steps=4, start_step=0, config=config())
    steps(first, [1, 2])
    first.on_train_batch_end(lightning(2), module, {"loss": math.nan, "taken": False}, [Micro()], 0)  # type: ignore[arg-type]
    first.on_validation_end(lightning(2), module)  # type: ignore[arg-type]
    second = Watch(run(), num_steps=4, start_step=2, config=config())
    second.load_state_dict(first.state_dict())
    steps(second, [3, 4])
    summary = second.summary()
    assert (summary["steps"], summary["loss_first"], summary["loss"], summary["supervised_tokens"], summary["validation_loss"]) == (4, 1.0, 4.0, 80, 7.0)
    assert [step for step, _ in first.run.logged] == [1, 2, 2] and first.run.logged[0][1]["preference_accuracy"] == 0.25  # type: ignore[attr-defined]
    assert isinstance(first.state_dict()["losses"], torch.Tensor)
