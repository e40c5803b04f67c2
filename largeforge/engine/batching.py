"""transformers' continuous batching behind three verbs: start, say tokens for a prompt, stop. Requests join and leave the batch at any token.

Knows token ids only, like `decoding.py`. The scheduler, the paged cache, its blocks and their sharing are transformers'. Replaced by
hooks: the attention (`paged_attention.py`), how a step's tensors are laid out (theirs builds indices token by token and masks of all
queries by all keys), how tokens are chosen (a seed of its own for every request, penalties, grammars), and how they are handed
over (theirs copies the whole answer at every token). The names it hooks into are of transformers 5.19 and are tested.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import TMP_TOKEN_ID, RequestStatus

from largeforge.chat import Load
from largeforge.engine.choosing import Choosing, Logprob
from largeforge.engine.lookup import MOST, Lookup
from largeforge.engine.paged_attention import NAME, PagedAttention, Piece, can_page
from largeforge.errors import DoesNotFit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from largeforge.engine.adapters import Mixing

PAGE_TOKENS = 32  # of a block of keys and values: a request holds whole blocks
USUAL_TOKENS = 1024  # room that is made for each request; where all are longer, the last to come are read again later
FEW = 4  # requests under way, up to which guessing ahead pays: more of them fill a step by themselves
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What is new of an answer.

    Args:
        tokens: that were not told before.
        logprobs: theirs, where they were asked for.
        reason: what ended the answer: "stop" or "length"; None where it goes on.
    """

    tokens: list[int]
    logprobs: list[Logprob]
    reason: str | None


@dataclass
class _Saying:
    """One answer under way, as both threads see it: the batch's writes, the asker's loop is told."""

    choosing: Choosing
    streaming: bool
    loop: asyncio.AbstractEventLoop
    found: asyncio.Queue[Said | Exception] = field(default_factory=asyncio.Queue)
    lookup: Lookup | None = None
    guess: list[int] = field(default_factory=list)
    num_told: int = 0
    fault: Exception | None = None

    def news(self) -> Said | Exception:
        if self.fault is not None:
            return self.fault
        choosing, told = self.choosing, self.num_told
        self.num_told = len(choosing.answer)
        return Said(choosing.answer[told:], choosing.logprobs[told:], choosing.ended_by)


