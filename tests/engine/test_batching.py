"""Continuous batching: the same answers as padded batches give, seeds honoured whoever else is there, places freed, no thread left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager

from largeforge.chat import Answer, ChatRequest, Failure, Message
from largeforge.contract import LoadedModel
from largeforge.engine.answers import answers, stream
from largeforge.engine.batching import ContinuousBatching
from largeforge.engine.choosing import Drawing, draw_steadily
from largeforge.errors import DoesNotFit, EngineError
from tests.engine.conftest import ask, engine
from tests.engine.test_hf import REQUESTS
from tests.tiny_models import part


@pytest.fixture(autouse=True)
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No thread, and no warning of transformers'."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def small(model: LoadedModel) -> Any:
    """An engine with room for few requests: making room for many takes its time."""
    return engine(model, batch_size=8)


def asked(talking: Any, requests: list[ChatRequest], **how: Any) -> list[Answer | Failure]:
    return list(answers(talking, requests, **{"in_flight": talking.in_flight, **how}))


@pytest.mark.parametrize("in_flight", [1, 20])
def test_the_same_answers_as_padded_batches(nano: LoadedModel, in_flight: int) -> None:
    """Greedily, alone or beside others, whole or as a stream: in fp32 the very same text, reason and usage."""
    talking = engine(nano, batch_size=in_flight)
    requests = REQUESTS if in_flight > 1 else REQUESTS[:5]
    expected = list(talking.answers(requests))
    assert {answer.finish_reason for answer in expected} == {"stop", "length"} or in_flight == 1
    assert asked(talking, requests) == expected
    answer = max(expected, key=lambda answer: answer.usage.completion_tokens)
    *pieces, last = stream(talking, requests[expected.index(answer)])
    assert "".join(delta.text for delta in pieces) == answer.text and (last.finish_reason, last.usage) == (answer.finish_reason, answer.usage)
    assert all(delta.text and delta.finish_reason is None for delta in pieces) and len(pieces) > 1


def test_prompts_that_begin_alike(nano: LoadedModel) -> None:
    """Blocks of keys and values that several prompts share change nothing."""
    system = Message("system", "You are a helpful assistant of a house by the sea, and you answer in few words. " * 4)
    requests = [ChatRequest((system, *request.messages), max_tokens=request.max_tokens) for request in REQUESTS[:8]]
    talking = small(nano)
    assert asked(talking, requests, in_flight=5) == list(talking.answers(requests))


def test_another_kind_of_network(nano: LoadedModel) -> None:
    """A tiny random Mistral with a sliding window of 8 tokens, and eager attention, which transformers pages in its own way and puts back."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    for attention in ("sdpa", "eager"):
        settings = MistralConfig(vocab_size=4096, sliding_window=8, initializer_range=0.3, pad_token_id=None, attn_implementation=attention, **shape)
        network: Any = MistralForCausalLM(settings)
        talking = small(dataclasses.replace(nano, network=network.eval()))
        requests = [dataclasses.replace(request, max_tokens=12) for request in REQUESTS[:6]]
        assert asked(talking, requests, in_flight=4) == list(talking.answers(requests))
        assert network.config._attn_implementation == attention


