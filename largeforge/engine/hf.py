"""hf: transformers in this process: requests that come as they like in continuous batches, lists of them in padded ones.

Answers in the middle of training too, on the network that is being trained. Knows prompts and answers; where the model came
from, and what an answer is for, is other parts' business.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import torch

from largeforge.chat import Answer, ChatRequest, Delta, FinishReason, Load, TokenLogprob, Usage
from largeforge.engine.adapters import Mixing, active_adapter, load_adapters
from largeforge.engine.answers import ShutOut, every_answer
from largeforge.engine.answers import stream as streamed
from largeforge.engine.choosing import Choosing, Draw, Drawing, Grammar, Logprob, draw, draw_steadily
from largeforge.engine.config import HFConfig
from largeforge.engine.decoding import Decoding
from largeforge.engine.grammar import Grammars
from largeforge.engine.prompt import answer_ends, prompt_ids
from largeforge.engine.text import Text, decoded, token_text
from largeforge.errors import EngineError, InputError, PromptTooLong

if TYPE_CHECKING:
    from largeforge.contract import LoadedModel, Progress
    from largeforge.engine.batching import ContinuousBatching, Said

CACHE_BYTES = 4 * 2**30  # keys and values of one batch at most, on a CPU and of a list
CPU_SHARE, GPU_SHARE = 0.25, 0.85  # of free memory, for keys and values
WINDOW_BATCHES = 4  # requests are sorted by length within so many batches: answers still come while others are asked
LONG_PROMPT = 20_000  # characters: a few milliseconds of a tokenizer's work


class HF:
    """Answers requests, greedy or sampled.

    `generate` and `answer` are for many askers at once, whoever comes when: transformers' continuous batching. `answers` and
    `stream` are for one asker who has the network for themselves: padded batches that depend on nothing but the requests, so that
    a benchmark finds the same numbers each time; they leave no thread behind and change no mode of a network in training.
    Requests for an adapter are always answered in continuous batches.

    Args:
        config: batch size, and how answers are drawn where nobody says.
        model: the network may be adapted, and in training mode: it is put into eval mode while it answers, and back.
        progress: not used; every engine is given it.
        device: "cpu" or "cuda", where the network is brought before it answers; None is the GPU where there is one.
        serving: the process is the engine's own: `config.threads` is set for all of it.

    Raises:
        InputError: no tokenizer; an adapter that is not there or does not fit.
    """

    needs_model: ClassVar[bool] = True

    def __init__(self, config: HFConfig, *, model: LoadedModel, progress: Progress | None = None, device: str | None = None, serving: bool = False) -> None:
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
        self.own = active_adapter(model.network)
        """The adapter that the model came with."""
        self.adapters = tuple(config.adapters)
        if config.adapters:
            self.network = load_adapters(self.network, config.adapters, base=model.source)
        if serving:
            torch.set_num_threads(config.threads if config.threads != "auto" else max(1, len(os.sched_getaffinity(0)) - 1))

        self._grammars: Grammars | None = None
        self._batching: ContinuousBatching | None = None
        self._running = ExitStack()
        self._decoded_tokens = 0  # of batches that were closed

    # ---- many askers: continuous batches ----

    async def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request as it comes, beside all others that are asked; closing it frees its place in the batch within a step.

        Seed, temperature, top_p and top_k are the request's own, whoever else is in the batch. Greedy text is that of `answers`, a
        draw is another one. In bf16 the last bits of logits depend on the batch, and a tie may fall one way or the other.

        Raises:
            EngineError: the prompt is too long, the template refuses it, no such adapter, or a schema that cannot be held to ("refused").
        """
        prompt, saying = await self._ask(request, streaming=True)
        text = Text(self.tokenizer, request.stop)
        logprobs: list[TokenLogprob] = []
        count = 0
        async with aclosing(saying):
            async for said in saying:
                count += len(said.tokens)
                logprobs.extend(self._logprobs(said.logprobs))
                piece = "".join(map(text.add, said.tokens)) + (text.end() if said.reason is not None else "")
                if piece:
                    yield Delta(piece, logprobs=tuple(logprobs))
                    logprobs.clear()
                if said.reason is not None:
                    yield Delta("", finish_reason=_reason(said.reason), usage=Usage(len(prompt), count), logprobs=tuple(logprobs))

    async def answer(self, request: ChatRequest) -> Answer:
        """Answer one request whole, beside all others that are asked. Raises what `generate` raises."""
        prompt, saying = await self._ask(request, streaming=False)
        async with aclosing(saying):
            said = await anext(saying)
        return self._answer(request, prompt, said.tokens, said.logprobs, said.reason)

    def load(self) -> Load:
        """How busy continuous batches are; no blocks while none run. Cheap; may be asked from any thread."""
        batching = self._batching
        if batching is None:
            return Load(decoded_tokens=self._decoded_tokens, memory_bytes=memory_bytes(self.network.device))
        found = batching.load()
        return dataclasses.replace(found, decoded_tokens=self._decoded_tokens + found.decoded_tokens, memory_bytes=memory_bytes(self.network.device))

    def start(self) -> None:
        """Bring the network to its device and have continuous batches run, so that the first who asks need not wait for it.

        Raises:
            DoesNotFit: no room for keys and values.
            EngineError: a network that cannot answer many at once.
        """
        self._batched()

    async def close(self) -> None:
        """Stop batching and give its memory back; whoever asks next starts it again."""
        batching, self._batching = self._batching, None
        if batching is not None:
            await asyncio.to_thread(batching.stop)
            self._decoded_tokens += batching.decoded_tokens
            self._running.close()

    async def _ask(self, request: ChatRequest, *, streaming: bool) -> tuple[list[int], AsyncGenerator[Said, None]]:
        """Check a request and put it to the batch, which takes it in at its next step."""
        try:
            # a long one takes a while, in which the others' tokens would wait; tokenizers let go of the interpreter's lock
            prompt = await asyncio.to_thread(self._prompt, request) if _letters(request) > LONG_PROMPT else self._prompt(request)
        except InputError as fault:
            raise EngineError(fault.message, reason="refused", next_step=fault.next_step, code=getattr(fault, "code", "")) from fault
        adapter = self._adapter(request)
        grammar = await asyncio.to_thread(self._grammar, request) if request.schema else None
        batching = self._batched()
        choosing = self._choosing(request, prompt, draw_steadily, grammar)
        if len(prompt) + choosing.drawing.max_tokens > batching.capacity:
            raise EngineError(
                f"A prompt of {len(prompt):,} tokens and an answer of {choosing.drawing.max_tokens:,} are more than the "
                f"{batching.capacity:,} there is room for.",
                reason="refused",
                next_step="a smaller engine.max_tokens",
            )
        return prompt, batching.say(prompt, choosing, streaming=streaming, adapter=adapter)

    def _adapter(self, request: ChatRequest) -> int:
        """The number of the adapter that answers; 0 is the model as it was loaded."""
        if not request.adapter:
            return 0
        if request.adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise EngineError(
                f"There is no adapter {request.adapter!r} here (there are: {known}).", reason="refused", next_step="engine.adapters={name: folder}"
            )
        return 1 + self.adapters.index(request.adapter)

    def _grammar(self, request: ChatRequest) -> Grammar | None:
        if not request.schema:
            return None
        if self._grammars is None:
            vocabulary = int(self.network.config.get_text_config().vocab_size)
            self._grammars = Grammars(self.tokenizer, vocabulary=vocabulary, ends=self.ends)
        return self._grammars.matching(request.schema)

    def _batched(self) -> ContinuousBatching:
        """The batch that runs, started where none does, or where the last one failed."""
        if self._batching is not None and self._batching.failed:
            self._batching.stop()
            self._decoded_tokens += self._batching.decoded_tokens
            self._batching = None
            self._running.close()
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
                        cache_bytes=self._cache_bytes(),
                        bytes_per_token=self._cache_bytes_per_token(),
                        batch_tokens=self.config.max_batch_tokens,
                        computing=lambda: torch.autocast(network.device.type, dtype=half) if half is not None else nullcontext(),
                        mixing=Mixing(network, [self.own, *self.adapters]) if self.adapters else None,
                        speculating=self.config.speculation == "prompt_lookup",
                    )
                except (ValueError, NotImplementedError, AttributeError) as fault:  # attention of a kind that transformers cannot page
                    raise ShutOut(f"{self.name} cannot answer many requests at once: {fault}", reason="refused", next_step="another model") from fault
                self._running = stack.pop_all()
        return self._batching

    def _cache_bytes(self) -> int:
        """Keys and values of continuous batches at most."""
        if self.config.kv_cache_bytes != "auto":
            return self.config.kv_cache_bytes
        if self.network.device.type == "cuda":
            return int(GPU_SHARE * torch.cuda.mem_get_info(self.network.device)[0])
        return min(CACHE_BYTES, int(CPU_SHARE * psutil.virtual_memory().available))

    # ---- one asker: padded batches ----

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        """Answer in the order asked. Raises InputError, before any work, for a prompt that is longer than the context.

        Raises:
            EngineError: no such adapter, or a schema that cannot be held to.
        """
        prompts = [self._prompt(request, number) for number, request in enumerate(requests)]
        if any(self._adapter(request) for request in requests):  # padded batches know one network only
            yield from every_answer(self, requests, in_flight=self.in_flight)
            return
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
        if self._adapter(request):
            yield from streamed(self, request)
            return
        self._bring()
        decoding = Decoding(self.network, [prompt], [self._choosing(request, prompt, draw, self._grammar(request))])
        text = Text(self.tokenizer, request.stop)
        count = told = 0
        with evaluating(self.network):
            while not decoding.done:
                with self._computing():
                    decoding.step()
                answer = decoding.answers[0]
                piece = "".join(map(text.add, answer[count:])) + (text.end() if decoding.done else "")
                count = len(answer)
                if piece:
                    found = [] if request.logprobs is None else decoding.choosing[0].logprobs
                    yield Delta(piece, logprobs=tuple(self._logprobs(found[told:])))
                    told = len(found)
        rest = () if request.logprobs is None else tuple(self._logprobs(decoding.choosing[0].logprobs[told:]))
        yield Delta("", finish_reason=_reason(decoding.ended_by[0]), usage=Usage(len(prompt), count), logprobs=rest)

    def _batch_size(self, prompts: list[list[int]], requests: Sequence[ChatRequest]) -> int:
        """Return how many requests are answered together: as many as asked for, and as their keys and values fit."""
        room = CACHE_BYTES if self.config.kv_cache_bytes == "auto" else self.config.kv_cache_bytes
        longest = max((len(prompt) + request.max_tokens for prompt, request in zip(prompts, requests, strict=True)), default=1)
        return max(1, min(self.config.batch_size, room // (longest * self._cache_bytes_per_token())))

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
        choosing = [self._choosing(request, prompt, draw, self._grammar(request)) for request, prompt in zip(requests, prompts, strict=True)]
        with evaluating(self.network), self._computing():
            decoding = Decoding(self.network, prompts, choosing)
            while not decoding.done:
                decoding.step()
        return [self._answer(request, prompt, row.answer, row.logprobs, row.ended_by) for request, prompt, row in zip(requests, prompts, choosing, strict=True)]

    def _prompt(self, request: ChatRequest, number: int | None = None) -> list[int]:
        ids = prompt_ids(self.tokenizer, self.template, request)
        self._check(request, ids)
        if self.context is not None and len(ids) >= self.context:
            which = "This prompt" if number is None else f"Prompt {number + 1}"
            raise PromptTooLong(
                f"{which} has {len(ids):,} tokens; this model reads {self.context:,}, the answer included.",
                next_step="shorten the prompt or the conversation (/reset in task=chat), or choose a model with a longer context",
            )
        return ids

    def _check(self, request: ChatRequest, ids: list[int]) -> None:
        """Refuse what could not be meant. Raises InputError."""
        vocabulary = int(self.network.config.get_text_config().vocab_size)
        if request.prompt is not None and not isinstance(request.prompt, str) and not all(0 <= token < vocabulary for token in ids):
            raise InputError(f"This prompt has token ids that the model does not know: it has 0 to {vocabulary - 1:,}.")
        if request.ignore_end and request.schema:
            raise InputError("An answer that is held to a schema ends where the schema says; ignore_end says otherwise.", next_step="one of the two")
        if "" in request.stop:
            raise InputError("A stop string is empty: it would end every answer before it begins.", next_step="leave it out")

    def _choosing(self, request: ChatRequest, prompt: list[int], draw: Draw, grammar: Grammar | None) -> Choosing:
        room = request.max_tokens if self.context is None else min(request.max_tokens, self.context - len(prompt))
        drawing = Drawing(
            room,
            request.temperature,
            request.top_p,
            request.top_k,
            request.seed,
            request.frequency_penalty,
            request.presence_penalty,
            request.logprobs,
        )
        return Choosing(
            drawing,
            frozenset() if request.ignore_end else self.ends,
            device=self.network.device,
            draw=draw,
            watch=Text(self.tokenizer, request.stop) if request.stop else None,
            grammar=grammar,
        )

    def _answer(self, request: ChatRequest, prompt: list[int], tokens: list[int], logprobs: list[Logprob], reason: str | None) -> Answer:
        if request.stop:
            text = Text(self.tokenizer, request.stop)
            for token in tokens:
                text.add(token)
            text.end()
            whole = text.text
        else:
            whole = decoded(self.tokenizer, tokens)
        return Answer(whole, _reason(reason), Usage(len(prompt), len(tokens)), tuple(self._logprobs(logprobs)))

    def _logprobs(self, found: Sequence[Logprob]) -> list[TokenLogprob]:
        text = partial(token_text, self.tokenizer)
        return [TokenLogprob(text(one.token), one.logprob, tuple((text(token), logprob) for token, logprob in one.top)) for one in found]

    def _computing(self) -> AbstractContextManager[Any]:
        """No gradients; and where an fp32 adapter stands beside half-precision weights, half-precision arithmetic for both."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        half = self._half()
        if half is not None:
            stack.enter_context(torch.autocast(self.network.device.type, dtype=half))
        if (self.own is None and self.adapters) or is_untrained(self.network, self.own):
            adapted: Any = self.network
            stack.enter_context(adapted.disable_adapter())
        return stack

    def _half(self) -> torch.dtype | None:
        """The half precision to compute in where fp32 parameters stand beside half-precision ones; None where all are of one kind."""
        dtypes = {parameter.dtype for parameter in self.network.parameters() if parameter.is_floating_point()}
        half = dtypes & {torch.bfloat16, torch.float16}
        return half.pop() if half and len(dtypes) > 1 else None


def _letters(request: ChatRequest) -> int:
    """How long what is asked is, in characters."""
    prompt = request.prompt
    return sum(len(message.content) for message in request.messages) + (len(prompt) if prompt is not None else 0)


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


def is_untrained(network: torch.nn.Module, adapter: str | None) -> bool:
    """True for an adapter that adds nothing yet, as before the first step: its B matrices are all zero, and it can be left out."""
    ups = [parameter for name, parameter in network.named_parameters() if "lora_B" in name and f".{adapter}." in name]
    return bool(ups) and not any(parameter.any() for parameter in ups)


def memory_bytes(device: torch.device) -> int:
    """Memory that this process holds of a device."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _reason(reason: str | None) -> FinishReason:
    return "length" if reason == "length" else "stop"
