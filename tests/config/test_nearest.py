"""The nearest name, and the nearest key matched on the full path."""

from __future__ import annotations

import pytest

from largeforge.config.nearest import distance, nearest, nearest_key

KEYS = ["seed", "model.path", "model.dtype", "adapter.r", "adapter.alpha", "adapter.rslora", "method.learning_rate", "trainer.max_steps"]
KEYS += ["trainer.batch_size", "trainer.micro_batch_size", "trainer.epochs", "data.max_length", "data.path", "data.packing", "engine.batch_size"]


@pytest.mark.parametrize(("a", "b", "letters"), [("", "", 0), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("kitten", "sitting", 3), ("", "ab", 2)])
def test_distance(a: str, b: str, letters: int) -> None:
    assert distance(a, b) == distance(b, a) == letters
    assert distance(a, b, 1) == min(letters, 2)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("adapter.rnk", "adapter.r"),
        ("adaptr.alpha", "adapter.alpha"),
        ("train.max_steps", "trainer.max_steps"),
        ("max_steps", "trainer.max_steps"),
        ("lr", "method.learning_rate"),
        ("trainer.batchsize", "trainer.batch_size"),
        ("engine.batch_sise", "engine.batch_size"),
        ("data.pth", "data.path"),
        ("model.pth", "model.path"),
        ("trainer.micro_batch", "trainer.micro_batch_size"),
        ("sed", "seed"),
        ("nothing.like_it", None),
        ("q", None),
    ],
)
def test_nearest_key(typed: str, meant: str | None) -> None:
    assert nearest_key(typed, KEYS) == meant
    assert nearest_key(typed, reversed(KEYS)) == meant


def test_nearest_name() -> None:
    names = ["hf", "mistral7b", "nano", "smollm2", "smollm2_360m"]
    assert [nearest(word, names) for word in ("mistral8b", "nanoo", "smolm2", "smollm2_360", "mistral", "qqqqqq", "")] == [
        "mistral7b",
        "nano",
        "smollm2",
        "smollm2_360m",
        "mistral7b",
        None,
        None,
    ]
