"""Layouts: every row once, nothing over the width, and how full both ways are."""

from __future__ import annotations

import numpy as np
import pytest

from largeforge.data.layout import Layout, best_fit, length_sorted, packed, positions


def rows_of(layout: Layout) -> list[int]:
    return sorted(row for micro in layout for sequence in micro for row in sequence)


def skewed(count: int, seed: int = 0) -> list[int]:
    """Lengths as chats have them: many short, a few long."""
    return [int(n) for n in np.clip(np.random.default_rng(seed).lognormal(4.5, 0.8, count), 8, 512)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("micro_batch_size", [1, 3, 64])
def test_every_row_stands_once_and_none_over_the_width(seed: int, micro_batch_size: int) -> None:
    lengths = skewed(97, seed)
    layout = packed(lengths, width=512, micro_batch_size=micro_batch_size)
    assert rows_of(layout) == list(range(97))
    assert all(0 < sum(lengths[row] for row in sequence) <= 512 for micro in layout for sequence in micro)
    assert all(len(micro) == micro_batch_size for micro in layout[:-1])
    assert 0 < len(layout[-1]) <= micro_batch_size
    layout = length_sorted(lengths, micro_batch_size=micro_batch_size)
    assert rows_of(layout) == list(range(97))
    assert all(len(sequence) == 1 for micro in layout for sequence in micro)
    assert [lengths[row] for micro in layout for (row,) in micro] == sorted(lengths, reverse=True)


def test_best_fit_decreasing_by_hand() -> None:
    """7 opens a sequence, 6 a second; 4 leaves no room in the second (first: 3 left); 3 fills the first; 2 opens a third."""
    lengths = [2, 3, 4, 6, 7]
    assert packed(lengths, width=10, micro_batch_size=1) == [[[4, 1]], [[3, 2]], [[0]]]


def test_best_fit_takes_the_tightest_room() -> None:
    """Behind 6 and 5 there is room for 4 and 5: 4 goes where nothing is left over, so that 3 and 2 still find theirs."""
    assert best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


@pytest.mark.parametrize("seed", range(3))
def test_packing_fills_skewed_lengths(seed: int) -> None:
    lengths = skewed(256, seed)
    layout = packed(lengths, width=512, micro_batch_size=1)
    sequences = sum(len(micro) for micro in layout)
    assert sum(lengths) / (512 * sequences) >= 0.95
    assert sum(lengths) / positions(layout, lengths) >= 0.95


def test_packing_a_step_of_32_rows_stays_full() -> None:
    """A single step has few rows to choose from; evening out keeps its last sequences from being half empty."""
    tokens = computed = by_best_fit = 0
    for seed in range(20):
        lengths = skewed(32, seed)
        tokens += sum(lengths)
        computed += positions(packed(lengths, width=512, micro_batch_size=8), lengths)
        plain = sorted(best_fit(lengths, 512), key=lambda rows: -sum(lengths[row] for row in rows))
        by_best_fit += positions([plain[at : at + 8] for at in range(0, len(plain), 8)], lengths)
    assert tokens / computed >= 0.95
    assert computed < by_best_fit


def test_positions_count_padding() -> None:
    assert positions([[[0], [1, 2]], [[3]]], [5, 2, 2, 7]) == 2 * 5 + 7


def test_equal_lengths_are_laid_out_the_same_every_time() -> None:
    lengths = [64] * 50
    assert packed(lengths, width=256, micro_batch_size=4) == packed(lengths, width=256, micro_batch_size=4)
    assert rows_of(packed(lengths, width=256, micro_batch_size=4)) == list(range(50))
