"""From a request of OpenAI's API to what an engine of this house is asked; what such an engine cannot do is refused by name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from largeforge.chat import ChatRequest, Message, Role
from largeforge.serve.wire import BadRequest, ChatCompletionRequest, ChatMessage, CompletionRequest, Request, prompts_of, stops_of

# Fields that an engine of this house does not have; each is refused where it asks for something, and the value that asks for nothing is accepted.
REFUSED: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "repetition_penalty": (1, 1.0),
    "skip_special_tokens": (True,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "chat_template_kwargs": ({},),
    "modalities": (["text"],),
    "reasoning_effort": (),
    "verbosity": (),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "store": (False,),
    "echo": (False,),
    "suffix": ("",),
}


COLDEST = 1e-3


@dataclass(frozen=True)
class Defaults:
    """What holds where a request does not say: the engine's config (section 6.1.1: 256, 0.7, 0.9, 50)."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int


def asked_of(request: Request, *, defaults: Defaults, adapters: Sequence[str]) -> list[ChatRequest]:
    """Return one request of an engine for each choice of the answer, in the order of their indices.

    A request without a seed draws one; choice i of a prompt has seed + i.

    Args:
        request: checked.
        defaults: what holds where it does not say.
        adapters: names of the engine's adapters; any other `model` is the model itself.

    Raises:
        BadRequest: it asks for something that no engine of this house does.
    """
    for name, harmless in REFUSED.items():
        value = getattr(request, name, None)
        if value is not None and value not in harmless:
            raise BadRequest(f"'{name}' is not supported by this engine.", param=name, code="unsupported_parameter")
    chat = isinstance(request, ChatCompletionRequest)
    most = request.max_tokens
    if isinstance(request, ChatCompletionRequest):
        most = most if most is not None else request.max_completion_tokens
    one = ChatRequest(
        messages=tuple(_message(number, said) for number, said in enumerate(request.messages)) if isinstance(request, ChatCompletionRequest) else (),
        max_tokens=most if most is not None else defaults.max_tokens,
        temperature=_temperature(request.temperature if request.temperature is not None else defaults.temperature),
        top_p=float(request.top_p if request.top_p is not None else defaults.top_p),
        top_k=max(0, request.top_k if request.top_k is not None else defaults.top_k),
        seed=(request.seed if request.seed is not None else secrets.randbits(62)) % 2**63,
        stop=stops_of(request),
        frequency_penalty=float(request.frequency_penalty or 0.0),
        presence_penalty=float(request.presence_penalty or 0.0),
        logprobs=_logprobs(request),
        adapter=request.model if request.model in adapters else "",
        schema=_schema(request),
        ignore_end=bool(request.ignore_eos),
    )
    prompts: Sequence[str | tuple[int, ...] | None] = [None] if chat else prompts_of(cast(CompletionRequest, request))
    count = request.n or 1
    return [replace(one, prompt=prompt, seed=(one.seed + number) % 2**63) for prompt in prompts for number in range(count)]


def _message(number: int, said: ChatMessage) -> Message:
    """One turn; parts of text are joined, as the API has it."""
    param = f"messages.{number}"
    if said.tool_calls or said.tool_call_id or said.role in ("tool", "function"):
        raise BadRequest("Tool calls are not supported by this engine.", param=param, code="unsupported_parameter")
    content = said.content
    if isinstance(content, list):
        texts = []
        for part in content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRequest(f"{param}.content: only parts of type text are supported by this engine.", param=param, code="unsupported_parameter")
            texts.append(part["text"])
        content = "".join(texts)
    if content is None:
        raise BadRequest(f"{param}.content is missing.", param=param, code="invalid_value")
    try:
        content.encode()
    except UnicodeEncodeError as fault:
        raise BadRequest(f"{param}.content has half a character (a lone surrogate).", param=param, code="invalid_value") from fault
    return Message(cast(Role, "system" if said.role == "developer" else said.role), content)


def _temperature(value: float) -> float:
    """A temperature that logits can be divided by; below that only the likeliest token has a chance."""
    return float(value) if value >= COLDEST else 0.0


def _logprobs(request: Request) -> int | None:
    if isinstance(request, ChatCompletionRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs


def _schema(request: Request) -> str:
    """The JSON Schema of response_format, as JSON text; "" where none is asked for."""
    wanted = getattr(request, "response_format", None)
    if wanted is None or wanted.get("type") == "text":
        return ""
    if wanted.get("type") == "json_object":
        return '{"type":"object"}'
    inner = wanted.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if wanted.get("type") != "json_schema" or not isinstance(schema, dict):
        raise BadRequest(
            '\'response_format\' is {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {...}}}.',
            param="response_format",
            code="invalid_value",
        )
    return json.dumps(schema)
