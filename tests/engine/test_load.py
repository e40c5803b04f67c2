"""How busy the engine says it is, and that whoever leaves gives back all they held."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from largeforge.chat import ChatRequest, Load
from largeforge.contract import LoadedModel
from tests.engine.conftest import ask, engine

WAIT_S = 60.0


async def until(said: Any, what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + WAIT_S
    while not said():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


def sizes(talking: Any) -> dict[str, int]:
    """Every table that a request has an entry in."""
    batching_ = talking._batching
    processor = batching_._processor
    scheduler, router = processor.scheduler, batching_._manager.output_router
    allocators = list(processor.cache.cache_allocators.values())
    return {
        "saying": len(batching_.saying),
        "active": len(scheduler.active_requests),
        "waiting": len(scheduler.waiting_requests),
        "order": len(scheduler.waiting_requests_order),
        "cancelled": len(scheduler._requests_to_cancel),
        "handlers": len(router.result_handlers),
        "outputs": router.output_queue.qsize(),
        "cancelling": batching_._manager.cancel_queue.qsize(),
        "coming": batching_._manager.input_queue.qsize(),
        "blocks": sum(len(allocator.block_table) for allocator in allocators),
        "shared": sum(len(allocator.ledger.shared_ref_counts) for allocator in allocators),
    }


def test_load(nano: LoadedModel) -> None:
    """Zero before anybody asks; then who is answered, who waits, blocks that are held, tokens that are computed."""
    talking = engine(nano, batch_size=2, max_batch_tokens=2)
    before = talking.load()
    assert before == Load(memory_bytes=before.memory_bytes) and before.memory_bytes > 2**20
    talking.start()
    assert talking.load().total_blocks == talking.load().free_blocks > 0

    async def go() -> None:
        streams = [talking.generate(ask(f"x{n}", max_tokens=2000, ignore_end=True)) for n in range(3)]
        firsts = [asyncio.ensure_future(anext(one)) for one in streams]
        await firsts[0]
        busy = talking.load()
        assert 1 <= busy.active <= 3 and busy.active + busy.waiting == 3 and busy.decoded_tokens >= 1
        assert 0 < busy.free_blocks < busy.total_blocks and busy.memory_bytes > 2**20
        for first, one in zip(firsts, streams, strict=True):
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await one.aclose()
        await until(lambda: talking.load().free_blocks == talking.load().total_blocks, "blocks are not given back")
        before = talking.load().decoded_tokens
        await talking.answer(ask("y", max_tokens=17, ignore_end=True))
        assert talking.load().decoded_tokens == before + 17
        await talking.close()

    asyncio.run(go())
    after = talking.load()
    assert after == Load(decoded_tokens=after.decoded_tokens, memory_bytes=after.memory_bytes) and after.decoded_tokens > 17


def test_a_request_joins_a_batch_that_runs(nano: LoadedModel) -> None:
    """Proves SYS-F-054, SYS-F-055: seven that come while one is answered are answered beside it, in the steps that it takes anyway."""
    talking = engine(nano, batch_size=8)

    async def go() -> None:
        stream = talking.generate(ask("first", max_tokens=80, ignore_end=True))
        await anext(stream)
        others = await asyncio.gather(*[talking.answer(ask(f"x{n}", max_tokens=20, ignore_end=True)) for n in range(7)])
        assert talking.load().active == 1  # it goes on
        deltas = [delta async for delta in stream]
        assert deltas[-1].usage is not None and deltas[-1].usage.completion_tokens == 80
        assert sum(one.usage.completion_tokens for one in others) == 140
        assert talking._batching._manager.current_batch < 100  # one after another they would take 220
        await talking.close()

    asyncio.run(go())


def test_a_prompt_that_was_read_is_not_read_again(nano: LoadedModel) -> None:
    """Proves SYS-F-056: whole blocks of keys and values of those who have gone serve whoever says the same, and count as free."""
    talking = engine(nano, batch_size=4)
    read: list[int] = []
    nano.network.get_input_embeddings().register_forward_hook(lambda module, inputs, out: read.append(inputs[0].numel()))

    async def go() -> list[int]:
        request = ask("word " * 100, max_tokens=1)
        sizes_: list[int] = []
        answers_ = []
        for _ in range(2):
            read.clear()
            answers_.append(await talking.answer(request))
            sizes_.append(sum(read))
        assert answers_[0] == answers_[1] and sizes_[0] == answers_[0].usage.prompt_tokens
        assert talking.load().free_blocks == talking.load().total_blocks
        await talking.close()
        return sizes_

    first, second = asyncio.run(go())
    assert first > 100 and 0 < second <= 32


@pytest.mark.parametrize("when", ["before the first token", "in a prompt that is read in pieces", "in the middle"])
def test_closing_gives_everything_back(nano: LoadedModel, when: str) -> None:
    """Within one step: no token is computed any more, and just the blocks that were free are free again."""
    talking = engine(nano, batch_size=4, max_batch_tokens=8)
    words = "word " * (400 if when == "in a prompt that is read in pieces" else 3)
    request = ask(words, max_tokens=3000, ignore_end=True)

    async def go() -> None:
        await talking.answer(ask("first", max_tokens=1))
        idle = talking.load()
        assert idle.free_blocks == idle.total_blocks
        stream = talking.generate(request)
        first = asyncio.ensure_future(anext(stream))
        if when == "in the middle":
            await first
        else:
            await until(lambda: talking.load().free_blocks < idle.free_blocks or first.done(), "nobody is answered")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await stream.aclose()
        await until(lambda: talking.load().active == 0, "it goes on")
        found = talking.load()
        assert found.free_blocks == idle.free_blocks and found.waiting == 0
        await asyncio.sleep(0.2)
        assert talking.load().decoded_tokens == found.decoded_tokens
        assert set(sizes(talking).values()) == {0}
        await talking.close()

    asyncio.run(go())


def test_nothing_grows(nano: LoadedModel) -> None:
    """Two thousand requests, many of them left at random: every table is empty afterwards, every block free."""
    talking = engine(nano, batch_size=32)
    chance = random.Random(0)

    async def one(number: int) -> None:
        request = ChatRequest((), prompt=tuple(range(5, 6 + number % 7)), max_tokens=1 + number % 4, ignore_end=True, stop=("@@",) if number % 5 == 0 else ())
        if number % 3 == 0:
            await talking.answer(request)
            return
        stream = talking.generate(request)
        left = chance.choice(["never", "at once", "after a token", "while waiting"])
        if left == "at once":
            await stream.aclose()
        elif left == "while waiting":
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(chance.random() * 0.01)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await stream.aclose()
        else:
            async for _ in stream:
                if left == "after a token":
                    break
            await stream.aclose()

    async def go() -> None:
        gate = asyncio.Semaphore(64)

        async def let_in(number: int) -> None:
            async with gate:
                await one(number)

        await asyncio.gather(*map(let_in, range(2000)))
        await until(lambda: set(sizes(talking).values()) == {0}, str(sizes(talking)))
        assert talking.load().free_blocks == talking.load().total_blocks
        await talking.close()

    asyncio.run(go())


def test_a_request_that_comes_after_its_asker_has_left(nano: LoadedModel) -> None:
    """Its cancellation may be drained before it is: it is not taken in at all, or nobody would ever end it."""
    talking = engine(nano, batch_size=4)

    async def go() -> None:
        await talking.answer(ask("x", max_tokens=1))
        before = talking.load().decoded_tokens
        talking._batching._manager.add_request([5, 6, 7], request_id="99@0")
        await talking.answer(ask("y", max_tokens=8, ignore_end=True))
        assert talking.load().decoded_tokens == before + 8
        assert set(sizes(talking).values()) == {0}
        await talking.close()

    asyncio.run(go())


def test_an_asker_whose_loop_is_gone(nano: LoadedModel) -> None:
    """An event loop that was closed with a request under way ends neither the batch nor the others."""
    talking = engine(nano, batch_size=4)
    loop = asyncio.new_event_loop()
    forgotten = talking.generate(ask("x", max_tokens=500, ignore_end=True))
    loop.run_until_complete(anext(forgotten))
    loop.close()

    async def go() -> int:
        found = await talking.answer(ask("y", max_tokens=5, ignore_end=True))
        await talking.close()
        return int(found.usage.completion_tokens)

    assert asyncio.run(go()) == 5
