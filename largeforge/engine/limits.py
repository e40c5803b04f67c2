"""What keeps asking within bounds: a budget of tokens or money, and a pace per minute. Knows nothing about servers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from largeforge.chat import Usage
from largeforge.engine.config import BudgetConfig

log = logging.getLogger("largeforge.engine")
MILLION = 1_000_000


class Budget:
    """Counts what answers cost; many threads may use it.

    Args:
        config: limits and prices; no limit is never spent.
    """

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float:
        """What has been spent, in the currency of the prices."""
        return (self.prompt_tokens * self.config.prompt_price + self.completion_tokens * self.config.completion_price) / MILLION

    @property
    def spent(self) -> str:
        """Which limit is reached, in words; empty while there is something left."""
        tokens, limit = self.prompt_tokens + self.completion_tokens, self.config
        if limit.tokens is not None and tokens >= limit.tokens:
            return f"the budget of {limit.tokens:,} tokens is spent ({tokens:,})"
        if limit.cost is not None and self.cost >= limit.cost:
            return f"the budget of {limit.cost:g} is spent ({self.cost:.4f} for {tokens:,} tokens)"
        return ""

    def take(self, usage: Usage) -> None:
        """Count one answer; the log says once when that was the last."""
        with self._lock:
            before = self.spent
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
        if self.spent and not before:
            log.warning("%s: what is asked already is finished, nothing more is asked", self.spent)


class Pace:
    """Spaces events evenly, so that no minute holds more than the limit; many threads and event loops may share it.

    Args:
        per_minute: events, or tokens, of a minute at most; None is no limit.
        clock: seconds that only grow.
    """

    def __init__(self, per_minute: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds_each = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free_at = clock()
        self._lock = threading.Lock()

    def reserve(self, amount: float = 1) -> float:
        """Take the next free place for so much; return the seconds to wait for it."""
        with self._lock:
            now = self._clock()
            at = max(now, self._free_at)
            self._free_at = at + amount * self.seconds_each
            return at - now

    def settle(self, amount: float) -> None:
        """Correct what was reserved: negative gives back."""
        with self._lock:
            self._free_at += amount * self.seconds_each

    def hold(self, seconds: float) -> None:
        """Let nothing begin before so many seconds are over, as a server asked."""
        with self._lock:
            self._free_at = max(self._free_at, self._clock() + seconds)

    async def wait(self, amount: float = 1) -> None:
        """Reserve, and wait until it is free."""
        seconds = self.reserve(amount)
        if seconds > 0:
            await asyncio.sleep(seconds)
