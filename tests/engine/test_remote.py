"""The remote engine against a real server on loopback: what it sends, what it makes of what comes, how politely it asks."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from largeforge.chat import Answer, ChatRequest, Failure, Message, Usage
from largeforge.engine import remote
from largeforge.engine.answers import answers
from largeforge.engine.completions import base_url, complaint, retry_after
from largeforge.engine.limits import Pace
from largeforge.errors import EngineError, InputError
from tests.engine.conftest import ask
from tests.engine.openai_server import OpenAIServer, Trouble, openai_server
from tests.tiny_models import config, part

__all__ = ["openai_server"]
KEY = "sk-very-secret-123"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits before retries are short here."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)


def engine(server: OpenAIServer, **changes: Any) -> Any:
    return part("engine", "remote", **{"url": server.url, "model": "tiny", **changes})


def all_of(talking: Any, requests: list[ChatRequest]) -> list[Answer | Failure]:
    return list(answers(talking, requests, in_flight=talking.in_flight))


def test_what_is_sent_and_what_comes_back(openai_server: OpenAIServer) -> None:
    """Every parameter of a request reaches the server, the key in its header; text, reason and usage come back, whole or as a stream."""
    openai_server.api_key = KEY
    messages = (Message("system", "Be brief."), Message("user", "one two"))
    request = ChatRequest(messages, max_tokens=9, temperature=0.5, top_p=0.9, top_k=7, seed=3)
    talking = engine(openai_server, api_key=KEY)
    assert list(talking.answers([request])) == [Answer("answer to one two", "stop", Usage(4, 4))]
    expected = {"messages": [m.as_dict() for m in messages], "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "model": "tiny"}
    assert openai_server.asked == [expected]
    *pieces, last = talking.stream(request)
    assert [delta.text for delta in pieces] == ["answer", " to", " one", " two"]
    assert (last.text, last.finish_reason, last.usage) == ("", "stop", Usage(4, 4))
    assert openai_server.asked[1] == {**expected, "stream": True, "stream_options": {"include_usage": True}}
    [cut] = talking.answers([ask("x", max_tokens=2)])
    assert cut == Answer("answer to", "length", Usage(1, 2)) and "top_k" not in openai_server.asked[2]


def test_many_at_once(openai_server: OpenAIServer) -> None:
    openai_server.delay_s = 0.02
    requests = [ask(f"question {n}") for n in range(30)]
    found = all_of(engine(openai_server, in_flight=5), requests)
    assert [one.text for one in found if isinstance(one, Answer)] == [f"answer to question {n}" for n in range(30)]
    assert openai_server.most_at_once == 5 and openai_server.num_answered == 30


def test_the_first_model_that_is_listed(openai_server: OpenAIServer) -> None:
    openai_server.models = ["first", "second"]
    talking = engine(openai_server, model=None)
    all_of(talking, [ask("a"), ask("b")])
    assert [payload["model"] for payload in openai_server.asked] == ["first", "first"] and talking.name == openai_server.url
    openai_server.models = []
    with pytest.raises(EngineError, match="lists no model"):
        list(engine(openai_server, model=None).answers([ask("a")]))


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(429),
        Trouble(429, headers={"Retry-After": "0.05"}),
        Trouble(500, body="<html>oops</html>"),
        Trouble(503),
        Trouble(cut=True),
        Trouble(delay_s=0.6),
        Trouble(408),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_passes_is_tried_again(openai_server: OpenAIServer, trouble: Trouble, streaming: bool) -> None:
    """Busy, at fault, cut off, too slow: twice, then answered. A stream that was cut in the middle is not begun again."""
    talking = engine(openai_server, timeout_s=0.3, retries=2)
    openai_server.trouble.extend([trouble, trouble])
    if streaming and trouble.cut:
        with pytest.raises(EngineError, match="broke off in the middle of an answer"):
            list(talking.stream(ask("a b c")))
        return
    text = "".join(delta.text for delta in talking.stream(ask("a"))) if streaming else next(talking.answers([ask("a")])).text
    assert text == "answer to a" and len(openai_server.asked) == 3
    openai_server.trouble.extend([trouble] * 3)
    with pytest.raises(EngineError, match=r"gives no answer \(.*; asked 3 times\)") as caught:
        list(talking.answers([ask("b")]))
    assert caught.value.reason == "unreachable" and len(openai_server.asked) == 6


def test_waits_double_and_retry_after_is_honoured(openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is at least half of twice the one before; what the server asks for is waited, by everybody; too long is not waited at all."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.08)
    openai_server.trouble.extend([Trouble(503)] * 3)
    all_of(engine(openai_server, in_flight=1), [ask("a")])
    first, second, third, fourth = openai_server.asked_at
    assert second - first >= 0.04 and third - second >= 0.08 and fourth - third >= 0.16
    openai_server.asked_at.clear()
    openai_server.trouble.append(Trouble(429, headers={"Retry-After": "0.5"}))
    all_of(engine(openai_server, in_flight=1), [ask("a"), ask("b")])
    assert openai_server.asked_at[1] - openai_server.asked_at[0] >= 0.5
    openai_server.asked_at.clear()
    openai_server.trouble.extend([Trouble(429, headers={"Retry-After": "0.5"}), Trouble(delay_s=0.1)])
    all_of(engine(openai_server, in_flight=2), [ask("a"), ask("b"), ask("c")])
    assert len(openai_server.asked_at) == 4 and openai_server.asked_at[2] - openai_server.asked_at[0] >= 0.5  # c too, though b was answered
    openai_server.trouble.append(Trouble(429, headers={"Retry-After": "3600"}))
    start = time.monotonic()
    with pytest.raises(EngineError, match="asks to come back in 3600 s"):
        list(engine(openai_server).answers([ask("a")]))
    assert time.monotonic() - start < 5


def test_who_waits_knows_why(openai_server: OpenAIServer, caplog: pytest.LogCaptureFixture) -> None:
    """Of a row of troubles the first is a warning, that the terminal shows; after an answer the next is one again."""
    caplog.set_level(logging.INFO)
    openai_server.trouble.extend([Trouble(503), Trouble(503), None, Trouble(429)])
    all_of(engine(openai_server, in_flight=1), [ask("a"), ask("b")])
    said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "largeforge.engine"]
    assert [level for level, _ in said] == ["WARNING", "INFO", "WARNING"]
    assert said[0][1].startswith(f"tiny at {openai_server.url}: status 503; again in 0.") and said[0][1].endswith("(1 of 5)")


def test_retry_after() -> None:
    """Seconds or a date; nonsense is nothing."""
    assert retry_after({"Retry-After": "2.5"}) == 2.5 and retry_after({}) == 0 == retry_after({"Retry-After": "soon"}) == retry_after({"Retry-After": "-3"})
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30), usegmt=True)
    assert 28 <= retry_after({"Retry-After": soon}) <= 30


def test_a_request_that_is_refused_fails_alone(openai_server: OpenAIServer) -> None:
    """400 is not tried again, and says why in the server's words."""
    openai_server.trouble.extend([None, Trouble(400, body='{"error": {"message": "Your prompt is too long."}}'), None])
    found = all_of(engine(openai_server, in_flight=1), [ask("a"), ask("b"), ask("c")])
    assert isinstance(found[0], Answer) and isinstance(found[2], Answer) and len(openai_server.asked) == 3
    assert found[1] == Failure("refused", f"tiny at {openai_server.url} answered 400: Your prompt is too long.")


