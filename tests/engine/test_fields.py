"""What a request may ask beyond its messages: the same from a stream, a whole answer and a list of them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
import torch

from largeforge.chat import Answer, ChatRequest, Delta
from largeforge.contract import LoadedModel
from largeforge.engine.choosing import Choosing, Drawing, draw
from largeforge.errors import EngineError, InputError
from tests.engine.conftest import ask, engine

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},  # random weights like blanks
    }
)


def every_way(model: LoadedModel, requests: list[ChatRequest], **changes: Any) -> list[Answer]:
    """Ask whole and streamed, in continuous batches and padded ones; the answers must be one and the same."""
    talking = engine(model, batch_size=8, **changes)

    async def streamed(request: ChatRequest) -> Answer:
        return joined([delta async for delta in talking.generate(request)])

    async def go() -> tuple[list[Answer], list[Answer]]:
        found = await asyncio.gather(*map(talking.answer, requests)), await asyncio.gather(*map(streamed, requests))
        assert talking.load().active == 0
        await talking.close()
        return found

    whole, pieces = asyncio.run(go())
    listed = list(talking.answers(requests))
    for other in (pieces, listed, [joined(list(talking.stream(request))) for request in requests]):
        assert rounded(other) == rounded(whole)
    return whole


def rounded(answers: list[Answer]) -> list[Any]:
    """Log-probabilities depend on the batch in their last bits."""
    return [
        (one.text, one.finish_reason, one.usage, [(t.token, round(t.logprob, 3), [(w, round(p, 3)) for w, p in t.top]) for t in one.logprobs])
        for one in answers
    ]


def joined(deltas: list[Delta]) -> Answer:
    last = deltas[-1]
    assert last.finish_reason is not None and last.usage is not None and all(one.text and one.usage is None for one in deltas[:-1])
    return Answer("".join(one.text for one in deltas), last.finish_reason, last.usage, tuple(token for one in deltas for token in one.logprobs))


def test_stop_strings(nano: LoadedModel) -> None:
    """Proves SYS-F-057: the answer ends with the token that completes one; what it says is all before it; tokens are counted as they were computed."""
    endless = ask("river", max_tokens=24, ignore_end=True)
    [whole] = every_way(nano, [endless])
    place = len(whole.text) // 2
    stop = whole.text[place : place + 4]
    [found, other, first] = every_way(nano, [dataclasses.replace(endless, stop=stops) for stops in [(stop,), ("nobody says this",), ("?#", stop)]])
    assert found.text == whole.text[: whole.text.index(stop)] and found.finish_reason == "stop" and found == first
    assert found.usage.completion_tokens < whole.usage.completion_tokens == other.usage.completion_tokens
    assert other == whole


def test_ignoring_the_end(nano: LoadedModel) -> None:
    """Every token that is asked for, whatever the model says in between."""
    requests = [ask(word, max_tokens=24) for word in ("river", "engine", "letter", "garden", "x")]
    usual = every_way(nano, requests)
    on = every_way(nano, [dataclasses.replace(request, ignore_end=True) for request in requests])
    assert any(one.finish_reason == "stop" for one in usual)
    assert {(one.finish_reason, one.usage.completion_tokens) for one in on} == {("length", 24)}
    assert all(longer.text.startswith(one.text) for longer, one in zip(on, usual, strict=True))


def shown(token: str) -> str:
    """A token's text as it is decoded alone: half a character is U+FFFD."""
    return token.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def test_logprobs(nano: LoadedModel) -> None:
    """Of the raw distribution, whatever the penalties and the temperature: checked against the network itself, token by token."""
    prompt = (5, 77, 130, 9)
    request = ChatRequest((), prompt=prompt, max_tokens=6, ignore_end=True, logprobs=3, presence_penalty=2.0)
    [answer, none] = every_way(nano, [request, dataclasses.replace(request, logprobs=0)])
    tokens, said = list(prompt), Choosing(Drawing(6, presence_penalty=2.0), frozenset(), device=torch.device("cpu"), draw=draw)
    for one in answer.logprobs:
        with torch.no_grad():
            logits = nano.network(input_ids=torch.tensor([tokens])).logits[0, -1]
        token = said.choose(logits)
        said.take(token)
        tokens.append(token)
        logprobs = logits.log_softmax(-1)
        assert nano.tokenizer is not None
        assert shown(one.token) == nano.tokenizer.decode([token]) and one.logprob == pytest.approx(float(logprobs[token]), abs=1e-3)
        top = logprobs.topk(3)
        assert [p for _, p in one.top] == pytest.approx(top.values.tolist(), abs=1e-3)
        assert [shown(word) for word, _ in one.top] == [nano.tokenizer.decode([int(best)]) for best in top.indices]
    assert len(answer.logprobs) == 6 and all(one.top == () and one.logprob <= 0 for one in none.logprobs) and len(none.logprobs) == 6


