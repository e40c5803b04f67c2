"""Requests and tokens a minute: what is let in, what is told, and that nothing is remembered for ever."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from largeforge.asgi import Receive, Scope, Send, respond
from largeforge.call import Key, call_of
from largeforge.guard.rate import Rate
from tests.guard.asking import Client, ask, configured, key


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


class Spending:
    """An app whose answers take so many tokens."""

    def __init__(self, prompt: int = 0, completion: int = 0) -> None:
        self.prompt, self.completion, self.asked = prompt, completion, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        call = call_of(scope)
        call.prompt_tokens, call.completion_tokens = self.prompt, self.completion
        await respond(send, 200, b"")


def limited(app: Any, **changes: Any) -> tuple[Callable[..., Client], Clock, Rate]:
    clock = Clock()
    guard = Rate(configured("rate", **changes), app=app, clock=clock)

    def asking(owner: Key | None = None, path: str = "/v1/completions", **more: Any) -> Client:
        return asyncio.run(ask(guard, path, owner=owner, **more))

    return asking, clock, guard


def test_requests_a_minute() -> None:
    """Proves SR-NF-033: 3 a minute are 3 at once, then one every 20 seconds, for each key."""
    asking, clock, _ = limited(Spending(), requests_per_minute=3)
    assert [asking(key(1)).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert asking(key(2)).status == 200
    refused = asking(key(1))
    assert (refused.error["type"], refused.error["code"], refused.headers["retry-after"]) == ("rate_limit_error", "rate_limit_exceeded", "20")
    assert "3 requests a minute" in refused.error["message"]
    clock.now += 19.9
    assert asking(key(1)).headers["retry-after"] == "1"
    clock.now += 0.1
    assert [asking(key(1)).status for _ in range(2)] == [200, 429]
    clock.now += 1000.0
    assert [asking(key(1)).status for _ in range(4)] == [200, 200, 200, 429]


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 61, 1000])
def test_retry_after_is_true(limit: int) -> None:
    """Who comes back when told is let in; whole seconds, rounded up."""
    asking, clock, _ = limited(Spending(), requests_per_minute=limit)
    for _ in range(limit):
        assert asking().status == 200
    for _ in range(20):
        told = int(asking().headers["retry-after"])
        assert 1 <= told <= max(1, 60 / limit + 1)
        clock.now += told
        assert asking().status == 200
        while asking().status == 200:
            pass


def test_tokens_a_minute_are_paid_when_they_are_known() -> None:
    """1000 a minute, 400 an answer: the third is let in with 200 left, and the debt of 200 is waited for; broken off answers pay as well."""
    asking, clock, _ = limited(Spending(300, 100), tokens_per_minute=1000)
    assert [asking().status for _ in range(4)] == [200, 200, 200, 429]
    refused = asking()
    assert (refused.headers["retry-after"], "1000 tokens a minute" in refused.error["message"]) == ("13", True)
    clock.now += 12
    assert asking().status == 429
    clock.now += 1
    assert asking().status == 200


def test_what_is_broken_off_is_paid() -> None:
    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        call_of(scope).completion_tokens = 100
        raise OSError("broken")

    asking, _, _ = limited(breaking, tokens_per_minute=100)
    with pytest.raises(OSError, match="broken"):
        asking()
    assert asking().status == 429


def test_a_refusal_costs_nothing() -> None:
    spending = Spending(0, 50)
    asking, clock, _ = limited(spending, tokens_per_minute=50, requests_per_minute=10)
    assert asking().headers["x-ratelimit-remaining-requests"] == "9"
    assert [asking().headers["x-ratelimit-remaining-requests"] for _ in range(3)] == ["9", "9", "9"]
    clock.now += 60.0
    assert (asking().status, spending.asked) == (200, 2)


def test_a_keys_own_limits_win() -> None:
    asking, _, _ = limited(Spending(), requests_per_minute=1)
    assert [asking(key(1, requests_per_minute=3)).status for _ in range(4)] == [200, 200, 200, 429]
    assert [asking(key(2)).status for _ in range(2)] == [200, 429]
    asking, _, _ = limited(Spending(1, 1))
    assert [asking(key(3, tokens_per_minute=1)).status for _ in range(2)] == [200, 429]
    assert [asking(key(4)).status for _ in range(9)] == [200] * 9


def test_without_keys_everybody_is_one() -> None:
    asking, _, _ = limited(Spending(), requests_per_minute=2)
    assert [asking().status for _ in range(3)] == [200, 200, 429]


def test_openai_s_headers() -> None:
    asking, _, _ = limited(Spending(30, 20), requests_per_minute=60, tokens_per_minute=600)
    first = {name: value for name, value in asking().headers.items() if name.startswith("x-ratelimit")}
    assert first == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.00s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "0ms",
    }
    second = asking().headers
    assert (second["x-ratelimit-remaining-tokens"], second["x-ratelimit-reset-tokens"]) == ("550", "5.00s")
    asking, _, _ = limited(Spending())
    assert not [name for name in asking().headers if name.startswith("x-ratelimit")]


def test_only_what_generates_counts() -> None:
    asking, _, _ = limited(Spending(), requests_per_minute=1)
    assert [asking(path="/v1/models", method="GET").status for _ in range(3)] == [200] * 3
    assert [asking(path="/health", method="GET").status for _ in range(3)] == [200] * 3
    assert asking().status == 200


def test_owners_are_forgotten_when_they_have_everything_again() -> None:
    """Five hundred keys leave nothing behind; one that is overdrawn stays until it has paid."""
    spending = Spending(1, 0)
    asking, clock, guard = limited(spending, requests_per_minute=10, tokens_per_minute=10)
    for number in range(500):
        asking(key(number))
    spending.prompt = 25  # fifteen too many: full again after two and a half minutes
    asking(key(1000))
    assert guard.num_remembered == 1002
    spending.prompt = 1
    for minute in range(1, 4):
        clock.now += 61.0
        asking(key(2000 + minute))
        assert ("1000" in guard._tokens) == (minute < 3)
        assert set(guard._requests) == {str(2000 + minute)}
    assert guard.num_remembered == 2


def test_a_clock_that_goes_back_gives_nothing() -> None:
    asking, clock, _ = limited(Spending(), requests_per_minute=1)
    assert asking().status == 200
    clock.now -= 3600
    assert asking().status == 429
    clock.now += 60
    assert asking().status == 200


def test_limits_that_change_hold_at_once() -> None:
    asking, _, _ = limited(Spending())
    assert [asking(key(1, requests_per_minute=100)).status for _ in range(5)] == [200] * 5
    assert [asking(key(1, requests_per_minute=2)).status for _ in range(3)] == [200, 200, 429]


def test_reset_is_a_duration() -> None:
    asking, _, _ = limited(Spending(), requests_per_minute=100)
    assert re.fullmatch(r"\d+ms|\d+\.\d\ds", asking().headers["x-ratelimit-reset-requests"])
