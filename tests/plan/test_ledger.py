"""Every storage is written down once, and questions about a batch have their true answers."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from largeforge.plan.ledger import Event, KnownLists, Ledger


def test_storages_are_made_and_dropped_once() -> None:
    ledger = Ledger()
    with FakeTensorMode(), ledger:
        first = torch.empty(10, dtype=torch.float32, device="cpu")
        view = first.view(2, 5)
        ledger.mark("second")
        other = view + 1
        other.mul_(2)
        del first
        del view
    assert ledger.segments[0].events == [Event(0, 40)]
    assert ledger.segments[1].events == [Event(1, 40), Event(0, -40)]
    assert ledger.segments[1].name == "second"
    del other


def test_what_follows_from_a_batch_is_known() -> None:
    ledger = Ledger()
    real = torch.tensor([[False, True, True], [False, False, True]])
    with FakeTensorMode(), ledger, KnownLists(ledger):
        mask = ledger.with_value(real)
        hidden = torch.empty(2, 3, 8, device="cpu")
        assert hidden[mask].shape == (3, 8)
        shifted = torch.zeros_like(mask)
        assert int(mask.sum()) == 3
        assert torch.nonzero(mask).tolist() == [[0, 1], [0, 2], [1, 2]]
        assert not bool((mask.sum(dim=1) > 2).any())
        shifted[:, :-1] = mask[:, 1:]
        assert ledger.value(shifted) is None or int(shifted.sum()) == 3


def test_what_does_not_is_yes_or_one() -> None:
    ledger = Ledger()
    with FakeTensorMode(), ledger:
        hidden = torch.empty(4, device="cpu")
        assert bool((hidden > 0).all())
        assert float(hidden.sum()) == 1.0
        assert torch.equal(hidden, hidden + 1)