@pytest.mark.parametrize(
    ("status", "next_step"), [(401, "LARGEFORGE_ENGINE__API_KEY="), (403, "LARGEFORGE_ENGINE__API_KEY="), (404, "engine.url="), (307, "engine.url=")]
)
def test_what_nobody_may_ends_it_at_once(openai_server: OpenAIServer, status: int, next_step: str) -> None:
    openai_server.always = Trouble(status, headers={"Location": "https://elsewhere.example"} if status == 307 else {})
    with pytest.raises(EngineError) as caught:
        all_of(engine(openai_server, in_flight=2), [ask(str(n)) for n in range(100)])
    assert caught.value.reason == "refused" and next_step in caught.value.next_step and len(openai_server.asked) <= 4


def test_nobody_there() -> None:
    """A port that nobody listens at: told after the retries, with the way to go on; the same for a stream."""
    with OpenAIServer() as server:
        url = server.url
    talking = part("engine", "remote", url=url, model="tiny", retries=1)
    with pytest.raises(EngineError, match=rf"tiny at {url} is down: the first \d+ requests got no answer\..*asked 2 times") as caught:
        all_of(talking, [ask(str(n)) for n in range(50)])
    assert "resume=auto" in caught.value.next_step
    with pytest.raises(EngineError, match="gives no answer"):
        list(talking.stream(ask("x")))


