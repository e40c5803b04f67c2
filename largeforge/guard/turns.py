"""Who is next: a bounded number of places, and a queue that is fair between owners and keeps priorities.

Knows nothing about requests or HTTP. All calls come from one event loop and none of them awaits, so that nothing can come between.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

Reason = Literal["draining", "queue_full", "queue_full_for_key"]


class NoPlace(Exception):
    """The queue takes nobody else.

    Args:
        reason: why.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class Place:
    """One who has a place, waits for one, or has left."""

    __slots__ = ("level", "owner", "since", "state", "turn")

    def __init__(self, *, owner: str, level: int, since: float) -> None:
        self.owner = owner
        self.level = level
        self.since = since
        self.state: Literal["waiting", "active", "gone"] = "waiting"
        self.turn: asyncio.Future[None] | None = None


class Turns:
    """Gives places away in this order.

    1. The level (priority) that ranks highest: its number, plus one for every `ageing_s` that its longest waiting one has waited. So a
       high priority goes first, and a low one that has waited long enough goes before it.
    2. In a level the owners take turns, one each, whoever has waited longest since its last turn first.
    3. Of one owner, the first come.

    Args:
        max_active: places.
        max_waiting: how many may wait.
        max_waiting_per_owner: how many of one owner may wait; None is any number.
        ageing_s: seconds of waiting that weigh as much as one step of priority.
        fair: False takes everybody for one owner.
        priorities: False takes everybody for one level.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_active: int,
        max_waiting: int,
        max_waiting_per_owner: int | None = None,
        ageing_s: float = 30.0,
        fair: bool = True,
        priorities: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_active = max_active
        self.max_waiting = max_waiting
        self.max_waiting_per_owner = max_waiting_per_owner
        self.ageing_s = ageing_s
        self.fair = fair
        self.priorities = priorities
        self.clock = clock
        self.active = 0
        self.waiting = 0
        self.closed = False
        self._levels: dict[int, _Level] = {}
        self._waiting_of: dict[str, int] = {}
        self._for_empty: list[asyncio.Future[None]] = []

    def ask(self, owner: str, priority: int) -> Place:
        """Return a place that is active, or one that waits: its `turn` is done when it is active. It has to be given to `leave` in the end.

        Raises:
            NoPlace: nobody else may wait, or nobody else may come at all.
        """
        if self.closed:
            raise NoPlace("draining")
        place = Place(owner=owner, level=priority if self.priorities else 0, since=self.clock())
        if self.active < self.max_active:  # then nobody waits
            self._admit(place)
            return place
        if self.waiting >= self.max_waiting:
            raise NoPlace("queue_full")
        if self.max_waiting_per_owner is not None and owner and self._waiting_of.get(owner, 0) >= self.max_waiting_per_owner:
            raise NoPlace("queue_full_for_key")
        place.turn = asyncio.get_running_loop().create_future()
        self._levels.setdefault(place.level, _Level()).add(place, owner if self.fair else "")
        self.waiting += 1
        self._waiting_of[owner] = self._waiting_of.get(owner, 0) + 1
        return place

    def leave(self, place: Place) -> None:
        """Give a place back, or stop waiting for it. A second time does nothing."""
        if place.state == "active":
            self.active -= 1
        elif place.state == "waiting":
            self._unqueue(place)
        place.state = "gone"
        if self.waiting and self.active < self.max_active:
            following = self._next()
            self._unqueue(following)
            self._admit(following)
        if not self.active and not self.waiting:
            for future in self._for_empty:
                if not future.done():
                    future.set_result(None)
            self._for_empty.clear()

    async def empty(self) -> None:
        """Return once nobody has a place and nobody waits."""
        if self.active or self.waiting:
            future = asyncio.get_running_loop().create_future()
            self._for_empty.append(future)
            await future

    def _admit(self, place: Place) -> None:
        place.state = "active"
        self.active += 1
        if place.turn is not None:
            place.turn.set_result(None)

    def _next(self) -> Place:
        now = self.clock()
        best = max(self._levels, key=lambda number: (number + (now - self._levels[number].longest.since) / self.ageing_s, number))
        return self._levels[best].next()

    def _unqueue(self, place: Place) -> None:
        level = self._levels[place.level]
        level.remove(place, place.owner if self.fair else "")
        if not level.waiting:
            del self._levels[place.level]
        self.waiting -= 1
        left = self._waiting_of[place.owner] - 1
        if left:
            self._waiting_of[place.owner] = left
        else:
            del self._waiting_of[place.owner]


class _Level:
    """Those who wait with one priority; every operation takes the same time however many there are."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[Place, None] = OrderedDict()  # in the order they came
        self.owners: OrderedDict[str, OrderedDict[Place, None]] = OrderedDict()  # in the order of their turns

    @property
    def longest(self) -> Place:
        """Who has waited longest."""
        return next(iter(self.waiting))

    def add(self, place: Place, owner: str) -> None:
        self.waiting[place] = None
        self.owners.setdefault(owner, OrderedDict())[place] = None

    def next(self) -> Place:
        """Whose turn it is; its owner's next turn comes after everybody else's."""
        owner, places = next(iter(self.owners.items()))
        self.owners.move_to_end(owner)
        return next(iter(places))

    def remove(self, place: Place, owner: str) -> None:
        del self.waiting[place]
        del self.owners[owner][place]
        if not self.owners[owner]:
            del self.owners[owner]
