"""Pairs and labelled answers as a method reads them: side by side, masked, mismatched, packed, and shared among ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from largeforge.batch import AnswerBatch, StepWindow
from largeforge.data.preference import Preference
from largeforge.errors import RowError
from tests.data.tiny import exchange, make_rows_config, make_tokenizer, write_jsonl

NUM_PAIRS = 13
WINDOW = StepWindow(batch_size=4, micro_batch_size=2, num_steps=8, seed=5)
ROWS = [{"prompt": f"say {n}", "chosen": "one " * (n % 5 + 1) + "good", "rejected": "two " * (n % 3 + 1) + "bad"} for n in range(NUM_PAIRS)]
Make = Callable[..., Preference]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "cache"))

    def build(rows: list[Any] = ROWS, learns: str = "pairs", train_on: str = "answer", **changes: Any) -> Preference:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        return Preference(make_rows_config(path, "preference", **changes), tokenizer=make_tokenizer(), learns=learns, train_on=train_on)  # type: ignore[arg-type]

    return build


def answers(batch: AnswerBatch) -> list[str]:
    """What is learnt of each answer, as text."""
    ids = batch.tokens.input_ids_BT[batch.tokens.supervised_BT]
    tokenizer = make_tokenizer()
    return [tokenizer.decode(ids[batch.answer_N == number]) for number in range(batch.num_answers)]


@pytest.mark.parametrize("packing", [True, False])
def test_chosen_and_rejected_stand_side_by_side(make: Make, packing: bool) -> None:
    """Proves SYS-D-003: every pair of a step once, both answers in one micro-batch, only answers and their end learnt."""
    data = make(packing=packing)
    assert data.num_rows == NUM_PAIRS
    seen = []
    for batches in data.train_steps(replace(WINDOW, num_steps=4)):  # one epoch
        for batch in batches:
            assert batch.desirable_A.tolist() == [True, False] * (batch.num_answers // 2)
            found = answers(batch)
            seen += [(found[at], found[at + 1]) for at in range(0, len(found), 2)]
    assert sorted(seen) == sorted((row["chosen"] + "<|im_end|>", row["rejected"] + "<|im_end|>") for row in ROWS)


def test_a_turn_of_the_prompt_is_not_learnt(make: Make) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "asked"}, {"role": "user", "content": "b"}]
    data = make([{"prompt": turns, "chosen": "good", "rejected": "bad"}])
    ((batch,),) = data.train_steps(StepWindow(1, 1, 1))
    assert answers(batch) == ["good<|im_end|>", "bad<|im_end|>"]
    everything = make([{"prompt": turns, "chosen": "good", "rejected": "bad"}], train_on="all")
    ((batch,),) = everything.train_steps(StepWindow(1, 1, 1))
    assert all("asked" in text for text in answers(batch))


@pytest.mark.parametrize("packing", [True, False])
def test_shapes_are_those_of_the_batches(make: Make, packing: bool) -> None:
    data = make(packing=packing)
    for shapes, batches in zip(data.shapes(WINDOW), data.train_steps(WINDOW), strict=True):
        assert [(s.num_sequences, s.num_positions, s.num_supervised, s.num_tokens) for s in shapes] == [
            (*b.tokens.input_ids_BT.shape, b.num_supervised, b.num_tokens) for b in batches
        ]


def test_pairs_of_one_prompt_are_validated_together(make: Make) -> None:
    twins = [{"prompt": f"say {n // 3}", "chosen": f"good {n}", "rejected": "bad"} for n in range(60)]
    data = make(twins, validation=0.4)
    held = {example.prompt[-1].content for example in data.heldout()}
    rows = [answers_of for (batch,) in data.validation_batches(4) or () for answers_of in answers(batch)]
    assert len(rows) == 2 * data.facts["num_validation_rows"] == 6 * len(held) > 0
    trained = [data.sample(100)[at].token_ids for at in range(0, 2 * data.num_rows, 2)]
    texts = [make_tokenizer().decode(ids) for ids in trained]
    assert not any(f"{prompt}<|im_end|>" in text for prompt in held for text in texts)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "hi", "chosen": "same", "rejected": "same"}, "says the same as chosen"),
        ({"prompt": "hi", "chosen": "good", "rejected": "  "}, "an empty answer"),
        ({"prompt": "long " * 300, "chosen": "good", "rejected": "bad"}, "its answer is cut away"),
        ({"prompt": "hi", "completion": "good"}, "missing"),
    ],
)
def test_pairs_that_teach_nothing_are_told(make: Make, row: dict[str, Any], says: str) -> None:
    """Proves SYS-D-021: with file and line."""
    with pytest.raises(RowError, match=f"rows.jsonl:2.*{says}"):
        make([ROWS[0], row]).prepare()


# ---- answers that are good or bad ----


def test_labelled_answers_come_from_pairs_and_from_labels(make: Make) -> None:
    single = {**exchange("hi", "there"), "label": False}
    end = "<|im_end|>"
    for rows, wanted in (
        ([ROWS[0]], {f"{ROWS[0]['chosen']}{end}": True, f"{ROWS[0]['rejected']}{end}": False}),
        ([single, {**exchange("q", "a"), "label": "good"}], {f"there{end}": False, f"a{end}": True}),
        ([{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": 0}], {f"a{end}": True, f"b{end}": False}),
    ):
        data = make(rows, learns="labelled", packing=False)
        assert data.num_rows == 2
        (batches,) = data.train_steps(StepWindow(4, 4, 1))
        assert {text: bool(good) for batch in batches for text, good in zip(answers(batch), batch.desirable_A, strict=True)} == wanted


@pytest.mark.parametrize("label", [None, "perhaps", 2])
def test_an_answer_without_a_judgement_is_told(make: Make, label: Any) -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:1  label"):
        make([{**exchange("hi", "there"), "label": label}], learns="labelled").prepare()


@pytest.mark.parametrize("packing", [True, False])
def test_each_prompt_is_mismatched_with_the_next_answer_of_the_step(make: Make, packing: bool) -> None:
    """KTO's KL: over the whole step, across micro-batches, every answer of it is used once."""
    data = make(learns="labelled", packing=packing)
    for batches in data.train_steps(replace(WINDOW, micro_batch_size=3)):
        own = [text for batch in batches for text in answers(batch)]
        crossed = [text for batch in batches for text in answers(batch.mismatched)]
        assert sorted(own) == sorted(crossed)
        assert [batch.mismatched.num_answers for batch in batches] == [batch.num_answers for batch in batches]
    ((alone,),) = make(ROWS[:1], learns="labelled").train_steps(StepWindow(1, 1, 1))
    assert alone.mismatched is None


