"""Between protobuf messages and OpenAI's JSON, one way for requests and the other for answers. Sends nothing, asks nobody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from largeforge.serve.proto import inference_pb2 as pb

OURS = frozenset({"stream", "stream_options"})  # of the body, said by which method is called


class Unusable(Exception):
    """A message that cannot be said in JSON.

    Args:
        message: what is wrong, for a person.
        param: the field.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param


# ---- requests ----


def body_of(request: pb.GenerateRequest | pb.ChatRequest, *, stream: bool) -> bytes:
    """Return the body of the HTTP route; only fields that are set are in it. Raises Unusable."""
    body: dict[str, Any] = {}
    for field, value in request.ListFields():
        if field.name in _SAID:
            name, say = _SAID[field.name]
            body[name] = say(value)
        elif field.name == "stop":
            body["stop"] = list(value)
        elif field.name != "extra":
            body[field.name] = _number(value, field.name) if isinstance(value, float) else value
    typed = {field.name for field in request.DESCRIPTOR.fields} - {"prompt_token_ids", "response_schema"}
    for name, value in request.extra.fields.items():
        if name in typed | OURS or name in body:
            raise Unusable(f"'{name[:200]}' is said by a field or a method of its own, not in 'extra'.", param=name[:200])
        body[name] = _plain(value, name)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as fault:
        raise Unusable(f"The request cannot be said in JSON: {fault}") from fault


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError as fault:
        raise Unusable(f"'response_schema' is no valid JSON: {str(fault)[:200]}", param="response_schema") from fault
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _turn(message: pb.Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role}
    for name in ("content", "name", "tool_call_id"):
        if message.HasField(name):
            told[name] = getattr(message, name)
    if message.tool_calls:
        told["tool_calls"] = [{"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}} for one in message.tool_calls]
        told.setdefault("content", None)
    return told


_SAID: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "prompt_token_ids": ("prompt", lambda value: list(value.ids)),
    "messages": ("messages", lambda value: [_turn(one) for one in value]),
    "response_schema": ("response_format", _schema),
}


def _number(value: float, name: str) -> float:
    if not math.isfinite(value):  # JSON has no word for it, and null would mean the default
        raise Unusable(f"'{name[:200]}' must be a finite number.", param=name[:200])
    return value


def _plain(value: Any, name: str) -> Any:
    """A google.protobuf.Value as plain data; it knows doubles only, so whole numbers become integers again."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: _plain(one, name) for key, one in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_plain(one, name) for one in value.list_value.values]
    if kind == "number_value":
        number = _number(value.number_value, name)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return getattr(value, kind) if kind in ("string_value", "bool_value") else None


# ---- answers ----


def generated(data: Mapping[str, Any]) -> pb.GenerateResponse:
    """A completion, or a piece of one."""
    choices = [pb.GenerateChoice(text=one.get("text") or "", **_choice(one)) for one in data.get("choices") or []]
    return pb.GenerateResponse(choices=choices, **_head(data))


def chatted(data: Mapping[str, Any]) -> pb.ChatResponse:
    """A whole answer of a conversation."""
    choices = [pb.ChatChoice(message=_message(one.get("message") or {}), **_choice(one)) for one in data.get("choices") or []]
    return pb.ChatResponse(choices=choices, **_head(data))


def chat_piece(data: Mapping[str, Any]) -> pb.ChatChunk:
    """A piece of an answer of a conversation."""
    choices = [pb.ChatDelta(delta=_message(one.get("delta") or {}), **_choice(one)) for one in data.get("choices") or []]
    return pb.ChatChunk(choices=choices, **_head(data))


def _head(data: Mapping[str, Any]) -> dict[str, Any]:
    usage = data.get("usage")
    told = pb.Usage(**{name: usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens", "total_tokens")}) if usage else None
    return {"id": data.get("id") or "", "created": data.get("created") or 0, "model": data.get("model") or "", "usage": told}


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": choice.get("index") or 0, "finish_reason": choice.get("finish_reason"), "logprobs": _logprobs(choice.get("logprobs"))}


def _message(said: Mapping[str, Any]) -> pb.Message:
    calls = [
        pb.ToolCall(
            index=one.get("index"), id=one.get("id"), name=(one.get("function") or {}).get("name"), arguments=(one.get("function") or {}).get("arguments")
        )
        for one in said.get("tool_calls") or []
    ]
    return pb.Message(role=said.get("role") or "", content=said.get("content"), tool_calls=calls)


def _logprobs(told: Mapping[str, Any] | None) -> list[pb.TokenLogprob]:
    """Log-probabilities in the form of chat, or in the older one of completions."""
    if not told:
        return []
    if "content" in told:
        return [
            pb.TokenLogprob(
                token=one["token"],
                logprob=one["logprob"],
                top=[pb.TopLogprob(token=other["token"], logprob=other["logprob"]) for other in one.get("top_logprobs") or []],
            )
            for one in told["content"] or []
        ]
    tokens = told.get("tokens") or []
    others = told.get("top_logprobs") or [None] * len(tokens)
    return [
        pb.TokenLogprob(token=token, logprob=logprob, top=[pb.TopLogprob(token=name, logprob=value) for name, value in (top or {}).items()])
        for token, logprob, top in zip(tokens, told.get("token_logprobs") or [], others, strict=False)
    ]
