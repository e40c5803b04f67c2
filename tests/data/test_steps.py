"""Steps: the laws of the sampler, batches as a model reads them, shapes from lengths alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largeforge.batch import StepWindow, TokenBatch
from largeforge.data.chat import Chat
from largeforge.data.steps import FarOrder, compare, epoch_order, step_rows
from tests.data.tiny import exchange, make_config, make_tokenizer, write_jsonl

WINDOW = StepWindow(batch_size=8, micro_batch_size=3, num_steps=12, seed=5)
NUM_ROWS = 37  # five steps an epoch, the last of five rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture
def module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds `data=chat` over 37 rows of skewed lengths; tokenized once for this file."""
    monkeypatch.setenv("LARGEFORGE_CACHE", str(folder / "cache"))
    path = folder / "rows.jsonl"
    if not path.exists():
        sizes = np.random.default_rng(0).geometric(0.12, NUM_ROWS)
        write_jsonl(path, [exchange(f"say {n}", "one two three " * int(size)) for n, size in enumerate(sizes)])
    return lambda **changes: Chat(make_config(path, **changes), tokenizer=make_tokenizer())


def plain(steps: Iterable[list[TokenBatch]]) -> list[list[tuple[Any, ...]]]:
    """Steps as lists, to compare."""
    return [[(b.input_ids_BT.tolist(), b.position_ids_BT.tolist(), b.supervised_BT.tolist(), b.num_examples, b.num_tokens) for b in step] for step in steps]


