"""Who is next: the order against its own law told naively, and places that are never lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from largeforge.guard.turns import NoPlace, Place, Turns


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def in_order(asked: list[tuple[str, int]], **config: Any) -> list[tuple[str, int]]:
    """Fill the one place, have all of them wait, and return the order in which their turns come."""

    async def run() -> list[tuple[str, int]]:
        turns = Turns(max_active=1, max_waiting=len(asked), **config)
        now = turns.ask("first", 0)
        places = {turns.ask(*one): one for one in asked}
        order = []
        while turns.active:
            turns.leave(now)
            active = [place for place in places if place.state == "active"]
            if active:
                now = active[0]
                order.append(places.pop(now))
        assert turns.waiting == 0
        return order

    return asyncio.run(run())


def served_among(asked: list[tuple[str, int]], count: int, **config: Any) -> Counter[str]:
    return Counter(owner for owner, _ in in_order(asked, **config)[:count])


FLOOD = [("greedy", 0)] * 90 + [("modest", 0)] * 10


def test_owners_take_turns() -> None:
    """A load whose result changes when fairness is off: 90 requests of one owner wait before 10 of another; of the first 20 served each has ten."""
    assert served_among(FLOOD, 20, fair=True) == {"greedy": 10, "modest": 10}
    assert served_among(FLOOD, 20, fair=False) == {"greedy": 20}


MIXED = [(f"owner {number % 3}", number % 2 * 5) for number in range(60)]


def test_a_higher_priority_goes_first() -> None:
    """A load whose result changes when priorities are off: of 60 requests that wait, half have priority 5; they are the first 30, else half of them."""
    assert [level for _, level in in_order(MIXED, priorities=True)] == [5] * 30 + [0] * 30
    assert Counter(level for _, level in in_order(MIXED, priorities=False)[:30]) == {5: 15, 0: 15}


def test_of_one_owner_the_first_come() -> None:
    asked = [("a", 0), ("b", 0), ("a", 1), ("b", 0), ("a", 0)]
    assert in_order(asked) == [("a", 1), ("a", 0), ("b", 0), ("a", 0), ("b", 0)]


def low_waits(ageing_s: float) -> int:
    """How many of an endless row of high ones, one a second, go before a low one that was there first."""

    async def run() -> int:
        clock = Clock()
        turns = Turns(max_active=1, max_waiting=10, ageing_s=ageing_s, clock=clock)
        now = turns.ask("someone", 0)
        low = turns.ask("low", 0)
        for count in range(100):
            high = turns.ask("high", 3)
            clock.now += 1.0
            turns.leave(now)
            if low.state == "active":
                return count
            now = high
        return 100

    return asyncio.run(run())


def test_nobody_waits_for_ever() -> None:
    """With a step of priority every 10 s, three steps take 30 s: about so many high ones pass, then it is the low one's turn."""
    assert low_waits(10.0) in (29, 30, 31)
    assert low_waits(1e9) == 100


class Naive:
    """The same law, told by looking at everybody."""

    def __init__(self, *, ageing_s: float, fair: bool, priorities: bool) -> None:
        self.ageing_s, self.fair, self.priorities = ageing_s, fair, priorities
        self.queue: list[Place] = []
        self.turns: dict[tuple[int, str], int] = {}  # (level, owner) -> when it last took its turn, or came to wait
        self.count = 0

    def _owner(self, place: Place) -> tuple[int, str]:
        return place.level, place.owner if self.fair else ""

    def add(self, place: Place) -> None:
        self.count += 1
        if self._owner(place) not in {self._owner(other) for other in self.queue}:
            self.turns[self._owner(place)] = self.count
        self.queue.append(place)

    def next(self, now: float) -> Place:
        oldest = {level: min(place.since for place in self.queue if place.level == level) for level in {place.level for place in self.queue}}
        level = max(oldest, key=lambda one: (one + (now - oldest[one]) / self.ageing_s, one))
        here = [place for place in self.queue if place.level == level]
        owner = min({self._owner(place) for place in here}, key=lambda one: self.turns[one])
        self.count += 1
        self.turns[owner] = self.count
        return next(place for place in here if self._owner(place) == owner)


@pytest.mark.parametrize("seed", range(12))
def test_the_order_is_the_law_whatever_comes(seed: int) -> None:
    """Random arrivals, endings and departures: who is served next is who the law says, and no place is lost or given twice."""

    async def run() -> None:
        chance = random.Random(seed)
        clock = Clock()
        switches = {"fair": seed % 3 != 1, "priorities": seed % 3 != 2}
        turns = Turns(max_active=3, max_waiting=12, max_waiting_per_owner=5, ageing_s=7.0, clock=clock, **switches)
        naive = Naive(ageing_s=7.0, **switches)
        active: list[Place] = []
        for _ in range(600):
            clock.now += chance.choice((0.0, 0.5, 3.0))
            before = list(naive.queue)
            done = chance.random()
            if done < 0.5:
                owner, priority = chance.choice("abcd"), chance.randrange(-2, 4)
                try:
                    place = turns.ask(owner, priority)
                except NoPlace as full:
                    mine = sum(one.owner == owner for one in before)
                    assert full.reason == ("queue_full" if len(before) >= 12 else "queue_full_for_key")
                    assert len(before) >= 12 or mine >= 5
                else:
                    (active.append if place.state == "active" else naive.add)(place)
            elif done < 0.85 and active:
                turns.leave(active.pop(chance.randrange(len(active))))
            elif naive.queue:
                gone = naive.queue.pop(chance.randrange(len(naive.queue)))
                turns.leave(gone)
                turns.leave(gone)
            while naive.queue and len(active) < 3:
                expected = naive.next(clock.now)
                assert expected.state == "active", "somebody else was served"
                naive.queue.remove(expected)
                active.append(expected)
            assert (turns.active, turns.waiting) == (len(active), len(naive.queue))
            assert all(place.state == "active" for place in active)
            assert all(place.state == "waiting" for place in naive.queue)
        for place in [*naive.queue, *active]:
            turns.leave(place)
        for place in [*naive.queue, *active]:
            turns.leave(place)
        assert (turns.active, turns.waiting, turns._levels, turns._waiting_of) == (0, 0, {}, {})

    asyncio.run(run())
