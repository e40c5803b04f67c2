"""Rows leave in the order of one number each: their length, a model's loss, or a draw; across shards as in one."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from largeforge.contract import LoadedModel, Reference
from largeforge.data.rows import Row
from largeforge.data.step.base import Survey
from largeforge.data.step.order import Order
from tests.data.step.made import chat, kept, make, preference, text
from tests.data.tiny import CHATML, make_tokenizer

ROWS = [text("x" * random.Random(n).randint(1, 40), f"rows.jsonl:{n}") for n in range(200)]


class Unigram(torch.nn.Module):
    """Gives every token the same chance wherever it stands: the loss of a text can be worked out by hand."""

    def __init__(self, scores: dict[int, float], size: int) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor([scores.get(token, 0.0) for token in range(size)]))

    def forward(self, input_ids: torch.Tensor) -> object:
        class Output:
            logits = self.scores.expand(*input_ids.shape, -1)

        return Output()


class Parrot(torch.nn.Module):
    """Thinks that every token comes twice."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(9.0 * torch.eye(size))

    def forward(self, input_ids: torch.Tensor) -> object:
        class Output:
            logits = self.scores[input_ids]

        return Output()


def test_by_length_both_ways() -> None:
    lengths = [len(row.text()) for row in ROWS]
    assert [len(row.text()) for row in kept(make("order")(ROWS))] == sorted(lengths)
    assert [len(row.text()) for row in kept(make("order", direction="descending")(ROWS))] == sorted(lengths, reverse=True)


@pytest.mark.parametrize("direction", ["ascending", "descending"])
def test_equal_rows_stay_as_they_were(direction: str) -> None:
    rows = [text("same!" if n % 2 else "other words", f"f:{n}") for n in range(20)]
    places = [int(row.origin[2:]) for row in kept(make("order", direction=direction)(rows)) if row.text() == "same!"]
    assert places == sorted(places)
    assert len(places) == 10


def test_rows_in_order_stay_where_they_are() -> None:
    rows = sorted(ROWS, key=lambda row: len(row.text()))
    assert kept(make("order")(rows)) == rows


def test_a_random_order_is_a_function_of_seed_and_rows() -> None:
    rows = [text(f"row {n}", f"f:{n}") for n in range(100)]
    first = kept(make("order", by="random")(rows))
    assert sorted(row.id for row in first) == sorted(row.id for row in rows)
    assert first != rows
    assert kept(make("order", by="random")(random.Random(1).sample(rows, 100))) == first
    assert kept(make("order", by="random", seed=1)(rows)) != first
    assert kept(make("order", by="random", direction="descending")(rows)) == first[::-1]


@pytest.mark.parametrize("by", ["length", "random"])
def test_shards_are_as_good_as_one(by: str, tmp_path: Path) -> None:
    """Destinations of five shards, one of them empty, are each place once, and give the order of one shard."""
    step = make("order", by=by)
    assert isinstance(step, Order)
    shards = [ROWS[:7], [], ROWS[7:100], ROWS[100:101], ROWS[101:]]
    surveys = []
    for number, rows in enumerate(shards):
        folder = tmp_path / str(number)
        folder.mkdir()
        step.survey(rows, folder)
        surveys.append(Survey(folder, number, len(rows)))
    verdict = tmp_path / "verdict"
    verdict.mkdir()
    step.decide(surveys, verdict, lambda function, tasks: [function(task) for task in tasks])
    placed: dict[int, Row] = {}
    for number, rows in enumerate(shards):
        places = step.destinations(number, verdict)
        assert places.dtype == "int64"
        placed.update(zip(places.tolist(), rows, strict=True))
    assert [placed[place] for place in range(len(ROWS))] == kept(step(ROWS))


def test_the_model_is_asked_for_only_where_loss_counts() -> None:
    assert make("order").needs == frozenset()
    assert make("order", by="loss").needs == {"model"}


def loaded(scores: dict[str, float]) -> LoadedModel:
    tokenizer = make_tokenizer()
    by_id: dict[int, float] = {}
    for said, score in scores.items():
        by_id.update(dict.fromkeys(tokenizer(said).input_ids, score))
    return LoadedModel(Unigram(by_id, len(tokenizer)), tokenizer, CHATML, Reference("model", "unigram"))  # type: ignore[arg-type]


def test_by_loss_worked_out_by_hand(tmp_path: Path) -> None:
    """Mean over the answer's tokens (its end of turn included) of -log p, which a model of fixed chances gives in closed form; the question does not count."""
    import numpy as np

    model = loaded({" Paris": 9.0})
    tokenizer, size = model.tokenizer, len(model.tokenizer)  # type: ignore[arg-type]
    assert tokenizer is not None
    rows = [
        chat("What is it? Paris Paris", "hello there"),
        chat("one two", " Paris Paris"),
        preference("What?", "hello", " Paris Paris Paris"),
        text(" Paris Paris"),
    ]
    step = make("order", by="loss", live={"model": model})
    step.survey(rows, tmp_path)  # type: ignore[attr-defined]
    favoured = set(tokenizer(" Paris").input_ids)
    total = math.log(len(favoured) * math.exp(9.0) + size - len(favoured))

    def by_hand(said: str, *, first: int = 0) -> float:
        losses = [total - 9.0 * (token in favoured) for token in tokenizer(said).input_ids[first:]]
        return sum(losses) / len(losses)

    expected = [by_hand("hello there<|im_end|>"), by_hand(" Paris Paris<|im_end|>"), by_hand("hello<|im_end|>"), by_hand(" Paris Paris", first=1)]
    assert np.load(tmp_path / "keys.npy").tolist() == pytest.approx(expected, rel=1e-5)
    ordered = kept(step(rows))
    assert [row.id for row in ordered] == [rows[at].id for at in sorted(range(4), key=expected.__getitem__)]


def test_a_token_is_foretold_by_those_before_it(tmp_path: Path) -> None:
    """Against a model that foretells the same token again: a loss that looked at its own token would be low everywhere."""
    import numpy as np

    tokenizer = make_tokenizer()
    size = len(tokenizer)
    model = LoadedModel(Parrot(size), tokenizer, CHATML, Reference("model", "parrot"))  # type: ignore[arg-type]
    rows = [text("aaaa"), text("abab"), text("aabb")]
    make("order", by="loss", live={"model": model}).survey(rows, tmp_path)  # type: ignore[attr-defined]
    ids = [tokenizer(row.text()).input_ids for row in rows]
    assert [len(set(some)) for some in ids] == [1, 2, 2]
    total = math.log(math.exp(9.0) + size - 1)
    expected = [sum(total - 9.0 * (after == before) for before, after in zip(some, some[1:], strict=False)) / (len(some) - 1) for some in ids]
    assert np.load(tmp_path / "keys.npy").tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("direction", ["ascending", "descending"])
def test_a_row_that_cannot_be_measured_comes_last(direction: str) -> None:
    rows = [chat("one two three four five six seven eight nine ten " * 20, "hello"), chat("one", "hello"), chat("two", "there")]
    ordered = kept(make("order", by="loss", direction=direction, max_length=40, live={"model": loaded({})})(rows))
    assert ordered[-1] is rows[0]
