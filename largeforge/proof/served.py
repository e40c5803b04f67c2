"""Is what is served the model? Pinned prompts, answered greedily by transformers' own `generate`, by the engine in its process, and by the endpoint.

The first two are computed where the weights lie, before anybody is served; the third is asked over HTTP like any request. Token ids of the
prompts are compared as well: a template that differs between training and serving shows there first.
In half precision the last bits of logits depend on how many are answered together, so two tokens that are equally likely may fall either
way: a difference is one only where the model's own logits told the two apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from largeforge.chat import ChatRequest, Message
from largeforge.errors import CheckFailed

if TYPE_CHECKING:
    from largeforge.contract import Engine, LoadedModel

NUM_TOKENS = 16
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea, and say 'naïve café' in it.",
    "Repeat after me: one two three four five six seven eight nine ten eleven twelve.",
)
# Two logits nearer than this are a tie: the spacing of numbers of their size (8 to 16) in each precision, times a few.
TIES = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.03}


@dataclass(frozen=True)
class Pin:
    """One prompt and its answer.

    Args:
        prompt: what the user says.
        ids: of the conversation, as plain transformers makes them from the model's template.
        tokens: what plain `generate` said: ids.
        text: of these; None where only the prompt's ids are known.
        grown: the text after each token, without a character that is not whole yet.
        margins: how much likelier each token was than the next one, in logits.
        engine: what the engine said in its own process; None where it was not asked.
        precision: of the weights: "float32", "bfloat16" or "float16".
    """

    prompt: str
    ids: list[int]
    tokens: list[int]
    text: str | None
    grown: list[str]
    margins: list[float]
    engine: str | None
    precision: str


def pinned(model: LoadedModel) -> list[dict[str, Any]]:
    """Return the pins of a loaded model, as JSON can hold them; prompts that its template refuses are left out.

    Answers go on past their end, so that a model which says little is compared in as many tokens.

    Args:
        model: as it was loaded, before an engine has it.
    """
    return [asdict(pin) for prompt in PROMPTS if (pin := _pin(model, prompt)) is not None]


def in_process(pins: Sequence[dict[str, Any]], engine: Engine) -> list[dict[str, Any]]:
    """Have the engine answer the pinned prompts where it is; return the pins with what it said.

    Raises:
        CheckFailed: it says something else than plain `generate`.
    """
    asked = [Pin(**pin) for pin in pins]
    said = [one.text for one in engine.answers([ChatRequest((Message("user", pin.prompt),), max_tokens=NUM_TOKENS, ignore_end=True) for pin in asked])]
    for pin, text in zip(asked, said, strict=True):
        if whole_letters(text) != whole_letters(pin.text or "") and not _tie(pin, _same_tokens(pin, text)):
            raise CheckFailed(f"The engine answers {pin.prompt!r} with {text!r}; transformers' generate says {pin.text!r}.")
    return [asdict(replace(pin, engine=text)) for pin, text in zip(asked, said, strict=True)]


def pinned_prompts(tokenizer: Any, template: str) -> list[dict[str, Any]]:
    """Return pins of the prompts' token ids alone: of a model whose answers would take too long to compute a second time."""
    found = [(prompt, _ids(tokenizer, template, prompt)) for prompt in PROMPTS]
    return [asdict(Pin(prompt, ids, [], None, [], [], None, "")) for prompt, ids in found if ids is not None]


def _ids(tokenizer: Any, template: str, prompt: str) -> list[int] | None:
    """Token ids of a conversation as plain transformers makes them; None where the template refuses it."""
    from jinja2 import TemplateError

    try:
        found = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except TemplateError:
        return None
    ids: list[int] = found["input_ids"]
    return ids


