"""What is computed about rows before training, and the order that a curriculum makes of it."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largeforge.batch import Annotation, StepWindow, TokenBatch
from largeforge.data import annotations as annotations_module
from largeforge.data.chat import Chat
from largeforge.data.curriculum import BEGINS_WITH, paced_order
from largeforge.data.steps import step_rows
from tests.data.tiny import exchange, make_config, make_tokenizer, write_jsonl

NUM_ROWS = 40


class AtOnce:
    """A trainer that computes as things are."""

    device, precision = "cpu", "fp32"

    def computing(self, method: Any) -> Any:
        return nullcontext()


class Asked:
    """A method that wants the number of each row's tokens, and every token doubled."""

    def __init__(self) -> None:
        self.calls = 0
        self.bytes_per_token = 0.0

    def compute(self, batch: TokenBatch) -> dict[str, list[Any]]:
        self.calls += 1
        lengths = (batch.input_ids_BT != 0).sum(1)
        return {
            "size": [np.array([float(length)], dtype=np.float32) for length in lengths],
            "doubled": [(ids[:length] * 2).numpy().astype(np.int32) for ids, length in zip(batch.input_ids_BT, lengths, strict=True)],
        }

    def annotations(self) -> list[Annotation]:
        return [Annotation("sizes", "v1", {"size": "float32", "doubled": "int32"}, self.compute)]

    def difficulty(self) -> Annotation:
        def losses(batch: TokenBatch) -> dict[str, list[Any]]:
            return {"difficulty": [np.array([-float(length)], dtype=np.float32) for length in (batch.input_ids_BT != 0).sum(1)]}

        return Annotation("loss", "v1", {"difficulty": "float32"}, losses)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations_module, "CHUNK", 16)
    path = write_jsonl(tmp_path / "rows.jsonl", [exchange(f"say {n}", "one two three " * (n % 7 + 1)) for n in range(NUM_ROWS)])
    return lambda **changes: Chat(make_config(path, **changes), tokenizer=make_tokenizer())


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_carry_what_was_computed_in_their_own_order(make: Any, packing: bool, num_workers: int) -> None:
    data = make(packing=packing, validation=0.2, num_workers=num_workers)
    asked: Any = Asked()
    data.annotate(asked, trainer=AtOnce())
    for step in [*data.train_steps(StepWindow(8, 3, 4)), *data.validation_batches(4)]:
        for batch in step:
            starts = (batch.position_ids_BT == 0).flatten().nonzero().flatten().tolist()
            flat = batch.input_ids_BT.flatten()
            sizes = [int(size) for size in batch.annotations["size"]]
            assert len(sizes) == batch.num_examples
            own = [flat[start : start + size] * 2 for start, size in zip(starts, sizes, strict=True)]
            assert [token for ids in own for token in ids.tolist()] == batch.annotations["doubled"].tolist()
    assert pickle.loads(pickle.dumps(data._notes("train"))).read([0]).keys() == {"size", "doubled"}


def test_what_was_computed_once_is_found_again(make: Any) -> None:
    first, second, other = Asked(), Asked(), Asked()
    make().annotate(first, trainer=AtOnce())
    make().annotate(second, trainer=AtOnce())
    make(max_length=128).annotate(other, trainer=AtOnce())  # other tokens, for all that is known
    assert first.calls > 0 and second.calls == 0 and other.calls == first.calls


def test_a_computation_that_breaks_off_leaves_nothing(make: Any, tmp_path: Path) -> None:
    class Broken(Asked):
        def compute(self, batch: TokenBatch) -> dict[str, list[Any]]:
            if self.calls:
                raise KeyboardInterrupt
            return super().compute(batch)

    with pytest.raises(KeyboardInterrupt):
        make().annotate(Broken(), trainer=AtOnce())
    assert not [
        path for path in (tmp_path / "cache").rglob("annotations/*") if path.suffix == ".arrow" or path.name.startswith(".") and "lock" not in path.name
    ]
    make().annotate(Asked(), trainer=AtOnce())


# ---- curriculum ----


def test_easy_rows_come_early_and_every_row_once() -> None:
    difficulty = np.random.default_rng(0).random(2000)
    order = paced_order(difficulty, seed=3)
    assert sorted(order.tolist()) == list(range(2000))
    by_rank = difficulty.argsort().argsort()[order] / 2000
    assert by_rank[:20].max() < 1.2 * BEGINS_WITH
    for place in (200, 500, 1000, 1500):
        share = place / 2000
        assert by_rank[:place].max() <= (share * (1 - BEGINS_WITH**2) + BEGINS_WITH**2) ** 0.5 + 1e-3
    assert by_rank[:500].mean() < 0.4 < 0.6 < by_rank[1500:].mean()
    assert paced_order(difficulty, seed=3).tolist() == order.tolist() != paced_order(difficulty, seed=4).tolist()


@pytest.mark.parametrize(("curriculum", "shorter_first"), [("length", True), ("loss", False)])
def test_a_curriculum_orders_the_first_epoch(make: Any, curriculum: str, shorter_first: bool) -> None:
    """The stand-in's loss falls with length: by loss, long rows come first. Later epochs are drawn like any other."""
    data, plain = make(curriculum=curriculum, packing=False), make(packing=False)
    data.annotate(Asked(), trainer=AtOnce())
    window = StepWindow(8, 8, 10)
    lengths = [sum(batch.num_tokens for batch in step) for step in data.train_steps(window)]
    early, late = sum(lengths[:2]), sum(lengths[3:5])
    assert (early < 0.8 * late) if shorter_first else (late < 0.8 * early)
    steps, same = list(data.train_steps(window)), list(plain.train_steps(window))
    assert [b.input_ids_BT.tolist() for step in steps[5:] for b in step] == [b.input_ids_BT.tolist() for step in same[5:] for b in step]
    resumed = list(data.train_steps(StepWindow(8, 8, 10, start_step=3)))
    assert [b.input_ids_BT.tolist() for step in resumed for b in step] == [b.input_ids_BT.tolist() for step in steps[3:] for b in step]
    assert sorted(row for step in range(5) for row in step_rows(NUM_ROWS, window, step)) == list(range(NUM_ROWS))