class ContinuousBatching:
    """Says tokens for many prompts at once, on a thread of its own.

    Args:
        network: in eval mode, on its device; without an adapter around it (LoRA inside of its layers is fine).
        in_flight: requests in one batch at most.
        context: tokens that the network reads at most.
        cache_bytes: keys and values at most.
        bytes_per_token: of keys and values.
        batch_tokens: of one forward pass at most: long prompts are read in pieces, so that others go on answering.
        computing: a context that every forward pass runs in.
        mixing: adapters that requests of one batch choose among; None is none.
        speculating: whether greedy answers are guessed ahead by prompt lookup, and verified, while few are answered.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        *,
        in_flight: int,
        context: int | None,
        cache_bytes: int,
        bytes_per_token: int,
        batch_tokens: int,
        computing: Callable[[], AbstractContextManager[Any]],
        mixing: Mixing | None = None,
        speculating: bool = False,
    ) -> None:
        self.computing = computing
        self.mixing = mixing
        self.saying: dict[str, _Saying] = {}
        self.decoded_tokens = 0
        """Tokens of answers computed so far, those of askers who have just left included."""
        self._numbers = itertools.count()
        self.guessed_tokens = self.right_tokens = 0
        """Tokens guessed ahead so far, and those that were right."""
        self._speculating = speculating
        self._guessing: dict[str, Any] = {}  # requests whose next step verifies a guess
        self._tokens: list[list[int]] = []  # of this step, for each request that has new ones
        fitting = cache_bytes // bytes_per_token // PAGE_TOKENS
        wanted = max(in_flight * USUAL_TOKENS, context or 0) // PAGE_TOKENS + in_flight
        self.capacity = min(fitting, wanted) * PAGE_TOKENS
        """Tokens of keys and values that there is room for."""
        self._network: Any = network
        self._attention = network.config._attn_implementation
        self._paged: PagedAttention | None = None
        self._step: dict[str, Any] = {}
        self._no_mask = torch.zeros(1, 1, 1, 1)
        self._vocabulary = int(network.config.get_text_config().vocab_size)
        try:
            self._manager = self._start(in_flight, max(batch_tokens, in_flight))
        except BaseException:
            self._put_back()
            raise

    def _start(self, in_flight: int, batch_tokens: int) -> Any:
        fast = can_page(self._network)
        configure: Any = GenerationConfig  # has no types
        generation = configure(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=None)  # `Choosing` knows when an answer is over
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=self.capacity // PAGE_TOKENS,
            max_batch_tokens=batch_tokens,
            max_requests_per_batch=in_flight,
            auto_switch_to_flash=False,  # the attention that the user chose
            use_cuda_graph=False,  # a graph would draw the same numbers again and again
            use_async_batching=False,
        )
        manager = self._network.init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
        if fast:
            self._network.set_attn_implementation(NAME)  # not before: transformers' manager takes attentions that it knows only
        try:
            with torch.random.fork_rng():  # it seeds torch's own generators, which nobody here draws from
                processor = manager._create_batch_processor()
        except MemoryError as fault:
            raise DoesNotFit(f"Keys and values for {self.capacity:,} tokens do not fit: {fault}.", next_step="a smaller engine.batch_size") from fault
        manager.batch_processor = processor  # the loop takes it as it is, hooks included
        self._processor = processor
        self._hook(manager, processor, fast=fast)
        if self.mixing is not None:
            self.mixing.begin()
        # a guess that is wrong would have to be taken back out of a ring; and a step must have room for all of them
        self._speculating = self._speculating and fast and list(processor.cache.cache_allocators) == ["full_attention"] and batch_tokens > FEW * (MOST + 1)
        manager.background_thread_status.clear()
        # as manager.start does, but a daemon: an engine that nobody closed must not keep the process from ending
        manager._generation_thread = threading.Thread(target=manager._run_generation_loop, name="largeforge-batching", daemon=True)
        manager._generation_thread.start()
        return manager

    def _hook(self, manager: Any, processor: Any, *, fast: bool) -> None:
        if fast:
            self._paged = PagedAttention(processor.cache)
            processor.inputs_and_outputs.prepare_batch_tensors = self._lay_out
            processor.inputs_and_outputs.get_model_kwargs = lambda use_padding=False: self._step
        runner = processor.model_runner
        forward = runner._forward_process_and_sample

        def computed(model: Any, batch_data: dict[str, Any], *others: Any) -> None:
            if self._paged is not None:  # moved here: on a GPU this runs on the stream that computes
                device = self._network.device
                batch_data = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch_data.items()}
            if self.mixing is not None:
                self.mixing.lay_out([(_adapter_of(one.state.request_id), one.query_length) for one in processor.inputs_and_outputs.requests_in_batch])
            with self.computing():
                forward(model, batch_data, *others)

        runner._forward_process_and_sample = computed
        runner._sample = lambda scores, output_ids: self._sample(processor.inputs_and_outputs.requests_in_batch, scores)
        processor.update_batch = self._go_on
        processor.scheduler.add_waiting_request = self._admit
        manager.output_router.deliver = lambda output: self._fail(output.request_id, output.error)
        if self.mixing is not None:
            self._keep_apart(processor.cache)

    def _keep_apart(self, cache: Any) -> None:
        """Let no adapter read keys and values that another one wrote: the first token of a hashed prompt tells whose they are."""

        def salted(request_id: str, ids: list[int]) -> list[int]:
            return [ids[0] + self._vocabulary * _adapter_of(request_id), *ids[1:]]

        search = cache.search_prefix_match
        cache.search_prefix_match = lambda request_id, ids: search(request_id, salted(request_id, ids))
        for allocator in cache.cache_allocators.values():
            mark = allocator.mark_complete_blocks
            allocator.mark_complete_blocks = lambda request_id, ids, count, mark=mark: mark(request_id, salted(request_id, ids), count)

    # ---- on the loop's thread ----

    def _admit(self, state: Any) -> None:
        """Take a request into the queue, unless who asked has left already: its cancellation may have come and gone before it."""
        if state.request_id in self.saying:
            scheduler = self._processor.scheduler
            scheduler.waiting_requests[state.request_id] = state
            scheduler.waiting_requests_order.append(state.request_id)

    def _lay_out(self, requests_in_batch: list[Any], *_: Any, **__: Any) -> None:
        """Make a step's tensors: what transformers' `prepare_batch_tensors` does, without a place in a list for every key."""
        assert self._paged is not None
        io = self._processor.inputs_and_outputs
        tables = [allocator.block_table for allocator in self._processor.cache.cache_allocators.values()]
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        names: list[str] = []
        pieces: list[Piece] = []
        for one in requests_in_batch:
            state, length = one.state, one.query_length
            past, name = state.position_offset, state.request_id
            ids.extend(state.tokens_to_process)
            positions.extend(range(past, past + length))
            names.append(name)
            pieces.append(Piece(past, length, tuple(table[name] for table in tables)))
            state.position_offset += length
            if one.has_new_token:
                # of a prompt the last place alone is read; of an answer every one: what was guessed is looked at token by token
                last.extend(range(len(ids) - length if state.generated_tokens else len(ids) - 1, len(ids)))
                state.tokens_to_process = [TMP_TOKEN_ID]
        io.requests_in_batch, io.num_request_in_batch = requests_in_batch, len(requests_in_batch)
        self._step = {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions]),
            "attention_mask": self._no_mask,  # four dimensions: taken as one that is ready, so that none is made; and not looked at
            "logits_indices": torch.tensor(last, dtype=torch.long),
            "paged_step": self._paged.plan(names, pieces),
            "use_cache": False,
        }

    def _sample(self, batch: list[Any], scores_1NV: Tensor) -> None:
        """Choose a token for each request that reads its last position; of guessed ones those that are what it would have chosen."""
        logits_NV = scores_1NV[0]
        likeliest: list[int] = logits_NV.argmax(-1).tolist()
        self._tokens = []
        at = 0
        for one in batch:
            if not one.has_new_token:
                continue
            saying = self.saying.get(one.state.request_id)
            tokens = [likeliest[at]]
            width = _width(one) if self._paged is not None else 1
            if width > 1 and saying is not None:
                guess = saying.guess
                while len(tokens) < width and guess[len(tokens) - 1] == tokens[-1]:
                    tokens.append(likeliest[at + len(tokens)])
            elif saying is not None and not saying.choosing.plain:
                try:
                    tokens = [saying.choosing.choose(logits_NV[at])]
                except Exception as fault:  # what is wrong with one answer is not the others' business
                    saying.fault = fault
            self._tokens.append(tokens)
            at += width

    def _go_on(self) -> None:
        """Add the step's tokens to their answers, end those that are over, and tell who asked: once per step and event loop."""
        processor = self._processor
        cache, scheduler = processor.cache, processor.scheduler
        told: dict[asyncio.AbstractEventLoop, list[tuple[_Saying, Said | Exception]]] = {}
        few = self._speculating and len(scheduler.active_requests) <= FEW
        step = iter(self._tokens)
        guessing, self._guessing = self._guessing, {}
        for one in processor.inputs_and_outputs.requests_in_batch:
            state = one.state
            guessing.pop(state.request_id, None)
            if not one.has_new_token:  # a prompt that is read in pieces
                cache.mark_complete_blocks(state, one.complete_blocks)
                continue
            tokens = next(step)
            self.decoded_tokens += len(tokens)
            if state.generated_tokens and one.query_length > 1:  # what was guessed wrong is written over by what comes
                state.position_offset -= one.query_length
                one.complete_blocks = cache.count_new_complete_blocks(state, len(tokens))
                state.position_offset += len(tokens)
            state.generated_tokens.extend(tokens)
            state.tokens_to_process = tokens[-1:]
            cache.mark_complete_blocks(state, one.complete_blocks)
            saying = self.saying.get(state.request_id)
            if saying is None:  # who asked has left: cancelled before the next step
                continue
            try:
                goes_on = saying.fault is None and all(map(saying.choosing.take, tokens))
            except Exception as fault:
                saying.fault, goes_on = fault, False
            if not goes_on:
                state.status = RequestStatus.FINISHED
                scheduler.finish_request(state.request_id)
                scheduler.block_new_requests = False
            elif saying.lookup is not None:
                self._guess(state, saying, tokens, few=few)
            if saying.streaming or not goes_on:
                told.setdefault(saying.loop, []).append((saying, saying.news()))
        for name, state in guessing.items():  # there was no room for them: they go on by one token, whoever else comes
            state.tokens_to_process = state.tokens_to_process[:1]
            if name in self.saying:
                self.saying[name].guess = []
        for loop, news in told.items():
            _tell(loop, news)

    def _guess(self, state: Any, saying: _Saying, tokens: list[int], *, few: bool) -> None:
        """Let a request's next step verify what may come after its next token."""
        lookup, choosing = saying.lookup, saying.choosing
        assert lookup is not None
        if saying.guess:
            self.guessed_tokens += len(saying.guess)
            self.right_tokens += len(tokens) - 1
        lookup.extend(tokens, len(saying.guess))
        saying.guess = lookup.guess(choosing.drawing.max_tokens - len(choosing.answer) - 1) if few else []
        if saying.guess:
            state.tokens_to_process = [*tokens[-1:], *saying.guess]
            self._guessing[state.request_id] = state

    def _fail(self, request_id: str, message: str) -> None:
        """Tell who asked that no answer comes; also from `stop`."""
        saying = self.saying.get(request_id)
        if saying is not None:
            _tell(saying.loop, [(saying, _fault(message))])

    # ---- on any thread ----

    async def say(self, prompt: list[int], choosing: Choosing, *, streaming: bool, adapter: int = 0) -> AsyncGenerator[Said, None]:
        """Yield what is new of an answer: whenever there is something where `streaming`, else once. Closing it frees its place within a step.

        Args:
            prompt: token ids, not empty.
            choosing: how tokens are chosen; used up.
            streaming: whether tokens are told as they come.
            adapter: whose answer it is, by its number in `mixing`; 0 is the network as it is.

        Raises:
            DoesNotFit: out of memory.
            RuntimeError: the loop failed, with what it says.
        """
        name = f"{next(self._numbers)}@{adapter}"
        lookup = Lookup(prompt) if self._speculating and choosing.plain else None
        saying = self.saying[name] = _Saying(choosing, streaming, asyncio.get_running_loop(), lookup=lookup)
        done = False
        try:
            status = self._manager.background_thread_status
            if self._manager.add_request(prompt, request_id=name) is None or status.local_status != status.DONT_STOP:
                raise RuntimeError(f"Batching has stopped: {status.fatal_error or 'closed'}")
            while not done:
                news = [await saying.found.get()]
                while not saying.found.empty():  # an asker who was busy is told all of it at once
                    news.append(saying.found.get_nowait())
                for new in news:
                    if isinstance(new, Exception):
                        done = True
                        raise new
                done = news[-1].reason is not None  # type: ignore[union-attr]
                if len(news) > 1:
                    news = [_joined(news)]  # type: ignore[arg-type]
                yield news[0]  # type: ignore[misc]
        finally:
            del self.saying[name]  # before it is cancelled: see `_admit`
            if not done:
                self._manager.cancel_request(name)

    @property
    def num_held(self) -> int:
        """Requests that hold keys and values, or wait to."""
        scheduler = self._processor.scheduler
        return len(scheduler.active_requests) + len(scheduler.waiting_requests)

    @property
    def failed(self) -> bool:
        """Whether the loop has ended by itself: everybody was told, and nobody is answered any more."""
        return not self._manager.is_running()

    def load(self) -> Load:
        """How busy it is, memory left out. Cheap; asked from any thread."""
        cache, scheduler = self._processor.cache, self._processor.scheduler
        pool = cache.pool
        free_bytes = pool.num_free_sectors * cache.bytes_per_sector
        for allocator in cache.cache_allocators.values():  # blocks that are kept because somebody may ask the same again are free too
            free_bytes += (pool.count_free_blocks(allocator.index) + len(allocator.ledger.cached_blocks)) * allocator.bytes_per_block
        return Load(
            active=len(scheduler.active_requests),
            waiting=len(scheduler.waiting_requests) + self._manager.input_queue.qsize(),
            decoded_tokens=self.decoded_tokens,
            free_blocks=free_bytes * cache.num_blocks // (cache.num_sectors * cache.bytes_per_sector),
            total_blocks=cache.num_blocks,
        )

    def stop(self) -> None:
        """End the thread, whatever it does, and give memory back."""
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()
        self._put_back()

    def _put_back(self) -> None:
        if self.mixing is not None:
            self.mixing.end()
        if self._network.config._attn_implementation != self._attention:
            self._network.set_attn_implementation(self._attention)


def _adapter_of(request_id: str) -> int:
    """The adapter of a request, told by its name: that stays when who asked has left."""
    return int(request_id.rpartition("@")[2])


def _width(one: Any) -> int:
    """Places of a request that are read in a step: those of guessed tokens too, of a prompt the last alone."""
    return int(one.query_length) if one.state.generated_tokens else 1


def _tell(loop: asyncio.AbstractEventLoop, news: list[tuple[_Saying, Said | Exception]]) -> None:
    def put() -> None:
        for saying, new in news:
            saying.found.put_nowait(new)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:  # the loop is closed, and who asked is gone with it
        log.debug("An event loop was closed while it was being answered.")


def _joined(news: list[Said]) -> Said:
    return Said([token for new in news for token in new.tokens], [logprob for new in news for logprob in new.logprobs], news[-1].reason)


def _fault(text: str) -> Exception:
    if "memory" in text.lower():
        return DoesNotFit(f"Answering ran out of memory: {text}.", next_step="a smaller engine.batch_size")
    return RuntimeError(f"Continuous batching failed: {text}")
