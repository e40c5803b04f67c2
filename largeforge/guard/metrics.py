"""Measures every request that generates, at its end, from what its Call says. The numbers themselves live in `guard.meters`."""

from __future__ import annotations

from largeforge.asgi import App, Receive, Scope, Send
from largeforge.call import GENERATING, call_of
from largeforge.guard.config import MetricsConfig
from largeforge.guard.meters import Meters
from largeforge.guard.outcome import settle


class Metrics:
    """Counts, and lets everything else through untouched.

    Args:
        config: of this guard.
        app: what stands inside.
        meters: where it counts.
    """

    def __init__(self, config: MetricsConfig, *, app: App, meters: Meters) -> None:
        self.config = config
        self.app = app
        self.meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in GENERATING or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        call = call_of(scope)
        self.meters.num_active += 1
        try:
            await self.app(scope, receive, send)
        except BaseException as fault:
            settle(call, fault)
            raise
        else:
            settle(call, None)
        finally:
            self.meters.num_active -= 1
            self.meters.measure(call)
