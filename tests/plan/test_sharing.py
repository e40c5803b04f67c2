"""What each of several devices holds, by hand."""

from __future__ import annotations

import pytest

from largeforge.plan.ledger import Event, Segment
from largeforge.plan.sharing import Held, Sharing, eight_bit_state
from largeforge.plan.step import Trace
from largeforge.plan.timeline import Weights, timeline

# Two layers of 100 bytes, 20 of which learn, and 50 that belong to no layer, 10 of which learn.
MODEL = [
    Held((20,), 4, False, 0),
    Held((5,), 4, True, 0),
    Held((20,), 4, False, 1),
    Held((5,), 4, True, 1),
    Held((10,), 4, False, -1),
    Held((5, 1), 2, True, -1),
]


def test_rows_are_dealt_out() -> None:
    """10 rows over 4 devices: 3, 3, 3 and 1; the first holds 3 x 4 numbers of 4 bytes. DDP holds all."""
    held = Held((10, 4), 4, True, 0)
    assert Sharing("fsdp", 4).share(held) == 48
    assert Sharing("ddp", 4).share(held) == Sharing().share(held) == 160
    assert Sharing("fsdp", 4).share(Held((), 4, True, 0)) == 4  # a single number is in each


def test_what_is_gathered() -> None:
    """The root and its gradient, three layers, and twice the gradient of one: 50 + 10 + 3 x 100 + 2 x 20."""
    fsdp = Sharing("fsdp", 8)
    assert fsdp.gathered(MODEL) == 400
    # where gradients are whole anyway, until the last micro-batch, only what is being sent comes on top
    assert fsdp.gathered(MODEL, accumulates=True) == 50 + 300 + 20
    assert Sharing("ddp", 8).gathered(MODEL) == Sharing().gathered(MODEL) == 0


def test_moments_in_8_bits() -> None:
    """Two bytes a number and two fp32 scales for 256 of them; fp32 below 4,096 numbers."""
    assert eight_bit_state(Held((64, 64), 4, True, 0), 64 * 64 * 4) == 2 * 4096 + 2 * 4 * 16
    assert eight_bit_state(Held((4095,), 4, True, 0), 4095 * 4) == 8 * 4095
    # of a share as many as are here
    assert eight_bit_state(Held((128, 64), 4, True, 0), 64 * 64 * 4) == 2 * 4096 + 2 * 4 * 16


@pytest.fixture
def trace() -> Trace:
    """Three layers, each of which keeps 10 for its backward pass and then has a gradient of 8."""
    forward = [Segment("forward", layer, [Event(layer, 10)]) for layer in range(3)]
    backward = [Segment("backward", layer, [Event(layer, -10), Event(3 + layer, 8)]) for layer in (2, 1, 0)]
    return Trace([*forward, Segment("head"), *backward, Segment("step")], frozenset({3, 4, 5}), num_layers=3, depth=5, state_factor=2.0, scratch_factor=0.0)


def test_gradients_of_a_spread_model_are_shares(trace: Trace) -> None:
    """Five layers, four devices: each keeps 2 of a layer's gradient of 8; what is gathered is gone when the step is taken."""
    line = timeline(trace, Weights(learning=(2,) * 5, frozen=(), gathered=30, gradients=4))
    assert line.unmatched == 0
    assert line.at_peak() == {"weights": 10, "gathered": 30, "gradients": 0, "optimizer": 20, "activations": 50, "logits": 0}
    assert line.at_end() == {"weights": 10, "gathered": 0, "gradients": 10, "optimizer": 20, "activations": 0, "logits": 0}


def test_gradients_of_ddp_lie_in_buckets_from_the_start(trace: Trace) -> None:
    line = timeline(trace, Weights(learning=(8,) * 5, frozen=(), gradients="buckets"))
    assert line.unmatched == 0
    assert line.at_peak() == {"weights": 40, "gathered": 0, "gradients": 40, "optimizer": 80, "activations": 50, "logits": 0}
    assert line.at_end()["gradients"] == 40


def test_second_networks_are_there_from_the_start(trace: Trace) -> None:
    line = timeline(trace, Weights(learning=(8,) * 5, frozen=(1,), others={"teacher": (100, 11)}))
    assert list(line.components) == ["weights", "teacher", "gathered", "gradients", "optimizer", "activations", "logits"]
    assert line.at_peak()["teacher"] == line.at_end()["teacher"] == 111


def test_layers_of_a_second_network_are_put_back() -> None:
    """A teacher of six layers, three run: each makes 7 that its neighbour drops; the student's first copy drops what each of them kept, 1."""
    teacher = [
        Segment("forward", 0, [Event(0, 7), Event(10, 1)], network=1),
        Segment("forward", 1, [Event(1, 7), Event(0, -7), Event(11, 1)], network=1),
        Segment("forward", 2, [Event(2, 7), Event(1, -7), Event(12, 1)], network=1),
        Segment("head", None, [Event(2, -7)]),
    ]
    student = [
        Segment("forward", 0, [Event(3, 10)]),
        Segment("forward", 1, [Event(4, 10), Event(10, -1), Event(11, -1), Event(12, -1)]),
        Segment("forward", 2, [Event(5, 10)]),
    ]
    trace = Trace([*teacher, *student], frozenset(), num_layers=3, depth=5, state_factor=0.0, scratch_factor=0.0, others=((3, 6),))
    line = timeline(trace, Weights(learning=(), frozen=()))
    assert line.unmatched == 0
    assert line.at_peak()["activations"] == 50
    at = live = 0
    peaks = []
    for change in line.changes:
        live += change.size_bytes
        at = max(at, live)
        peaks.append(live)
    assert 7 + 7 + 5 in peaks  # two neighbours' 7, and 1 of each of the first five
    assert 6 + 10 in peaks  # 1 of each of six, and the student's first layer
