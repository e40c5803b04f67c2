"""The allocator's own answer, on requests whose answer is known."""

from __future__ import annotations

import platform

import pytest

from largeforge.plan.heap import replayed_peak

MIB = 1 << 20
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc tells the size of its heap")


def test_live_blocks_add_up() -> None:
    peak = replayed_peak([(0, 64 * MIB), (1, 64 * MIB), (0, -64 * MIB), (2, 64 * MIB)])
    assert peak == pytest.approx(128 * MIB, rel=0.01)


def test_holes_that_nothing_fits_into_count() -> None:
    """Every second block of 1 MiB is given back; blocks of 1.5 MiB fit into none of the holes."""
    requests = [(key, MIB) for key in range(32)]
    requests += [(key, -MIB) for key in range(0, 32, 2)]
    requests += [(key, MIB * 3 // 2) for key in range(100, 110)]
    live = 16 * MIB + 10 * MIB * 3 // 2
    peak = replayed_peak([(999, 31 * MIB), (999, -31 * MIB), *requests])  # after that glibc keeps blocks of up to 31 MiB on its heap
    assert peak is not None
    assert peak > 1.3 * live


def test_nothing_is_touched() -> None:
    """64 blocks of 1 GiB are asked for on any machine, in moments."""
    peak = replayed_peak([(key, 1 << 30) for key in range(8)])
    assert peak is None or peak >= 8 << 30


def test_a_replay_that_fails_says_so() -> None:
    assert replayed_peak([(0, -1)]) is None