MALFORMED = [
    "",
    "not json",
    "[]",
    "null",
    "{}",
    '{"choices": []}',
    '{"choices": [7]}',
    '{"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    '{"choices": [{"message": {"content": 3}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    '{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}',
    '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    '{"choices": [{"message": {"content": "x"}, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    '{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": "many", "completion_tokens": -1}}',
    '{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    "[" * 100_000,
]


def test_malformed_answers(openai_server: OpenAIServer) -> None:
    """Each is counted as malformed and costs its own request only; never retried, never a traceback, whole or as a stream."""
    talking = engine(openai_server, in_flight=1)
    openai_server.trouble.extend(Trouble(body=body) for body in MALFORMED)
    found = all_of(talking, [ask(str(n)) for n in range(len(MALFORMED) + 1)])
    assert [one.reason if isinstance(one, Failure) else one.text for one in found] == ["malformed"] * len(MALFORMED) + [f"answer to {len(MALFORMED)}"]
    assert all(len(one.message) < 600 for one in found if isinstance(one, Failure))
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    for events in (
        ["not json"],
        ['{"choices": 3}'],
        ['{"choices": [{"delta": {"content": 3}}]}'],
        ['{"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}'],
        [json.dumps({"choices": [{"delta": {"content": "x" * 2**22}}], "usage": usage})],
    ):
        openai_server.trouble.append(Trouble(body="".join(f"data: {event}\n\n" for event in events) + "data: [DONE]\n\n"))
        with pytest.raises(EngineError) as caught:
            list(talking.stream(ask("x")))
        assert caught.value.reason == "malformed"


def test_an_empty_answer_is_an_answer(openai_server: OpenAIServer) -> None:
    """Whoever asked counts it; null is empty too; a filtered answer was refused."""
    usage = '"usage": {"prompt_tokens": 1, "completion_tokens": 0}'
    openai_server.trouble.append(Trouble(body='{"choices": [{"message": {"content": null}, "finish_reason": "stop"}], ' + usage + "}"))
    openai_server.trouble.append(Trouble(body='{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}], ' + usage + "}"))
    found = all_of(engine(openai_server, in_flight=1), [ask("a"), ask("b")])
    assert found[0] == Answer("", "stop", Usage(1, 0)) and isinstance(found[1], Failure) and found[1].reason == "refused"


def test_a_server_that_says_mid_stream_that_it_cannot(openai_server: OpenAIServer) -> None:
    openai_server.trouble.append(Trouble(body='data: {"error": {"message": "overloaded"}}\n\n'))
    assert "".join(delta.text for delta in engine(openai_server).stream(ask("a"))) == "answer to a"  # before anything was said: tried again


def test_the_pace(openai_server: OpenAIServer) -> None:
    """600 requests a minute are a tenth of a second apart; a server that refuses more than that is never refused by."""
    openai_server.per_second = 22
    start = time.monotonic()
    assert len(all_of(engine(openai_server, requests_per_minute=1200), [ask(str(n)) for n in range(12)])) == 12
    assert time.monotonic() - start >= 11 * 0.05 and len(openai_server.asked) == 12
    gaps = [later - earlier for earlier, later in zip(openai_server.asked_at, openai_server.asked_at[1:], strict=False)]
    assert sum(gaps) >= 0.5 and max(gaps) < 0.3


def test_a_server_with_a_limit_of_its_own(openai_server: OpenAIServer) -> None:
    """Refused with 429 and Retry-After, everybody waits, and every answer comes in the end."""
    openai_server.per_second = 8
    found = all_of(engine(openai_server, retries=8), [ask(str(n)) for n in range(20)])
    assert all(isinstance(one, Answer) for one in found)


def test_pace_by_hand() -> None:
    """60 a minute: one a second; what was reserved and not used comes back; None never waits."""
    now = [100.0]
    pace = Pace(60, clock=lambda: now[0])
    assert [pace.reserve(), pace.reserve(), pace.reserve(10), pace.reserve()] == [0, 1, 2, 12]
    pace.settle(-9)
    assert pace.reserve() == 4
    now[0] += 60
    assert pace.reserve() == 0
    pace.hold(30)
    assert pace.reserve() == 30
    assert [Pace(None, clock=lambda: now[0]).reserve(1e9) for _ in range(2)] == [0, 0]


def test_the_pace_of_tokens(openai_server: OpenAIServer) -> None:
    """Reserved by an estimate before, corrected by the server's count after: 6,000 a minute are 100 a second."""
    start = time.monotonic()
    all_of(engine(openai_server, tokens_per_minute=6000, in_flight=4), [ask("x", max_tokens=20) for _ in range(4)])
    assert 0.2 <= time.monotonic() - start < 3
    start = time.monotonic()
    talking = engine(openai_server, tokens_per_minute=6000, in_flight=1)
    all_of(talking, [ask("x", max_tokens=100) for _ in range(4)])  # 4 tokens each, not 100
    assert time.monotonic() - start < 1
    list(talking.stream(ask("x", max_tokens=100)))
    assert talking.tokens.reserve() < 0.5


def test_the_key_is_nowhere(openai_server: OpenAIServer, caplog: pytest.LogCaptureFixture) -> None:
    """Not in an error though the server repeats it, not in the log, not in a repr or a name; nor is a password in the URL."""
    caplog.set_level(logging.DEBUG)
    openai_server.api_key = "another"
    talking = engine(openai_server, api_key=KEY)
    with pytest.raises(EngineError, match=r"Incorrect API key provided: Bearer \*+") as caught:
        list(talking.answers([ask("x")]))
    openai_server.api_key = ""
    openai_server.trouble.extend([Trouble(body=f'"{KEY}"'), Trouble(503, body=KEY)])
    with pytest.raises(EngineError, match="malformed") as second:
        list(talking.answers([ask("x")]))
    list(talking.answers([ask("x")]))
    shown = " ".join([str(caught.value), str(second.value), repr(talking.config), talking.name, caplog.text, repr(vars(talking.config))])
    assert KEY not in shown and "answered" in shown and "**********" in shown
    with pytest.raises(InputError, match="engine.api_key holds letters") as wrong:
        engine(openai_server, api_key=f"{KEY}\n{KEY}")
    assert KEY not in str(wrong.value)


def test_urls() -> None:
    """What a server prints as its address, what OpenAI's clients call base_url, and the whole way to it all mean the same."""
    for url in (
        "http://localhost:8000",
        "http://localhost:8000/",
        "http://localhost:8000/v1",
        "http://localhost:8000/v1/",
        "http://localhost:8000/v1/chat/completions",
    ):
        assert base_url(url) == "http://localhost:8000/v1"
    assert base_url("https://api.example.com/api/v3") == "https://api.example.com/api/v3"
    for url in ("localhost:8000", "ftp://x", "http://", "smollm2", "http://x/v1?key=secret", "http://me:secret@x/v1"):
        with pytest.raises(InputError, match=r"engine\.url=") as caught:
            base_url(url)
        assert "secret" not in str(caught.value)


def test_complaints() -> None:
    assert complaint(b'{"error": {"message": "too\\nlong."}}') == "too long"
    assert complaint(b'{"detail": "Not Found"}') == "Not Found"
    assert complaint(b'{"error": "plain"}') == "plain"
    assert complaint(b"<html>\xff</html>").startswith("<html>") and complaint(b"") == "" and len(complaint(b"x" * 10_000)) == 300


def test_config() -> None:
    """The key is a secret of the config; a URL is needed."""
    assert "SecretStr" in str(type(config("engine", "remote", url="http://x", api_key=KEY).api_key))  # type: ignore[attr-defined]