def test_penalties_by_hand() -> None:
    """Logits 3, 2.5, 0: said twice, the first loses 2 x 0.2 for its frequency and 0.3 once for its presence: 2.3, and the second is said."""
    logits = torch.tensor([3.0, 2.5, 0.0])
    choosing = Choosing(Drawing(10, frequency_penalty=0.2, presence_penalty=0.3), frozenset(), device=logits.device, draw=draw)
    said = []
    for _ in range(6):
        said.append(choosing.choose(logits))
        choosing.take(said[-1])
    # 3.0 | 2.5 and 2.5: the first | 2.3 and 2.5 | 2.3 and 2.0 | 2.1 and 2.0 | 1.9 and 2.0
    assert said == [0, 0, 1, 0, 0, 1]
    assert logits.tolist() == [3.0, 2.5, 0.0]


def test_penalties(nano: LoadedModel) -> None:
    """A model that repeats itself says other things; each answer is counted for itself."""
    requests = [ask(word, max_tokens=30, ignore_end=True, frequency_penalty=penalty) for word in ("river", "letter") for penalty in (0.0, 2.0, -2.0)]
    found = every_way(nano, requests)
    assert len({one.text for one in found}) > 3


def test_a_bare_prompt(nano: LoadedModel) -> None:
    """Continued as it stands, without a template: as text, and as token ids."""
    assert nano.tokenizer is not None
    text = "the house by the"
    ids = tuple(nano.tokenizer(text).input_ids)
    [by_text, by_ids] = every_way(nano, [ChatRequest((), prompt=text, max_tokens=8), ChatRequest((), prompt=ids, max_tokens=8)])
    assert by_text == by_ids and by_text.usage.prompt_tokens == len(ids)
    with torch.no_grad():
        network: Any = nano.network
        out = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8, pad_token_id=0)[0, len(ids) :].tolist()
    assert by_text.text == nano.tokenizer.decode(out, skip_special_tokens=True)


def test_a_schema(nano: LoadedModel) -> None:
    """Random weights say valid JSON of that shape, greedy or drawn, beside others; the answer ends when the schema is fulfilled."""
    requests = [ask(f"river {n}", max_tokens=120, schema=SCHEMA) for n in range(3)] + [ask("free", max_tokens=8)]
    found = every_way(nano, requests)
    for answer in found[:3]:
        assert answer.finish_reason == "stop"
        value = json.loads(answer.text)
        assert set(value) == {"name", "age"} and 0 <= value["age"] <= 99 and len(value["name"]) <= 8
    talking = engine(nano, batch_size=4)
    drawn = [next(talking.answers([ask("x", max_tokens=120, schema=SCHEMA, temperature=2.0, seed=seed)])).text for seed in range(3)]
    assert len(set(drawn)) == 3 and all(set(json.loads(one)) == {"name", "age"} for one in drawn)


def test_a_schema_that_cannot_be_held_to(nano: LoadedModel) -> None:
    """Refused with llguidance's own words, alone, before anything is computed."""
    talking = engine(nano, batch_size=4)
    for schema, words in [('{"type": "nope"}', "Invalid type: nope"), ("{", "cannot be held to")]:
        with pytest.raises(EngineError, match=words) as caught:
            next(talking.answers([ask("x", schema=schema)]))
        assert caught.value.reason == "refused"

    async def go() -> Answer:
        with pytest.raises(EngineError, match="Invalid type: nope"):
            await talking.answer(ask("x", schema='{"type": "nope"}'))
        found: Answer = await talking.answer(ask("x", max_tokens=2))
        await talking.close()
        return found

    assert asyncio.run(go()).usage.completion_tokens <= 2


def test_what_cannot_be_meant(nano: LoadedModel) -> None:
    talking = engine(nano)
    for request, words in [
        (ChatRequest((), prompt=(1, 5000)), r"does not know: it has 0 to 4,095"),
        (ChatRequest((), prompt=()), "The prompt is empty"),
        (ask("x", stop=("",)), "A stop string is empty"),
        (ask("x", schema=SCHEMA, ignore_end=True), "ignore_end says otherwise"),
    ]:
        with pytest.raises(InputError, match=words):
            next(talking.answers([request]))


def test_what_is_wrong_with_one_is_not_the_others_business(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar that breaks in the middle of a batch fails the one who asked for it."""
    from largeforge.engine.grammar import Matching

    taken: list[int] = []

    def broken(self: Matching, token: int) -> bool:
        taken.append(token)
        if len(taken) == 3:
            raise RuntimeError("a grammar broke")
        return False

    monkeypatch.setattr(Matching, "take", broken)
    talking = engine(nano, batch_size=4)

    async def go() -> list[Any]:
        requests = [ask("x", max_tokens=20, ignore_end=True), ask("y", max_tokens=20, schema=SCHEMA), ask("z", max_tokens=20, ignore_end=True)]
        found = await asyncio.gather(*map(talking.answer, requests), return_exceptions=True)
        assert talking.load().active == 0
        await talking.close()
        return found

    first, fault, last = asyncio.run(go())
    assert isinstance(fault, RuntimeError) and "a grammar broke" in str(fault)
    assert first.usage.completion_tokens == last.usage.completion_tokens == 20