def test_little_room(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a few requests only: some are put back and read again, and say the same, sampled ones too. One that never fits is refused alone."""
    talking = small(nano)
    talking.ends = frozenset()
    requests = [dataclasses.replace(one, temperature=1.2 * (n % 2), seed=n, max_tokens=40) for n, one in enumerate(REQUESTS[:6])]
    expected = asked(talking, requests)
    put_back: list[int] = []
    real = OffloadingManager.offload_requests
    monkeypatch.setattr(OffloadingManager, "offload_requests", lambda self: put_back.append(1) or real(self))
    monkeypatch.setattr("largeforge.engine.hf.CACHE_BYTES", 160 * talking._cache_bytes_per_token())
    assert asked(talking, requests) == expected and put_back
    found = asked(talking, [requests[0], ask("x", max_tokens=400)])
    assert found[0] == expected[0]
    assert isinstance(found[1], Failure) and found[1].reason == "refused" and "160 there is room for" in found[1].message


def test_prompts_that_are_too_long_fail_alone(nano: LoadedModel) -> None:
    nano.network.config.max_position_embeddings = 24
    talking = small(nano)
    found = asked(talking, [ask("x"), ask("word " * 30), ask("y", max_tokens=1000)])
    assert isinstance(found[1], Failure) and found[1].reason == "refused" and "This prompt has" in found[1].message
    assert isinstance(found[2], Answer) and found[2].usage.total_tokens <= 24


def test_seeds(nano: LoadedModel) -> None:
    """The same seed says the same whoever else is in the batch; others differ; torch's own generator is left alone."""
    request = ask("river", max_tokens=12, temperature=1.5, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    talking = small(nano)
    [alone] = asked(talking, [request])
    [_, within, _] = asked(talking, [ask("a longer prompt than the others", temperature=0.7), request, ask("x")])
    assert within == alone and torch.equal(torch.get_rng_state(), state)
    assert len({str(one) for one in asked(talking, [dataclasses.replace(request, seed=seed) for seed in range(4)])}) > 2


def test_drawing_by_hand() -> None:
    """Of chances 0.5, 0.3, 0.2: top_p 0.6 keeps the first two, top_k 2 the same, temperature sharpens; equal ones may change places."""
    logits = torch.tensor([0.3, 0.5, 0.2]).log()

    def shares(**how: Any) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        drawn = [draw_steadily(logits, Drawing(1, **{"temperature": 1.0, **how}), generator) for _ in range(2000)]
        return [drawn.count(token) / len(drawn) for token in range(3)]

    assert shares() == pytest.approx([0.3, 0.5, 0.2], abs=0.04)
    assert shares(top_p=0.6) == pytest.approx([0.375, 0.625, 0], abs=0.04) == shares(top_k=2)
    assert shares(top_p=0.5) == [0, 1, 0] == shares(top_k=1) == shares(top_p=1e-9)
    assert shares(temperature=0.5) == pytest.approx([0.09 / 0.38, 0.25 / 0.38, 0.04 / 0.38], abs=0.04)
    flat = torch.zeros(1000)
    other = flat + 1e-6 * torch.randn(1000, generator=torch.Generator().manual_seed(1))  # other ranks, every one of them

    def drawn(logits: torch.Tensor) -> list[int]:
        generator = torch.Generator().manual_seed(0)
        return [draw_steadily(logits, Drawing(1, temperature=1.0), generator) for _ in range(50)]

    assert drawn(flat) == drawn(other)


def test_closing_frees_its_place(nano: LoadedModel) -> None:
    """A stream that is closed in the middle holds neither keys nor values, and the others go on."""
    talking = small(nano)
    talking.ends = frozenset()

    async def go() -> None:
        endless = talking.generate(ask("x", max_tokens=5000))
        await anext(endless)
        batching = talking._batching
        assert batching is not None and batching.num_held == 1
        other = asyncio.create_task(talking.answer(ask("y", max_tokens=30)))
        await anext(endless)
        await endless.aclose()
        assert (await other).usage.completion_tokens == 30
        until = time.monotonic() + 5
        while batching.num_held and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert batching.num_held == 0 and batching.saying == {}
        await talking.close()
        await talking.close()  # twice is once

    asyncio.run(go())


def test_closing_in_the_middle_and_asking_again(nano: LoadedModel) -> None:
    """An iterator that is closed while requests run stops the thread at its next step; the engine can be asked again."""
    talking = small(nano)
    talking.ends = frozenset()
    found = answers(talking, [ask("quick", max_tokens=1), *[ask(f"slow {n}", max_tokens=7000) for n in range(3)]], in_flight=4)
    next(found)
    start = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 10
    assert len(asked(talking, [ask("again", max_tokens=3)])) == 1


def test_a_network_in_training_is_left_as_it_was(nano_cache: Path) -> None:
    """An fp32 adapter over bf16 weights answers, in half precision, without gradients; every mode is as before."""
    model: LoadedModel = part("model", "nano").load(trainable=True, precision="bf16", adapter=part("adapter", "lora", dropout=0.5, live={"seed": 0}))
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(0))
    modes = [module.training for module in model.network.modules()]
    talking = small(model)
    first, second = asked(talking, REQUESTS[:3], in_flight=1), asked(talking, REQUESTS[:3], in_flight=1)
    assert first == second and all(isinstance(one, Answer) for one in first)
    assert first == list(engine(model, batch_size=1).answers(REQUESTS[:3]))  # the adapter speaks, and is computed alike
    assert [module.training for module in model.network.modules()] == modes
    model.network(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()


def test_a_loop_that_fails(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What breaks inside of the thread reaches who asked; nobody waits for ever. Out of memory says what to change."""
    for message, kind in [("a bug", RuntimeError), ("DefaultCPUAllocator: can't allocate memory", DoesNotFit)]:
        talking = small(nano)

        def broken(*_: Any, message: str = message) -> None:
            raise ValueError(message)

        monkeypatch.setattr(ContinuousBatching, "_sample", broken)
        with pytest.raises(kind, match=message.split(":")[0]):
            asked(talking, REQUESTS[:3])
    caplog.clear()  # transformers logs such errors with their traceback


def test_answering_goes_on_after_a_failure(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Who asks next is answered: the batch that failed is put away, and another one begun."""
    talking = small(nano)
    real = ContinuousBatching._sample

    def once(self: Any, *arguments: Any) -> None:
        monkeypatch.setattr(ContinuousBatching, "_sample", real)
        raise ValueError("a bug")

    async def go() -> Answer:
        monkeypatch.setattr(ContinuousBatching, "_sample", once)
        with pytest.raises(RuntimeError, match="a bug"):
            await talking.answer(REQUESTS[0])
        until = time.monotonic() + 10
        while not talking._batching.failed and time.monotonic() < until:
            await asyncio.sleep(0.01)
        found: Answer = await talking.answer(REQUESTS[0])
        await talking.close()
        return found

    assert asyncio.run(go()) == next(talking.answers(REQUESTS[:1]))
    caplog.clear()


def test_a_network_that_cannot(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    talking = small(nano)
    monkeypatch.setattr(type(nano.network), "init_continuous_batching", lambda *_, **__: (_ for _ in ()).throw(ValueError("no paging")), raising=False)
    nano.network.train()
    with pytest.raises(EngineError, match="cannot answer many requests at once: no paging"):
        asked(talking, REQUESTS[:3])
    assert nano.network.training


def test_the_name(nano: LoadedModel) -> None:
    """The model with its revision, or the hash of its files: what lineage and the journal tell apart."""
    source = dataclasses.replace(nano.source, name="org/model", revision="0123456789abcdef", sha256="f" * 64)
    assert engine(dataclasses.replace(nano, source=source)).name == "org/model@0123456789ab"
    assert engine(dataclasses.replace(nano, source=dataclasses.replace(source, revision=""))).name == "org/model@ffffffffffff"


def test_it_needs_a_model() -> None:
    from largeforge.engine.hf import HF

    assert HF.needs_model
    with contextlib.suppress(AttributeError):
        assert not HF.budget  # type: ignore[attr-defined]
