"""Everything at once, in fp32: adapters, streams and whole answers, askers who leave: token for token transformers' own generate."""

from __future__ import annotations

import asyncio
import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from largeforge.chat import ChatRequest
from largeforge.contract import LoadedModel
from tests.engine.test_adapters import NAMES, saved, serving


def asked(number: int, chance: random.Random) -> ChatRequest:
    length = chance.choice([1, 3, 17, 31, 32, 33, 60, 100, 200])
    ids = tuple(chance.randrange(5, 4096) for _ in range(length))
    if number % 5 == 0:  # some begin alike: blocks are shared
        ids = (*range(100, 170), *ids)
    return ChatRequest((), prompt=ids, max_tokens=chance.randrange(1, 32), ignore_end=number % 2 == 0, adapter=("", *NAMES)[number % 4])


@pytest.mark.parametrize("num", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_equal_to_generate(nano: LoadedModel, tmp_path: Path, num: int) -> None:
    """32 in flight; a third are left at random, and the answers of all others are the very tokens of `generate`."""
    from peft import PeftModel

    adapters = {name: saved(nano, tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    chance = random.Random(num)
    requests = [asked(number, chance) for number in range(num)]
    assert nano.tokenizer is not None
    tokenizer, eos = nano.tokenizer, nano.tokenizer.eos_token_id
    networks = {name: PeftModel.from_pretrained(copy.deepcopy(nano.network), path).eval() for name, path in adapters.items()}
    networks[""] = nano.network

    def expected(request: ChatRequest) -> tuple[str, int]:
        network: Any = networks[request.adapter]
        ids = torch.tensor([request.prompt])
        with torch.no_grad():
            out = network.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=request.max_tokens,
                pad_token_id=0, eos_token_id=-1 if request.ignore_end else eos,
            )  # fmt: skip
        said = out[0, ids.shape[1] :].tolist()
        said = said[:-1] if not request.ignore_end and said[-1] == eos else said
        return tokenizer.decode(said, skip_special_tokens=True), len(said)

    talking = serving(nano, adapters, batch_size=32, max_batch_tokens=128)

    async def whole(request: ChatRequest) -> tuple[str, int]:
        answer = await talking.answer(request)
        return answer.text, answer.usage.completion_tokens

    async def streamed(request: ChatRequest, leave_after: int | None) -> tuple[str, int] | None:
        stream = talking.generate(request)
        text = ""
        async for delta in stream:
            text += delta.text
            if delta.usage is not None:
                return text, delta.usage.completion_tokens
            if leave_after is not None and len(text) > leave_after:
                break
        await stream.aclose()
        return None

    async def go() -> list[tuple[str, int] | None]:
        gate = asyncio.Semaphore(32)

        async def one(number: int) -> tuple[str, int] | None:
            async with gate:
                if number % 3 == 0:
                    return await whole(requests[number])
                return await streamed(requests[number], chance.randrange(20) if number % 3 == 1 else None)

        found = await asyncio.gather(*map(one, range(num)))
        await talking.close()
        return found

    found = asyncio.run(go())
    stayed = [number for number in range(num) if found[number] is not None]
    assert len(stayed) >= 2 * num // 3
    assert [found[number] for number in stayed] == [expected(requests[number]) for number in stayed]
