"""hf: transformers in this process: requests that come as they like in continuous batches, lists of them in padded ones.

Answers in the middle of training too, on the network that is being trained. Knows prompts and answers; where the model came
from, and what an answer is for, is other parts' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from largeforge.chat import Answer, ChatRequest, Delta, Usage
from largeforge.engine.answers import ShutOut
from largeforge.engine.config import HFConfig
from largeforge.engine.decoding import Decoding, Drawing
from largeforge.engine.prompt import answer_ends, prompt_ids
from largeforge.errors import EngineError, InputError

if TYPE_CHECKING:
    from largeforge.contract import LoadedModel, Progress
    from largeforge.engine.batching import ContinuousBatching

CACHE_BYTES = 4 * 2**30  # keys and values of one batch at most
WINDOW_BATCHES = 4  # requests are sorted by length within so many batches: answers still come while others are asked


class HF:
    """Answers requests, greedy or sampled.

    `generate` and `answer` are for many askers at once, whoever comes when: transformers' continuous batching. `answers` and
    `stream` are for one asker who has the network for themselves: padded batches that depend on nothing but the requests, so that
    a benchmark finds the same numbers each time; they leave no thread behind and change no mode of a network in training.

    Args:
        config: batch size, and how answers are drawn where nobody says.
        model: the network may be adapted, and in training mode: it is put into eval mode while it answers, and back.
        progress: not used; every engine is given it.
        device: "cpu" or "cuda", where the network is brought before it answers; None is the GPU where there is one.
    """

    needs_model: ClassVar[bool] = True

    def __init__(self, config: HFConfig, *, model: LoadedModel, progress: Progress | None = None, device: str | None = None) -> None:
        if model.tokenizer is None:
            raise InputError("An engine needs a tokenizer, and this model came without one.")
        self.config = config
        revision = model.source.revision or model.source.sha256
        self.name = f"{model.source.name}@{revision[:12]}" if revision else model.source.name
        self.in_flight = config.batch_size
        self.network = model.network
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = model.tokenizer
        self.template = model.template
        self.ends = answer_ends(model)
        self.context = int(getattr(self.network.config, "max_position_embeddings", 0)) or None

        self._batching: ContinuousBatching | None = None
        self._running = ExitStack()

    # ---- many askers: continuous batches ----

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request as it comes, beside all others that are asked; closing it frees its place in the batch.

        Seed, temperature, top_p and top_k are the request's own, whoever else is in the batch. Greedy text is that of `answers`, a
        draw is another one. In bf16 the last bits of logits depend on the batch, and a tie may fall one way or the other.

        Raises:
            EngineError: the prompt is too long, or the template refuses it ("refused").
        """
        prompt, drawing, batching = self._ask(request)
        shown = ""
        async with aclosing(batching.say(prompt, drawing, streaming=True)) as said:
            async for tokens, reason in said:
                text = self._text(tokens)
                if reason is not None or not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
                    piece, shown = text[len(shown) :], text
                    if piece:
                        yield Delta(piece)
                if reason is not None:
                    yield Delta("", finish_reason="length" if reason == "length" else "stop", usage=Usage(len(prompt), len(tokens)))

    async def answer(self, request: ChatRequest) -> Answer:
        """Answer one request whole, beside all others that are asked. Raises what `generate` raises."""
        prompt, drawing, batching = self._ask(request)
        async with aclosing(batching.say(prompt, drawing, streaming=False)) as said:
            tokens, reason = await said.__anext__()
        return Answer(self._text(tokens), "length" if reason == "length" else "stop", Usage(len(prompt), len(tokens)))

    async def close(self) -> None:
        """Stop batching and give its memory back; whoever asks next starts it again."""
        batching, self._batching = self._batching, None
        if batching is not None:
            await asyncio.to_thread(batching.stop)
            self._running.close()

    def _ask(self, request: ChatRequest) -> tuple[list[int], Drawing, ContinuousBatching]:
        try:
            prompt = self._prompt(request)
        except InputError as fault:
            raise EngineError(fault.message, reason="refused", next_step=fault.next_step) from fault
        drawing = self._drawing(request, prompt)
        batching = self._batched()
        if len(prompt) + drawing.max_tokens > batching.capacity:
            raise EngineError(
                f"A prompt of {len(prompt):,} tokens and an answer of {drawing.max_tokens:,} are more than the {batching.capacity:,} there is room for.",
                reason="refused",
                next_step="a smaller engine.max_tokens",
            )
        return prompt, drawing, batching

    def _batched(self) -> ContinuousBatching:
        """The batch that runs, started where none does."""
        if self._batching is None:
            from largeforge.engine.batching import ContinuousBatching  # brings transformers' generation: imported when somebody asks

            self._bring()
            network: Any = self.network
            base = network.get_base_model() if hasattr(network, "peft_config") else network
            half = self._half()
            with ExitStack() as stack:
                stack.enter_context(evaluating(network))
                try:
                    self._batching = ContinuousBatching(
                        base,
                        in_flight=self.in_flight,
                        context=self.context,
                        cache_bytes=CACHE_BYTES,
                        bytes_per_token=self._cache_bytes_per_token(),
                        ends=self.ends,
                        computing=lambda: torch.autocast(network.device.type, dtype=half) if half is not None else nullcontext(),
                    )
                except (ValueError, NotImplementedError, AttributeError) as fault:  # attention of a kind that transformers cannot page
                    raise ShutOut(f"{self.name} cannot answer many requests at once: {fault}", reason="refused", next_step="another model") from fault
                self._running = stack.pop_all()
        return self._batching

    # ---- one asker: padded batches ----

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        """Answer in the order asked. Raises InputError, before any work, for a prompt that is longer than the context."""
        prompts = [self._prompt(request, number) for number, request in enumerate(requests)]
        self._bring()
        size = self._batch_size(prompts, requests)
        for start in range(0, len(requests), size * WINDOW_BATCHES):
            window = sorted(range(start, min(start + size * WINDOW_BATCHES, len(requests))), key=lambda number: len(prompts[number]))
            ready: dict[int, Answer] = {}
            waiting = start
            for first in range(0, len(window), size):
                numbers = window[first : first + size]
                found = self._batch([prompts[number] for number in numbers], [requests[number] for number in numbers])
                ready.update(zip(numbers, found, strict=True))
                while waiting in ready:
                    yield ready.pop(waiting)
                    waiting += 1

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Answer one request as it comes: pieces of text that join to the whole, then one with the reason and the usage."""
        prompt = self._prompt(request, 0)
        self._bring()
        decoding = Decoding(self.network, [prompt], [self._drawing(request, prompt)], self.ends)
        shown = ""
        with evaluating(self.network):
            while not decoding.done:
                with self._computing():
                    decoding.step()
                text = self._text(decoding.answers[0])
                if decoding.done or not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
                    piece, shown = text[len(shown) :], text
                    if piece:
                        yield Delta(piece)
        reason = decoding.ended_by[0]
        yield Delta("", finish_reason="length" if reason == "length" else "stop", usage=Usage(len(prompt), len(decoding.answers[0])))

    def _batch_size(self, prompts: list[list[int]], requests: Sequence[ChatRequest]) -> int:
        """Return how many requests are answered together: as many as asked for, and as their keys and values fit."""
        longest = max((len(prompt) + request.max_tokens for prompt, request in zip(prompts, requests, strict=True)), default=1)
        return max(1, min(self.config.batch_size, CACHE_BYTES // (longest * self._cache_bytes_per_token())))

    def _cache_bytes_per_token(self) -> int:
        config: Any = self.network.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        item = next(self.network.parameters()).element_size()
        return int(2 * config.num_hidden_layers * heads * width * item)

    def _bring(self) -> None:
        if self.network.device.type != self.device:
            network: torch.nn.Module = self.network
            network.to(self.device)

    def _batch(self, prompts: list[list[int]], requests: list[ChatRequest]) -> list[Answer]:
        drawings = [self._drawing(request, prompt) for request, prompt in zip(requests, prompts, strict=True)]
        with evaluating(self.network), self._computing():
            decoding = Decoding(self.network, prompts, drawings, self.ends)
            while not decoding.done:
                decoding.step()
        return [
            Answer(self._text(ids), "length" if reason == "length" else "stop", Usage(len(prompt), len(ids)))
            for prompt, ids, reason in zip(prompts, decoding.answers, decoding.ended_by, strict=True)
        ]

    def _prompt(self, request: ChatRequest, number: int | None = None) -> list[int]:
        ids = prompt_ids(self.tokenizer, self.template, request)
        if self.context is not None and len(ids) >= self.context:
            which = "This prompt" if number is None else f"Prompt {number + 1}"
            raise InputError(
                f"{which} has {len(ids):,} tokens; this model reads {self.context:,}, the answer included.",
                next_step="shorten the prompt or the conversation (/reset in task=chat), or choose a model with a longer context",
            )
        return ids

    def _drawing(self, request: ChatRequest, prompt: list[int]) -> Drawing:
        room = request.max_tokens if self.context is None else min(request.max_tokens, self.context - len(prompt))
        return Drawing(room, request.temperature, request.top_p, request.top_k, request.seed)

    def _text(self, ids: list[int]) -> str:
        text: Any = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _computing(self) -> AbstractContextManager[Any]:
        """No gradients; and where an fp32 adapter stands beside half-precision weights, half-precision arithmetic for both."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        half = self._half()
        if half is not None:
            stack.enter_context(torch.autocast(self.network.device.type, dtype=half))
        if is_untrained(self.network):
            adapted: Any = self.network
            stack.enter_context(adapted.disable_adapter())
        return stack

    def _half(self) -> torch.dtype | None:
        """The half precision to compute in where fp32 parameters stand beside half-precision ones; None where all are of one kind."""
        dtypes = {parameter.dtype for parameter in self.network.parameters() if parameter.is_floating_point()}
        half = dtypes & {torch.bfloat16, torch.float16}
        return half.pop() if half and len(dtypes) > 1 else None


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """Put a network into eval mode while the block runs, and every module back into the mode it was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_untrained(network: torch.nn.Module) -> bool:
    """True for an adapter that adds nothing yet, as before the first step: its B matrices are all zero, and it can be left out."""
    ups = [parameter for name, parameter in network.named_parameters() if "lora_B" in name]
    return bool(ups) and not any(parameter.any() for parameter in ups)
