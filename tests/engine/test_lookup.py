"""Guessing ahead: the very same tokens, fewer steps where answers repeat, and nothing taken where they do not."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
import torch

from largeforge.chat import Answer, ChatRequest
from largeforge.contract import LoadedModel
from largeforge.engine import batching
from largeforge.engine.lookup import LEAST, MOST, Lookup
from tests.engine.conftest import engine


def test_what_followed_before() -> None:
    """The last occurrence of the last three tokens tells; nothing does where they were never said."""
    lookup = Lookup([1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 1, 2])
    assert lookup.guess(10) == []
    lookup.extend([3], 0)
    assert lookup.guess(10) == [6, 7, 1, 2] and lookup.guess(1) == [6] and lookup.guess(0) == []
    lookup.extend([6, 7, 1, 2, 3], 4)  # all were right, and one more token came
    assert lookup.guess(10) == [6, 7, 1, 2, 3]
    lookup.extend([8], 5)  # none was: a few steps without
    assert [lookup.guess(10) for _ in range(4)] == [[]] * 4


def test_it_guesses_more_after_it_was_right() -> None:
    lookup = Lookup([1, 2, 3] * 20)
    sizes = []
    for _ in range(4):
        guess = lookup.guess(100)
        sizes.append(len(guess))
        lookup.extend([*guess, [1, 2, 3][(len(lookup._ids) + len(guess)) % 3]], len(guess))
    assert max(sizes) <= MOST and lookup._size == MOST
    lookup.extend([7, 7], 3)
    assert lookup._size == LEAST


@pytest.fixture
def repeating(nano: LoadedModel) -> LoadedModel:
    """A network of random weights as they are drawn soon says the same again and again."""
    with torch.no_grad():
        for parameter in nano.network.parameters():
            if parameter.dim() == 2:
                parameter.div_(6)
    return nano


def told(model: LoadedModel, requests: list[ChatRequest], **changes: Any) -> tuple[list[Answer], dict[str, int]]:
    """Answers to requests that are asked at once, and what was counted."""
    talking = engine(model, batch_size=8, **changes)

    async def go() -> tuple[list[Answer], dict[str, int]]:
        found = await asyncio.gather(*map(talking.answer, requests))
        running = talking._batching
        load = talking.load()
        assert load.free_blocks == load.total_blocks and load.active == 0
        counts = {"guessed": running.guessed_tokens, "right": running.right_tokens, "decoded": load.decoded_tokens, "steps": running._manager.current_batch}
        await talking.close()
        return found, counts

    return asyncio.run(go())


def some(num: int, **changes: Any) -> list[ChatRequest]:
    return [
        ChatRequest((), prompt=tuple(5 + (n * 7 + j) % 2000 for j in range(20 + 13 * n)), **{"max_tokens": 120, "ignore_end": True, **changes})
        for n in range(num)
    ]


@pytest.mark.parametrize("num", [1, 3])
def test_the_same_tokens_in_fewer_steps(repeating: LoadedModel, num: int) -> None:
    requests = some(num)
    usual, plainly = told(repeating, requests, speculation="none")
    found, counts = told(repeating, requests, speculation="prompt_lookup")
    assert found == usual and plainly["guessed"] == 0
    assert counts["right"] > 20 and counts["steps"] < plainly["steps"] - 15
    assert counts["decoded"] >= plainly["decoded"] == 120 * num


def test_beside_others(repeating: LoadedModel) -> None:
    """Drawn ones, ones with a stop string, ones that hold keys and values of the same prompt: each as without guessing; many are not guessed for at all."""
    requests = some(2, max_tokens=60) + some(1, max_tokens=60, temperature=1.0) + some(1, max_tokens=60, stop=("heart heart",))
    usual, _ = told(repeating, requests, speculation="none")
    found, counts = told(repeating, requests, speculation="prompt_lookup")
    assert found == usual and counts["guessed"] > 0
    again = [dataclasses.replace(requests[0], max_tokens=90), requests[0]]
    assert told(repeating, again, speculation="prompt_lookup")[0] == told(repeating, again, speculation="none")[0]
    many = some(8, max_tokens=20)
    assert told(repeating, many, speculation="prompt_lookup")[0] == told(repeating, many, speculation="none")[0]


def test_wrong_guesses_change_nothing(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is guessed: keys and values of what was wrong are written over, blocks are hashed by what was said."""
    requests = some(2, max_tokens=80)
    usual, _ = told(nano, requests, speculation="none")
    wild = torch.Generator().manual_seed(0)
    go_on = batching.ContinuousBatching._go_on
    checked: list[int] = []

    def looked_at(self: Any) -> None:
        """No block may be shared before its last key is there."""
        go_on(self)
        for state in self._processor.scheduler.active_requests.values():
            for allocator in self._processor.cache.cache_allocators.values():
                hashed = [block in allocator.ledger.block_to_hash for block in allocator.block_table.get(state.request_id, [])]
                assert sum(hashed) <= state.position_offset // batching.PAGE_TOKENS
                checked.append(sum(hashed))

    monkeypatch.setattr(batching.ContinuousBatching, "_go_on", looked_at)

    def guess(self: Lookup, most: int) -> list[int]:
        return torch.randint(5, 4096, (min(most, 7),), generator=wild).tolist()

    monkeypatch.setattr(Lookup, "guess", guess)
    found, counts = told(nano, requests + requests, speculation="prompt_lookup")
    assert found == usual + usual and counts["guessed"] > 300 and max(checked) > 2


def test_little_room(repeating: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are put back and read again while guesses are under way say the same."""
    monkeypatch.setattr(batching, "FEW", 8)
    requests = some(4, max_tokens=100)
    usual, _ = told(repeating, requests, speculation="none")
    room = 256 * engine(repeating)._cache_bytes_per_token()
    found, counts = told(repeating, requests, speculation="prompt_lookup", kv_cache_bytes=room)
    assert found == usual and counts["guessed"] > 0


def test_not_behind_a_window(nano: LoadedModel) -> None:
    """A ring cannot take a wrong guess back: such networks are not guessed for."""
    from tests.engine.test_paged_attention import network

    requests = some(1, max_tokens=40)
    model = dataclasses.replace(nano, network=network("sliding"))
    found, counts = told(model, requests, speculation="prompt_lookup")
    assert counts["guessed"] == 0 and found == told(model, requests, speculation="none")[0]