def _pin(model: LoadedModel, prompt: str) -> Pin | None:
    import torch
    from transformers import GenerationConfig

    tokenizer: Any = model.tokenizer
    network: Any = model.network
    ids = _ids(tokenizer, model.template, prompt)
    if ids is None:
        return None
    network.eval()
    configure: Any = GenerationConfig  # has no types
    plain = configure(max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0, return_dict_in_generate=True, output_logits=True)
    with torch.inference_mode():
        input_ids = torch.tensor([ids], device=network.device)
        own, network.generation_config = network.generation_config, plain  # else its EOS would fill the place of None
        try:
            out = network.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=plain)
        finally:
            network.generation_config = own
    tokens = out.sequences[0, len(ids) :].tolist()
    margins = [float(best[0] - best[1]) for best in (logits[0].float().topk(2).values for logits in out.logits)]
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    grown = [
        tokenizer.decode(tokens[: count + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False).rstrip("\ufffd") for count in range(len(tokens))
    ]
    precision = str(next(network.parameters()).dtype).removeprefix("torch.")
    return Pin(prompt, ids, tokens, text, grown, margins, None, precision)


class Endpoint(Protocol):
    """Who is asked: a door's way to its engine server."""

    async def get(self, path: str) -> Any:
        """The JSON of a GET."""

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON of a POST."""


async def prove(endpoint: Endpoint, model: str, pins: Sequence[dict[str, Any]] | None = None) -> str:
    """Compare an endpoint with the pins; return a line for the user.

    Args:
        endpoint: what is served.
        model: what it is called there.
        pins: None asks the endpoint for those that its process computed.

    Raises:
        CheckFailed: prompts become other token ids there, or answers differ.
    """
    found = [Pin(**pin) for pin in (pins if pins is not None else await endpoint.get("/pinned"))]
    ties = 0
    differences: list[str] = []
    for pin, asked in zip(found, await asyncio.gather(*(_asked(endpoint, model, pin) for pin in found)), strict=True):
        ids, text, count = asked
        if ids != pin.ids or count != len(pin.ids):
            theirs = f"{len(ids)} tokens there ({ids[:8]} ...), {count} in its answer's usage"
            differences.append(f"{pin.prompt!r} becomes {theirs}, not {len(pin.ids)} ({pin.ids[:8]} ...)")
        elif pin.text is not None and whole_letters(text) != whole_letters(pin.text):
            place = _same_tokens(pin, text)
            if _tie(pin, place):
                ties += 1
            else:
                differences.append(f"{pin.prompt!r} is answered with {text!r}; the model says {pin.text!r}")
    if differences:
        raise CheckFailed(
            "What is served is not the model: " + "; ".join(differences) + ".",
            next_step="serve.prove=false serves it all the same; please report it, or look whether chat template and weights belong together",
        )
    if not found:
        return "  proof    the model's chat template takes none of the pinned prompts: nothing was compared"
    if found[0].text is None:
        return f"  proof    {len(found)} pinned prompts: the same token ids as plain transformers makes; a model of this size is not answered twice"
    tokens = sum(len(pin.tokens) for pin in found)
    told = f", {ties} of them up to a tie of two tokens in {found[0].precision}" if ties else ""
    ways = "in-process and by transformers' generate" if found[0].engine is not None else "by transformers' generate"
    return f"  proof    {len(found)} of {len(found)} pinned prompts: the same token ids, and the same {tokens} greedy tokens as {ways}{told}"


async def _asked(endpoint: Endpoint, model: str, pin: Pin) -> tuple[list[int], str, int]:
    messages = [{"role": "user", "content": pin.prompt}]
    tokenized = await endpoint.ask("/tokenize", {"model": model, "messages": messages, "add_generation_prompt": True})
    body = {"model": model, "messages": messages, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    answer = await endpoint.ask("/v1/chat/completions", body)
    return tokenized["tokens"], answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]


def whole_letters(text: str) -> str:
    """A text without a letter at its end that was cut off: some servers keep it back (vLLM), transformers shows U+FFFD."""
    return text.rstrip("\ufffd")


def _same_tokens(pin: Pin, text: str) -> int:
    """How many tokens of a pinned answer another text begins with."""
    return next((count for count, grown in enumerate(pin.grown) if not text.startswith(grown)), len(pin.grown))


def _tie(pin: Pin, place: int) -> bool:
    """Whether the model itself hardly told two tokens apart where an answer first differs."""
    return place < len(pin.margins) and pin.margins[place] <= TIES.get(pin.precision, 1e-3)