# ---- ranks ----


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_a_step(make: Make, packing: bool, world_size: int) -> None:
    """Proves SYS-F-016: each row of a step once over all ranks, as many micro-batches for each, in any number of them."""
    data = make(packing=packing)
    alone = [sorted(text for batch in step for text in answers(batch)) for step in data.train_steps(WINDOW)]
    ranks = [list(data.train_steps(replace(WINDOW, rank=rank, world_size=world_size))) for rank in range(world_size)]
    for number, whole in enumerate(alone):
        parts = [ranks[rank][number] for rank in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        assert sorted(text for part in parts for batch in part for text in answers(batch)) == whole
        assert any(batch.num_answers for batch in parts[0])
    (empty,) = [batch for rank in ranks for batch in rank[3] if batch.num_answers == 0][:1] or [None]
    if empty is not None:
        assert empty.num_supervised == 0 and empty.tokens.num_examples == 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_validation_rows(make: Make, world_size: int) -> None:
    data = make(validation=0.4)
    alone = [text for (batch,) in data.validation_batches(1) or () for text in answers(batch)]
    ranks = [[batch for (batch,) in data.validation_batches(1, rank=rank, world_size=world_size) or ()] for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(text for rank in ranks for batch in rank for text in answers(batch)) == sorted(alone)


def test_origins_name_the_rows_of_a_step(make: Make) -> None:
    data = make()
    origins = [origin.rpartition(":")[2] for step in range(4) for origin in data.origins(replace(WINDOW, rank=1, world_size=2), step)]
    assert sorted(origins, key=int) == [str(line) for line in range(1, NUM_PAIRS + 1)]
    batches = list(data.train_steps(WINDOW))[2]
    lines = [int(origin.rpartition(":")[2]) - 1 for origin in data.origins(WINDOW, 2)]
    assert sorted(text for batch in batches for text in answers(batch)[0::2]) == sorted(f"{ROWS[line]['chosen']}<|im_end|>" for line in lines)


def test_batches_move_whole(make: Make) -> None:
    ((batch, *_), *_) = make(learns="labelled").train_steps(WINDOW)
    moved = batch.to(torch.device("meta"))
    assert {moved.answer_N.device.type, moved.desirable_A.device.type, moved.mismatched.tokens.input_ids_BT.device.type} == {"meta"}