def examples(batch: TokenBatch) -> list[list[int]]:
    """The rows of a batch, cut apart where positions start again; padding still behind the last of each sequence."""
    found = []
    for ids, positions in zip(batch.input_ids_BT.tolist(), batch.position_ids_BT.tolist(), strict=True):
        starts = [index for index, position in enumerate(positions) if position == 0] + [len(ids)]
        found += [ids[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    return found


# ---- order ----


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide() -> None:
    assert sorted(epoch_order(NUM_ROWS, 5, 0)) == list(range(NUM_ROWS))
    assert epoch_order(NUM_ROWS, 5, 0).tolist() == epoch_order(NUM_ROWS, 5, 0).tolist()
    assert epoch_order(NUM_ROWS, 5, 0).tolist() != epoch_order(NUM_ROWS, 5, 1).tolist()
    assert epoch_order(NUM_ROWS, 5, 0).tolist() != epoch_order(NUM_ROWS, 6, 0).tolist()


def test_steps_walk_through_epochs_and_the_last_of_one_is_short() -> None:
    sizes = [len(step_rows(NUM_ROWS, WINDOW, step)) for step in range(12)]
    assert sizes == [8, 8, 8, 8, 5, 8, 8, 8, 8, 5, 8, 8]
    assert sorted(row for step in range(5) for row in step_rows(NUM_ROWS, WINDOW, step)) == list(range(NUM_ROWS))
    assert sorted(row for step in range(5, 10) for row in step_rows(NUM_ROWS, WINDOW, step)) == list(range(NUM_ROWS))


def test_fewer_rows_than_a_step() -> None:
    assert [sorted(step_rows(3, WINDOW, step)) for step in range(2)] == [[0, 1, 2], [0, 1, 2]]


# ---- the loader ----


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("start_step", [1, 4, 5, 11, 12])
def test_a_resumed_run_gets_the_rest_of_the_whole(module: Any, packing: bool, start_step: int) -> None:
    data = module(packing=packing)
    whole = plain(data.train_steps(WINDOW))
    rest = data.train_steps(replace(WINDOW, start_step=start_step))
    assert len(rest) == 12 - start_step
    assert plain(rest) == whole[start_step:]


def test_skipped_steps_are_not_read(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from largeforge.data.cache import TokenTable

    read: list[int] = []
    tokens = TokenTable.tokens
    monkeypatch.setattr(TokenTable, "tokens", lambda self, row: read.append(row) or tokens(self, row))
    list(module(packing=False).train_steps(replace(WINDOW, start_step=11)))
    assert sorted(read) == sorted(step_rows(NUM_ROWS, WINDOW, 11))


def test_workers_change_nothing(module: Any) -> None:
    alone, helped = module().train_steps(WINDOW), module(num_workers=2).train_steps(WINDOW)
    assert helped.num_workers == 2
    assert plain(helped) == plain(alone)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_numbers_are_left_alone(module: Any, num_workers: int) -> None:
    data = module(num_workers=num_workers, validation=0.2)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]
    list(data.train_steps(replace(WINDOW, num_steps=3)))
    list(data.validation_batches(4) or ())
    after = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]
    assert before == after


def test_a_loader_can_be_walked_twice(module: Any) -> None:
    steps = module().train_steps(WINDOW)
    assert plain(steps) == plain(steps)


# ---- batches ----


@pytest.mark.parametrize("packing", [True, False])
def test_every_row_of_a_step_stands_once_whole_and_masked(module: Any, packing: bool) -> None:
    data = module(packing=packing)
    rows = {tuple(row.token_ids): row.supervised for row in data.sample(NUM_ROWS)}
    for step, batches in enumerate(data.train_steps(WINDOW)):
        expected = sorted(data.sample(NUM_ROWS)[row].token_ids for row in step_rows(NUM_ROWS, WINDOW, step))
        found = []
        for batch in batches:
            assert batch.input_ids_BT.dtype == batch.position_ids_BT.dtype == torch.int64
            assert batch.supervised_BT.dtype == torch.bool
            assert batch.input_ids_BT.shape == batch.position_ids_BT.shape == batch.supervised_BT.shape
            assert not batch.supervised_BT[batch.position_ids_BT == 0].any()
            flags = batch.supervised_BT.flatten().tolist()
            tokens = 0
            for padded in examples(batch):
                whole = next(list(ids) for ids in rows if padded[: len(ids)] == list(ids))
                found.append(whole)
                assert flags[: len(whole)] == rows[tuple(whole)]
                assert not any(flags[len(whole) : len(padded)])
                flags = flags[len(padded) :]
                tokens += len(whole)
            assert (batch.num_examples, batch.num_tokens) == (len(examples(batch)), tokens)
        assert sorted(found) == expected


def test_packed_rows_share_a_sequence_and_stay_within_the_width(module: Any) -> None:
    data = module(packing=True)
    batches = [batch for step in data.train_steps(WINDOW) for batch in step]
    assert max(batch.input_ids_BT.shape[1] for batch in batches) <= 256
    assert any(batch.num_examples > batch.input_ids_BT.shape[0] for batch in batches)
    assert all(batch.input_ids_BT.shape[0] <= WINDOW.micro_batch_size for batch in batches)


def test_padded_positions_go_on_counting(module: Any) -> None:
    for step in module(packing=False).train_steps(WINDOW):
        for batch in step:
            width = batch.input_ids_BT.shape[1]
            assert batch.position_ids_BT.tolist() == [list(range(width))] * batch.input_ids_BT.shape[0]


@pytest.mark.parametrize("packing", [True, False])
def test_shapes_are_those_of_the_batches(module: Any, packing: bool) -> None:
    data = module(packing=packing)
    window = replace(WINDOW, start_step=3)
    shapes, steps = list(data.shapes(window)), list(data.train_steps(window))
    assert len(shapes) == len(steps) == 9
    for step_shapes, batches in zip(shapes, steps, strict=True):
        assert [(s.num_sequences, s.num_positions, s.num_supervised, s.num_tokens, s.packed) for s in step_shapes] == [
            (*b.input_ids_BT.shape, int(b.supervised_BT.sum()), b.num_tokens, packing) for b in batches
        ]


# ---- which layout ----


def test_auto_takes_what_fills_better_from_lengths_alone(module: Any) -> None:
    data = module(packing="auto")
    list(data.shapes(WINDOW))
    facts = data.facts
    expected = facts["fill_packed"] > facts["fill_sorted"] + 0.02
    assert facts["packing"] is expected
    assert 0 < facts["fill_sorted"] <= 1
    assert 0 < facts["fill_packed"] <= 1


@pytest.mark.parametrize(("lengths", "micro_batch_size", "packing"), [([100] * 64, 8, False), ([20, 20, 20, 100] * 16, 16, True), ([250] * 64, 8, False)])
def test_the_choice_on_lengths_worked_out_by_hand(lengths: list[int], micro_batch_size: int, packing: bool) -> None:
    """Equal lengths pad nothing. Three of 20 beside one of 100 in steps of 16: sorting pads every row to 100."""
    fills = compare(np.array(lengths), StepWindow(16, micro_batch_size, 4), width=256)
    assert fills.packing is packing
    if lengths == [100] * 64:
        assert fills.length_sorted == 1.0


def test_the_choice_does_not_hang_on_where_a_run_was_resumed(module: Any) -> None:
    first, resumed = module(), module()
    list(first.shapes(WINDOW))
    list(resumed.shapes(replace(WINDOW, start_step=7, num_steps=9)))
    assert {key: first.facts[key] for key in ("packing", "fill_packed", "fill_sorted")} == {
        key: resumed.facts[key] for key in ("packing", "fill_packed", "fill_sorted")
    }


# ---- validation ----


def test_validation_batches_hold_every_validation_row_once(module: Any) -> None:
    data = module(validation=0.3)
    batches = [batch for (batch,) in data.validation_batches(4)]
    assert sum(batch.num_examples for batch in batches) == data.facts["num_validation_rows"] > 0
    assert len(data.validation_batches(4)) == len(batches)
    widths = [batch.input_ids_BT.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert module(validation=0.0).validation_batches(4) is None


def test_a_packed_row_gives_the_loss_of_its_rows_alone(module: Any) -> None:
    """Position ids that start again are all a model needs: no row sees its neighbour."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    model = LlamaForCausalLM(config).eval()

    def losses(packing: bool) -> list[float]:
        found = []
        for batch in next(iter(module(packing=packing).train_steps(WINDOW))):
            with torch.no_grad():
                logits = model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits[:, :-1]
            nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.input_ids_BT[:, 1:].flatten(), reduction="none")
            found += nll[batch.supervised_BT[:, 1:].flatten()].tolist()
        return sorted(found)

    assert losses(True) == pytest.approx(losses(False), abs=1e-5)


@pytest.mark.parametrize("num_rows", [2, 3, 17, 1000, 65_537, 200_000])
def test_an_order_that_is_not_held_is_a_permutation(num_rows: int) -> None:
    order = FarOrder(num_rows, 3, 1)
    assert sorted(order[0:num_rows].tolist()) == list(range(num_rows))
    assert order[1:2].tolist() == order[0:num_rows][1:2].tolist()


def test_an_order_that_is_not_held_is_shuffled_and_the_same_everywhere() -> None:
    """Proves SYS-S-006: ten million rows have an order that takes no memory; it is a function of seed and epoch alone."""
    order = FarOrder(10_000_000, 0, 0)
    first = order[0:6].tolist()
    assert first == [1719610, 8416900, 4119302, 9937927, 8429676, 8215533]
    assert order[0:6].tolist() != FarOrder(10_000_000, 0, 1)[0:6].tolist() != FarOrder(10_000_000, 1, 0)[0:6].tolist()
    many = order[0:100_000]
    steps = np.diff(many)
    assert abs(float(many.mean()) / 10_000_000 - 0.5) < 0.005
    assert abs(float(np.corrcoef(many[:-1], many[1:])[0, 1])) < 0.02
    assert len(set(steps.tolist())) > 90_000
    assert isinstance(epoch_order(1_000_001, 0, 0), FarOrder)
    assert isinstance(epoch_order(1_000_000, 0, 0), np.ndarray)
