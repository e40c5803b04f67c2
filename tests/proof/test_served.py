"""The proof of what is served: pins of a real model, and endpoints that tell the truth or not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from largeforge.__main__ import main
from largeforge.chat import ChatRequest, Message
from largeforge.contract import LoadedModel
from largeforge.engine.prompt import prompt_ids
from largeforge.errors import EXIT_CHECK_FAILED, CheckFailed
from largeforge.proof.served import PROMPTS, Pin, in_process, pinned, pinned_prompts, prove
from largeforge.task.serve import Serve
from tests.tiny_models import part


@pytest.fixture(scope="module")
def nano(shared_models: Path) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LARGEFORGE_CACHE", str(shared_models))
        loaded: LoadedModel = part("model", "nano", dtype="fp32").load(trainable=False)
    return loaded


@pytest.fixture(scope="module")
def engine(nano: LoadedModel) -> Any:
    return part("engine", "hf", live={"model": nano})


@pytest.fixture(scope="module")
def pins(nano: LoadedModel, engine: Any) -> list[dict[str, Any]]:
    return in_process(pinned(nano), engine)


class Endpoint:
    """Answers as the engine does, but for what a test changes."""

    def __init__(self, model: LoadedModel, engine: Any, pins: list[dict[str, Any]]) -> None:
        self.model, self.engine, self.pins = model, engine, pins
        self.template = model.template
        self.said: dict[str, str] = {}
        self.uncounted = 0  # tokens of a prompt that its usage leaves out

    async def get(self, path: str) -> Any:
        assert path == "/pinned"
        return self.pins

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        request = ChatRequest(
            tuple(Message(one["role"], one["content"]) for one in body["messages"]),
            max_tokens=body.get("max_tokens", 1),
            ignore_end=body.get("ignore_eos", False),
        )
        ids = prompt_ids(self.model.tokenizer, self.template, request)  # type: ignore[arg-type]
        if path == "/tokenize":
            return {"tokens": ids}
        prompt = body["messages"][0]["content"]
        text = self.said.get(prompt) or next(self.engine.answers([request])).text
        return {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": len(ids) - self.uncounted}}


def test_the_truth_is_proven(nano: LoadedModel, engine: Any, pins: list[dict[str, Any]]) -> None:
    assert [pin["prompt"] for pin in pins] == list(PROMPTS) and all(len(pin["tokens"]) == len(pin["margins"]) == 16 for pin in pins)
    line = asyncio.run(prove(Endpoint(nano, engine, pins), "nano"))
    assert "3 of 3 pinned prompts: the same token ids, and the same 48 greedy tokens as in-process and by transformers' generate" in line


def test_answers_go_on_past_their_end(nano: LoadedModel, pins: list[dict[str, Any]]) -> None:
    """A model that says nothing would be compared in nothing."""
    network: Any = nano.network
    own = network.generation_config.eos_token_id
    network.generation_config.eos_token_id = pins[0]["tokens"][0]
    try:
        assert pinned(nano)[0]["tokens"] == pins[0]["tokens"] and network.generation_config.eos_token_id == pins[0]["tokens"][0]
    finally:
        network.generation_config.eos_token_id = own


def test_another_template_is_found(nano: LoadedModel, engine: Any, pins: list[dict[str, Any]]) -> None:
    endpoint = Endpoint(nano, engine, pins)
    endpoint.template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(CheckFailed, match="becomes .* tokens there"):
        asyncio.run(prove(endpoint, "nano"))


def test_a_prompt_that_is_counted_otherwise_is_found(nano: LoadedModel, engine: Any, pins: list[dict[str, Any]]) -> None:
    """An endpoint that tokenizes rightly when asked for tokens and otherwise when it answers: its usage gives it away."""
    endpoint = Endpoint(nano, engine, pins)
    endpoint.uncounted = 1
    count = len(pins[0]["ids"])
    with pytest.raises(CheckFailed, match=rf"becomes {count} tokens there .*, {count - 1} in its answer's usage, not {count}"):
        asyncio.run(prove(endpoint, "nano"))


def test_another_answer_is_found(nano: LoadedModel, engine: Any, pins: list[dict[str, Any]]) -> None:
    endpoint = Endpoint(nano, engine, pins)
    endpoint.said[PROMPTS[1]] = "something else"
    with pytest.raises(CheckFailed, match="is answered with 'something else'"):
        asyncio.run(prove(endpoint, "nano"))


def test_a_tie_is_told_and_is_no_difference(nano: LoadedModel, engine: Any, pins: list[dict[str, Any]]) -> None:
    """Only where the model itself told two tokens hardly apart, and only at that very place."""
    first = Pin(**pins[0])
    endpoint = Endpoint(nano, engine, [vars(replace(first, margins=[9.0, 9.0, 0.1, *first.margins[3:]], precision="bfloat16"))])
    endpoint.said[first.prompt] = first.grown[1] + "?"
    assert "1 of them up to a tie of two tokens in bfloat16" in asyncio.run(prove(endpoint, "nano"))
    endpoint.said[first.prompt] = first.grown[0] + "?"
    with pytest.raises(CheckFailed):
        asyncio.run(prove(endpoint, "nano"))
    endpoint.pins = [vars(replace(first, margins=[9.0, 9.0, 0.1, *first.margins[3:]]))]  # in fp32 0.1 is no tie
    endpoint.said[first.prompt] = first.grown[1] + "?"
    with pytest.raises(CheckFailed):
        asyncio.run(prove(endpoint, "nano"))


def test_an_engine_that_differs_in_its_own_process(pins: list[dict[str, Any]], engine: Any) -> None:
    class Liar:
        def answers(self, requests: list[ChatRequest]) -> Any:
            return (replace(one, text="no") for one in engine.answers(requests))

    with pytest.raises(CheckFailed, match="transformers' generate says"):
        in_process(pins, Liar())  # type: ignore[arg-type]


def test_a_large_model_is_compared_by_its_prompts(nano: LoadedModel, engine: Any) -> None:
    endpoint = Endpoint(nano, engine, [])
    line = asyncio.run(prove(endpoint, "nano", pinned_prompts(nano.tokenizer, nano.template)))
    assert "not answered twice" in line
    endpoint.template = "{{ messages[0]['content'] }}"
    with pytest.raises(CheckFailed):
        asyncio.run(prove(endpoint, "nano", pinned_prompts(nano.tokenizer, nano.template)))


def test_what_is_not_the_model_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    async def differs(upstream: Any, name: str) -> str:
        assert await upstream.ask("/v1/completions", {"model": name, "prompt": "a"})  # the engine is up
        raise CheckFailed("What is served is not the model: a, b.")

    monkeypatch.setattr(Serve, "proof", lambda self: differs)
    words = ["task=serve", "engine=echo", "serve.port=0", "serve.grpc_port=0", f"folder={tmp_path / 'run'}", f"store.path={tmp_path / 'keys.sqlite3'}"]
    assert main(words) == EXIT_CHECK_FAILED
    said = capfd.readouterr()
    assert "What is served is not the model" in said.err + said.out and "ready in" not in said.err + said.out
