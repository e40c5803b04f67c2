"""What /metrics tells, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from largeforge.asgi import Receive, Scope, Send, refuse, respond
from largeforge.call import Call, call_of
from largeforge.guard.meters import BETWEEN_TOKENS_S, Meters
from largeforge.guard.metrics import Metrics
from tests.guard.asking import CHAT, Client, configured, identified, key, scope_of

NAMED = {  # section 6.1.3, and what stands beside it
    "inference_requests_total": "counter",
    "inference_latency_seconds": "histogram",
    "tokens_generated_total": "counter",
    "gpu_memory_used_bytes": "gauge",
    "active_requests": "gauge",
    "model_load_time_seconds": "gauge",
    "queue_depth": "gauge",
    "time_to_first_token_seconds": "histogram",
    "inter_token_seconds": "histogram",
    "queue_time_seconds": "histogram",
    "prompt_tokens_total": "counter",
    "requests_rejected_total": "counter",
    "requests_retried_total": "counter",
    "engine_restarts_total": "counter",
}


def read(meters: Meters) -> dict[str, float]:
    """Every sample by its name and labels, as Prometheus reads it."""
    samples = {}
    for family in text_string_to_metric_families(meters.text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def asked(meters: Meters, app: Any, scope: Scope | None = None) -> Client:
    client = Client()
    asyncio.run(identified(Metrics(configured("metrics"), app=app, meters=meters), key(3))(scope or scope_of(), client.receive, client.send))
    return client


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    call = call_of(scope)
    call.model, call.prompt_tokens, call.completion_tokens, call.first_token_at = "nano", 7, 5, call.started + 0.03
    await respond(send, 200, b"")


def test_every_name_is_there_from_the_start() -> None:
    """Proves SYS-F-061: Prometheus' own parser reads the text; the specification's names have the kinds it says."""
    meters = Meters()
    asked(meters, answering)
    asked(meters, refusing)
    text = meters.text().decode()
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    told = {name: kinds.get(name.removesuffix("_total"), kinds.get(name)) for name in NAMED}
    assert told == NAMED
    assert text.count("# HELP ") == len(set(kinds))


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    await refuse(scope, receive, send, 429, "no", kind="rate_limit_error", code="rate_limit_exceeded")


def test_an_answer_is_counted_once_where_it_belongs() -> None:
    meters = Meters(["nano"])
    for transport in ("http", "grpc", "grpc"):
        asked(meters, answering, scope_of(**({"transport": transport} if transport != "http" else {})))
    told = read(meters)
    assert told[f"inference_requests_total{{route={CHAT},status=200,transport=http}}"] == 1
    assert told[f"inference_requests_total{{route={CHAT},status=200,transport=grpc}}"] == 2
    assert told["tokens_generated_total{model=nano}"] == 15
    assert told["prompt_tokens_total{model=nano}"] == 21
    assert told[f"inference_latency_seconds_count{{route={CHAT}}}"] == 3
    assert told["time_to_first_token_seconds_count"] == 3
    assert told["time_to_first_token_seconds_bucket{le=0.02}"] == 0
    assert told["time_to_first_token_seconds_bucket{le=0.04}"] == 3


def test_refusals_have_their_reason_and_no_latency() -> None:
    meters = Meters()
    for _ in range(2):
        asked(meters, refusing)
    told = read(meters)
    assert told["requests_rejected_total{reason=rate_limit_exceeded}"] == 2
    assert told[f"inference_requests_total{{route={CHAT},status=429,transport=http}}"] == 2
    assert not [name for name in told if name.startswith("inference_latency_seconds_count")]


def test_failures_and_departures_are_counted() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def leaving(scope: Scope, receive: Receive, send: Send) -> None:
        return

    meters = Meters()
    with pytest.raises(ZeroDivisionError):
        asked(meters, failing)
    asked(meters, leaving)
    told = read(meters)
    assert told[f"inference_requests_total{{route={CHAT},status=500,transport=http}}"] == 1
    assert told[f"inference_requests_total{{route={CHAT},status=499,transport=http}}"] == 1
    assert told["active_requests"] == 0


def test_what_runs_is_active() -> None:
    meters = Meters()
    seen = []

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(read(meters)["active_requests"])
        await respond(send, 200, b"")

    asked(meters, looking)
    assert (seen, read(meters)["active_requests"]) == ([1], 0)


def test_probes_are_no_inference() -> None:
    meters = Meters()
    before = read(meters)
    for path in ("/health", "/metrics", "/v1/models", "/wp-admin"):
        asked(meters, answering, scope_of(path, method="GET"))
    asked(meters, answering, scope_of(CHAT, method="GET"))
    after = read(meters)
    assert {name for name in after if after[name] != before.get(name) and not name.startswith("process_")} == set()


def test_gaps_between_tokens() -> None:
    meters = Meters()
    for seconds in (0.0005, 0.001, 0.0011, 0.02, 99.0):
        meters.piece(seconds)
    told = read(meters)
    assert told["inter_token_seconds_bucket{le=0.001}"] == 2
    assert told["inter_token_seconds_bucket{le=0.0025}"] == 3
    assert told["inter_token_seconds_bucket{le=5.0}"] == 4
    assert told["inter_token_seconds_bucket{le=+Inf}"] == told["inter_token_seconds_count"] == 5
    assert told["inter_token_seconds_sum"] == pytest.approx(99.0226)
    assert sum(name.startswith("inter_token_seconds_bucket") for name in told) == len(BETWEEN_TOKENS_S) + 1


def test_what_others_know_is_told() -> None:
    meters = Meters()
    meters.queue_depth.set_function(lambda: 4)
    meters.gpu_memory.set(12345)
    meters.model_load_time.set(1.5)
    meters.engine_restarts.inc()
    told = read(meters)
    assert (told["queue_depth"], told["gpu_memory_used_bytes"], told["model_load_time_seconds"], told["engine_restarts_total"]) == (4, 12345, 1.5, 1)


def test_nobody_can_fill_it() -> None:
    """A thousand strange paths, models, codes and ids leave as many series as one; nothing of a prompt or key is in the text."""
    canary = "xyzzy-canary"

    def asking(meters: Meters, number: int) -> None:
        async def strange(scope: Scope, receive: Receive, send: Send) -> None:
            call = call_of(scope)
            call.model, call.prompt_tokens = f"{canary}-{number}", 1
            await refuse(scope, receive, send, 503, canary, kind=canary, code=f"{canary}-{number}")

        scope = scope_of(CHAT, headers={"X-Request-ID": f"{canary}{number}", "Authorization": f"Bearer {canary}"})
        asked(meters, strange, scope)
        asked(meters, strange, scope_of(f"/{canary}/{number}"))

    one, many = Meters(["nano"]), Meters(["nano"])
    asking(one, 0)
    for number in range(1000):
        asking(many, number)
    assert set(read(many)) == set(read(one))
    assert canary not in many.text().decode()
    assert read(many)["requests_rejected_total{reason=other}"] == 1000


def test_without_a_list_models_are_bounded_too() -> None:
    meters = Meters()
    for number in range(3000):
        meters.measure(Call(id="", path=CHAT, status=200, model=f"model-{number}", prompt_tokens=1))
    assert len([name for name in read(meters) if name.startswith("prompt_tokens_total")]) <= 1001


def test_two_servers_in_one_process_do_not_meet() -> None:
    one, two = Meters(), Meters()
    asked(one, answering)
    assert "tokens_generated_total{model=nano}" not in read(two)
