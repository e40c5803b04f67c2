"""transformers' continuous batching behind three verbs: start, say tokens for a prompt, stop. Requests join and leave the batch at any token.

Knows token ids only, like `decoding.py`. What transformers leaves out is added here: a seed of its own for every request, so that
a draw does not depend on who else is in the batch. The names it hooks into (`model_runner._sample`,
`inputs_and_outputs.requests_in_batch`, `_generation_thread`, `_run_generation_loop`) are of transformers 5.19 and are tested.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from largeforge.engine.decoding import Drawing
from largeforge.errors import DoesNotFit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAGE_TOKENS = 32  # of a block of keys and values: a request holds whole blocks
USUAL_TOKENS = 1024  # room that is made for each request; where all are longer, the last to come are read again later
BATCH_TOKENS = 512  # of one forward pass: long prompts are read in pieces, so that others go on answering


class ContinuousBatching:
    """Says tokens for many prompts at once, on a thread of its own.

    Args:
        network: in eval mode, on its device; without an adapter around it (LoRA inside of its layers is fine).
        in_flight: requests in one batch at most.
        context: tokens that the network reads at most.
        cache_bytes: keys and values at most.
        bytes_per_token: of keys and values.
        ends: tokens that end an answer; they are not part of it.
        computing: a context that every forward pass runs in.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        *,
        in_flight: int,
        context: int | None,
        cache_bytes: int,
        bytes_per_token: int,
        ends: frozenset[int],
        computing: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.ends = ends
        self.computing = computing
        self.drawings: dict[str, tuple[Drawing, torch.Generator | None]] = {}
        self._numbers = itertools.count()
        fitting = cache_bytes // bytes_per_token // PAGE_TOKENS
        wanted = max(in_flight * USUAL_TOKENS, context or 0) // PAGE_TOKENS + in_flight
        self.capacity = min(fitting, wanted) * PAGE_TOKENS
        """Tokens of keys and values that there is room for."""
        self._manager = self._start(network, in_flight)

    def _start(self, network: Any, in_flight: int) -> Any:
        configure: Any = GenerationConfig  # has no types
        generation = configure(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)  # every request says its own
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=self.capacity // PAGE_TOKENS,
            max_batch_tokens=max(BATCH_TOKENS, in_flight),
            max_requests_per_batch=in_flight,
            auto_switch_to_flash=False,  # the attention that the user chose
            use_cuda_graph=False,  # a graph would draw the same numbers again and again
            use_async_batching=False,
        )
        manager = network.init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
        try:
            with torch.random.fork_rng():  # it seeds torch's own generators, which nobody here draws from
                processor = manager._create_batch_processor()
        except MemoryError as fault:
            raise DoesNotFit(f"Keys and values for {self.capacity:,} tokens do not fit: {fault}.", next_step="a smaller engine.batch_size") from fault
        manager.batch_processor = processor  # the loop takes it as it is, hooks included
        step = processor.model_runner._forward_process_and_sample

        def computed(*arguments: Any) -> None:
            with self.computing():
                step(*arguments)

        processor.model_runner._forward_process_and_sample = computed
        processor.model_runner._sample = lambda scores, output_ids: self._sample(processor.inputs_and_outputs.requests_in_batch, scores, output_ids)
        manager.background_thread_status.clear()
        # as manager.start does, but a daemon: an engine that nobody closed must not keep the process from ending
        manager._generation_thread = threading.Thread(target=manager._run_generation_loop, name="largeforge-batching", daemon=True)
        manager._generation_thread.start()
        return manager

    def _sample(self, batch: list[Any], scores_1NV: Tensor, output_ids: Tensor) -> None:
        """Choose a token for each request that reads its last position; on the loop's thread."""
        logits_NV = scores_1NV[0]
        tokens: list[int] = logits_NV.argmax(-1).tolist()
        for place, one in enumerate(one for one in batch if one.has_new_token):
            drawing, generator = self.drawings.get(one.state.request_id, (None, None))
            if drawing is not None and generator is not None:
                tokens[place] = draw_steadily(logits_NV[place], drawing, generator)
        output_ids[0, : len(tokens)].copy_(torch.tensor(tokens, dtype=output_ids.dtype))

    async def say(self, prompt: list[int], drawing: Drawing, *, streaming: bool) -> AsyncGenerator[tuple[list[int], str | None], None]:
        """Yield (all tokens so far, what ended them): after every token where `streaming`, else once. Closing it frees its place.

        Raises:
            DoesNotFit: out of memory.
            RuntimeError: the loop failed, with what it says.
        """
        name = f"request-{next(self._numbers)}"
        generator = torch.Generator(self._manager.model.device).manual_seed(drawing.seed) if drawing.temperature > 0 else None
        found: asyncio.Queue[Any] = asyncio.Queue()
        self.drawings[name] = (drawing, generator)
        self._manager.register_result_handler(name, found.put_nowait)
        done = False
        try:
            ends = sorted(self.ends) or None
            if self._manager.add_request(prompt, request_id=name, max_new_tokens=drawing.max_tokens, streaming=streaming, eos_token_id=ends) is None:
                raise RuntimeError(f"Batching has stopped: {self._manager.background_thread_status.fatal_error or 'closed'}")
            while not done:
                output = await found.get()
                done = output.is_finished() or output.error is not None
                if output.error is not None:
                    raise _fault(output.error)
                tokens: list[int] = output.generated_tokens
                ended = bool(tokens) and tokens[-1] in self.ends
                yield tokens[:-1] if ended else tokens, ("stop" if ended else "length") if done else None
        finally:
            if not done:
                self._manager.cancel_request(name)  # yields no last result: what is kept of it is taken away here
            with self._manager.output_router._lock:
                self._manager.output_router.result_handlers.pop(name, None)
            del self.drawings[name]

    @property
    def num_held(self) -> int:
        """Requests that hold keys and values, or wait to."""
        scheduler = self._manager.batch_processor.scheduler
        return len(scheduler.active_requests) + len(scheduler.waiting_requests)

    def stop(self) -> None:
        """End the thread, whatever it does, and give memory back."""
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()


def draw_steadily(logits_V: Tensor, drawing: Drawing, generator: torch.Generator) -> int:
    """Draw one token: temperature first, then the top_k likeliest, then the nucleus of top_p.

    Chance is dealt to tokens by their number, not by their rank as in `decoding.draw`: who else is in a batch changes logits in
    their last bits, and so the ranks of tokens that are equally likely; here that matters only where two would win at once.
    """
    logits_V = logits_V.float() / drawing.temperature
    if 0 < drawing.top_k < logits_V.numel():
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(drawing.top_k).values[-1], -torch.inf)
    chances_V = logits_V.softmax(-1)
    if drawing.top_p < 1:
        ordered = chances_V.sort(descending=True).values
        before = ordered.cumsum(-1) - ordered  # what the likelier tokens hold together: the first one is always kept
        chances_V = chances_V.masked_fill(chances_V < ordered[before < drawing.top_p][-1], 0)
    waits_V = torch.empty_like(chances_V).exponential_(generator=generator)  # the token whose event comes first, at rates of their chances
    return int((chances_V / waits_V).argmax())


def _fault(text: str) -> Exception:
    if "memory" in text.lower():
        return DoesNotFit(f"Answering ran out of memory: {text}.", next_step="a smaller engine.batch_size")
    return RuntimeError(f"Continuous batching failed: {text}")
