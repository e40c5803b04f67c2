"""The numbers that /metrics tells, under the names of the specification's section 6.1.3; one object for a server.

Every label is bounded: routes and transports are few, a status is a number, a model is one of those that are served. No key, prompt or id
is a label. Not thread-safe but for reading: the event loop counts.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from largeforge.call import Call
from largeforge.errors import MissingExtra

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
FIRST_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
QUEUED_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
MAX_MODELS = 1000  # labels that a mistake in a handler could make at most
OTHER = "other"

REASONS = frozenset(
    {
        "body_too_large",
        "body_too_slow",
        "deadline_exceeded",
        "draining",
        "invalid_api_key",
        "queue_full",
        "queue_full_for_key",
        "rate_limit_exceeded",
        "store_unavailable",
        "waited_too_long",
    }
)
"""Codes of the guards' refusals; any other code of a refusal with 401, 403, 408, 413, 429, 503 or 504 is counted as "other"."""
REFUSALS = frozenset({401, 403, 408, 413, 429, 503, 504})


class Meters:
    """Makes every metric in a registry of its own.

    Guards call `measure` at a request's end; handlers call `piece` for every piece of a stream but the first. What others know is
    set directly: `gpu_memory`, `model_load_time`, `engine_restarts.inc()`, and `queue_depth.set_function(...)`.

    Args:
        models: names that are served; what else a Call might name is "other". None takes any name that Calls have.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """

    def __init__(self, models: Iterable[str] | None = None) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        except ImportError:
            raise MissingExtra("prometheus_client", extra="serve") from None
        self.models = frozenset(models) if models is not None else None
        self.num_active = 0
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        self.requests = Counter("inference_requests", "Requests for generated text that have ended.", ["route", "status", "transport"], registry=registry)
        self.latency = Histogram(
            "inference_latency_seconds",
            "From a request's coming to the end of its answer; answered ones only.",
            ["route"],
            buckets=LATENCY_S,
            registry=registry,
        )
        self.tokens = Counter("tokens_generated", "Tokens of answers, those of answers that were broken off too.", ["model"], registry=registry)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self.first_token = Histogram(
            "time_to_first_token_seconds", "From a request's coming to the first piece of its answer.", buckets=FIRST_TOKEN_S, registry=registry
        )
        self.queued = Histogram("queue_time_seconds", "How long requests that were answered had waited for their turn.", buckets=QUEUED_S, registry=registry)
        self.rejected = Counter("requests_rejected", "Requests for generated text that a guard refused.", ["reason"], registry=registry)
        self.retried = Counter("requests_retried", "Requests that were asked again after an engine died.", registry=registry)
        self.engine_restarts = Counter("engine_restarts", "How often an engine was started again after it died.", registry=registry)
        self.active = Gauge("active_requests", "Requests for generated text that have come and are not answered yet, waiting ones included.", registry=registry)
        self.active.set_function(lambda: self.num_active)
        self.queue_depth = Gauge("queue_depth", "Requests that wait for their turn at the door.", registry=registry)
        self.gpu_memory = Gauge("gpu_memory_used_bytes", "Memory of the device that the engine's process holds.", registry=registry)
        self.model_load_time = Gauge("model_load_time_seconds", "From the engine's start until it was ready.", registry=registry)
        self._engine = {
            field: Gauge(name, text, registry=registry)
            for field, name, text in (
                ("active", "engine_active_requests", "Requests that the engine answers now."),
                ("waiting", "engine_waiting_requests", "Requests that wait for a place in the engine's batch."),
                ("decoded_tokens", "engine_decoded_tokens", "Tokens of answers that the engine has computed since it started."),
                ("free_blocks", "engine_free_kv_blocks", "Blocks of the engine's KV cache that no request holds."),
                ("total_blocks", "engine_total_kv_blocks", "Blocks of the engine's KV cache; 0 where it has none."),
            )
        }
        self._between = _Gaps("inter_token_seconds", "Between two pieces of one stream.", BETWEEN_TOKENS_S)
        registry.register(self._between)  # a collector by its methods
        self.piece = self._between.observe
        self._children: dict[Any, Any] = {}  # labels() costs more than the count itself

    def measure(self, call: Call) -> None:
        """Count one request that has ended."""
        self._child(self.requests, call.path, str(call.status), call.transport).inc()
        if call.status == 200 and not call.error:
            ended = time.monotonic()
            self._child(self.latency, call.path).observe(ended - call.started)
            self.queued.observe(call.queued_s)
        if call.first_token_at is not None:
            self.first_token.observe(call.first_token_at - call.started)
        if call.prompt_tokens or call.completion_tokens:
            model = self._model(call.model)
            self._child(self.tokens, model).inc(call.completion_tokens)
            self._child(self.prompt_tokens, model).inc(call.prompt_tokens)
        if call.status in REFUSALS and call.code:
            self._child(self.rejected, call.code if call.code in REASONS else OTHER).inc()
        elif call.code == "deadline_exceeded":  # in a stream that had begun
            self._child(self.rejected, call.code).inc()
        if call.retried:
            self.retried.inc()

    def engine_says(self, load: Mapping[str, Any]) -> None:
        """Take what the engine says of itself: the fields of `largeforge.chat.Load`."""
        self.gpu_memory.set(load["memory_bytes"])
        for field, gauge in self._engine.items():
            gauge.set(load[field])

    def text(self) -> bytes:
        """Prometheus' text format; its content type is `CONTENT_TYPE`."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    def _model(self, name: str) -> str:
        if self.models is not None:
            return name if name in self.models else OTHER
        return name if (self.tokens, name) in self._children or len(self._children) < MAX_MODELS else OTHER

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found


CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class _Gaps:
    """A histogram that costs a third of a microsecond a value: a stream has one for every piece.

    prometheus-client's own takes a lock and a float in C for each.
    """

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self.name, self.text, self.bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self._sum += seconds

    def describe(self) -> Iterable[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        return [HistogramMetricFamily(self.name, self.text)]

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        total, buckets = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return [HistogramMetricFamily(self.name, self.text, buckets=buckets, sum_value=self._sum)]
