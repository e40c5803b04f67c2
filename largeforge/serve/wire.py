"""OpenAI's completions API as data: what a request may say, what an answer looks like, whole and as server-sent events.

https://platform.openai.com/docs/api-reference (chat, completions), and section 6.1.1 of the system requirements. Sends nothing, asks nobody.
"""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from largeforge.call import error_body
from largeforge.chat import TokenLogprob, Usage

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOST_CHOICES = 16  # n, and prompts of one completion: each takes a place in the batch
MOST_STOPS = 4  # as OpenAI has it
LONGEST_STOP = 1000
MOST_TURNS = 20_000  # of a conversation: to read 200,000 takes a second, in which nobody else is answered
DEEPEST = 250  # levels of objects and lists in a body; orjson reads 1,024 and writes 254
UTF8 = codecs.getincrementaldecoder("utf-8")
DONE = b"data: [DONE]\n\n"


class BadRequest(Exception):
    """A request that cannot be answered as it stands.

    Args:
        message: what is wrong, for a person.
        param: the field.
        status: of HTTP.
        code: for a program.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> bytes:
        """The error as OpenAI tells it."""
        return orjson.dumps(error_body(self.message, kind="invalid_request_error", code=self.code, param=self.param))


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Wire):
    """What a stream tells beside the answer."""

    include_usage: bool = Field(default=False, description="Send one more chunk before [DONE], with the usage of the whole answer.")
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is padded here.")
    continuous_usage_stats: bool | None = Field(
        default=None, description="vLLM's: the usage so far in every chunk. Accepted by all (guidellm asks for it); engine=hf says the usage once, at the end."
    )


class Sampling(_Wire):
    """What completions and chat completions have in common."""

    model: str = Field(min_length=1, max_length=512, description="A name that GET /v1/models lists: the model, or one of its adapters.")
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(default=None, description="Tokens of the answer at most.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="Nucleus that tokens are drawn from.")
    top_k: Annotated[int, Field(ge=-1, le=10_000_000)] | None = Field(default=None, description="Likeliest tokens that are drawn from; 0 and -1 are all.")
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(default=None, description="Answers to each prompt.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(default=None, description="The same seed and request give the same answer.")
    stop: str | list[str] | None = Field(default=None, description=f"Up to {MOST_STOPS} strings that end the answer; none is part of it.")
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(default=None, description="Against tokens, by how often they were said.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(default=None, description="Against tokens that were said.")
    stream: bool | None = Field(default=None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    logit_bias: dict[str, float] | None = Field(default=None, description="engine=vllm and remote only.")
    user: str | None = Field(default=None, description="Accepted; not used.")
    # beyond OpenAI, as vLLM has them
    ignore_eos: bool | None = Field(default=None, description="Go on to max_tokens whatever the model says: for benches.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, description="engine=vllm and remote only.")
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(default=None, description="engine=vllm and remote only.")
    repetition_penalty: Annotated[float, Field(gt=0)] | None = Field(default=None, description="engine=vllm and remote only.")
    skip_special_tokens: bool | None = Field(default=None, description="engine=vllm and remote only.")


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(description="Who says it.")
    content: str | list[dict[str, Any]] | None = Field(default=None, description="A text, or parts of type text.")
    name: str | None = Field(default=None, description="Accepted; no template here shows it.")
    tool_calls: list[dict[str, Any]] | None = Field(default=None, description="engine=vllm and remote only.")
    tool_call_id: str | None = Field(default=None, description="engine=vllm and remote only.")


class ChatCompletionRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_TURNS, description="The conversation so far.")
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(default=None, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = Field(default=None, description="Tell the log-probability of each token of the answer.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(default=None, description="Likeliest tokens told beside each; only with logprobs.")
    response_format: dict[str, Any] | None = Field(default=None, description='{"type": "text" | "json_object" | "json_schema", ...}.')
    tools: list[dict[str, Any]] | None = Field(default=None, description="engine=vllm and remote only.")
    tool_choice: str | dict[str, Any] | None = Field(default=None, description="engine=vllm and remote only.")
    parallel_tool_calls: bool | None = Field(default=None, description="engine=vllm and remote only.")
    functions: list[dict[str, Any]] | None = Field(default=None, description="engine=remote only: OpenAI's old name of tools.")
    function_call: str | dict[str, Any] | None = Field(default=None, description="engine=remote only.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="engine=vllm only.")
    modalities: list[str] | None = Field(default=None, description='["text"] only.')
    reasoning_effort: str | None = Field(default=None, description="engine=vllm and remote only.")
    verbosity: str | None = Field(default=None, description="engine=remote only.")
    audio: dict[str, Any] | None = Field(default=None, description="engine=remote only.")
    prediction: dict[str, Any] | None = Field(default=None, description="engine=remote only.")
    web_search_options: dict[str, Any] | None = Field(default=None, description="engine=remote only.")
    metadata: dict[str, str] | None = Field(default=None, description="Accepted; not kept.")
    store: bool | None = Field(default=None, description="false only: nothing is kept here.")
    service_tier: str | None = Field(default=None, description="Accepted; not used.")
    safety_identifier: str | None = Field(default=None, description="Accepted; not used.")
    prompt_cache_key: str | None = Field(default=None, description="Accepted; not used.")


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="What is continued: a text or token ids, or a list of them.")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(default=None, description="Likeliest tokens told beside each token of the answer.")
    echo: bool | None = Field(default=None, description="engine=vllm and remote only.")
    suffix: str | None = Field(default=None, description="engine=remote only.")
    best_of: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Only equal to n.")


Request = ChatCompletionRequest | CompletionRequest
Kind = TypeVar("Kind", bound=BaseModel)
KINDS: dict[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {CHAT: ChatCompletionRequest, COMPLETIONS: CompletionRequest}


def parse(path: str, body: bytes) -> tuple[Request, dict[str, Any]]:
    """Return a request, checked, and the fields as they came. Raises BadRequest as OpenAI would: unknown fields are one."""
    found = fields_of(body)
    request = validated(KINDS[path], found)
    _check(request)
    return request, found


def fields_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is. Raises BadRequest."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise BadRequest(f"The body is no valid JSON: {str(fault)[:200]}") from fault
    if not isinstance(found, dict):
        raise BadRequest("The body must be a JSON object.")
    if body.count(b"{") + body.count(b"[") > DEEPEST and _deeper(found, DEEPEST):
        raise BadRequest(f"The body is nested too deeply: {DEEPEST} levels may be.")
    return found


def validated(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """Return the fields as what they have to be. Raises BadRequest."""
    try:
        return kind.model_validate(fields)
    except ValidationError as fault:
        raise _refusal(fault) from fault


def _deeper(found: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other deeper than so many levels."""
    level = [found]
    for _ in range(levels + 1):
        level = [inner for one in level if isinstance(one, (dict, list)) for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True


def _refusal(fault: ValidationError) -> BadRequest:
    """The first thing that is wrong, in OpenAI's words where it has some."""
    errors = fault.errors(include_url=False, include_context=False, include_input=False)
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    error = (unknown or errors)[0]
    place = [str(part) for part in error["loc"]]
    param = place[0] if place else None
    if unknown:
        name = ".".join(place)[:200]
        return BadRequest(f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter")
    if error["type"] == "missing" and len(place) == 1:
        return BadRequest(f"you must provide a {param} parameter", param=param, code="missing_required_parameter")
    shown = ".".join(part for part in place if not part.startswith(("str", "list[", "constrained")))
    return BadRequest(f"Invalid value for '{shown[:200]}': {error['msg']}", param=param, code="invalid_value")


def _check(request: Request) -> None:
    """What holds between fields, whatever the engine. Raises BadRequest."""
    stops = stops_of(request)
    if len(stops) > MOST_STOPS or any(not stop or len(stop) > LONGEST_STOP for stop in stops):
        raise BadRequest(f"'stop' takes up to {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters.", param="stop", code="invalid_value")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options")
    if isinstance(request, ChatCompletionRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise BadRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
        if request.max_tokens is not None and request.max_completion_tokens is not None and request.max_tokens != request.max_completion_tokens:
            raise BadRequest("'max_tokens' and 'max_completion_tokens' are two names of one thing, and differ.", param="max_tokens")
    else:
        if len(prompts_of(request)) * (request.n or 1) > MOST_CHOICES:
            raise BadRequest(f"Prompts times n may be {MOST_CHOICES} at most.", param="prompt", code="invalid_value")
        if any(not prompt for prompt in prompts_of(request)):
            raise BadRequest("'prompt' may not be empty.", param="prompt", code="invalid_value")
        if request.best_of not in (None, request.n or 1):
            raise BadRequest("'best_of' other than n is not supported.", param="best_of", code="unsupported_parameter")


def stops_of(request: Request) -> tuple[str, ...]:
    """Return the strings that end the answer."""
    return () if request.stop is None else (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def prompts_of(request: CompletionRequest) -> list[str | tuple[int, ...]]:
    """Return the prompts of a completion, one or several."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [tuple(prompt)]
    return [one if isinstance(one, str) else tuple(one) for one in prompt]  # type: ignore[arg-type]


# ---- answers ----


class Writer:
    """Writes one answer: the same id, time and model in every piece of it.

    Args:
        chat: whether it answers a conversation or continues a prompt.
        model: as the client named it.
    """

    def __init__(self, *, chat: bool, model: str) -> None:
        self.chat = chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self._kind = ("chat.completion.chunk" if chat else "text_completion").encode()
        head = orjson.dumps({"id": self.id, "object": self._kind.decode(), "created": self.created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['

    def first(self, index: int) -> bytes:
        """The event that says who speaks; completions have none."""
        if not self.chat:
            return b""
        return self._head + b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n' % index

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), offset: int = 0) -> bytes:
        """The event of a piece of text; `offset` is where it begins in the answer, in characters."""
        told = orjson.dumps(self.logprobs(logprobs, offset)) if logprobs else b"null"
        if self.chat:
            return self._head + b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}]}\n\n' % (index, orjson.dumps(text), told)
        return self._head + b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}]}\n\n' % (index, orjson.dumps(text), told)

    def last(self, index: int, reason: str) -> bytes:
        """The event that ends one choice."""
        if self.chat:
            return self._head + b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b}]}\n\n' % (index, orjson.dumps(reason))
        return self._head + b'{"index":%d,"text":"","logprobs":null,"finish_reason":%b}]}\n\n' % (index, orjson.dumps(reason))

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage of all choices together."""
        return self._head + b'],"usage":' + orjson.dumps(usage_of(usage)) + b"}\n\n"

    def whole(self, choices: Sequence[tuple[str, str, Sequence[TokenLogprob]]], usage: Usage) -> bytes:
        """The body of an answer that is no stream: (text, finish_reason, logprobs) of each choice."""
        told: list[dict[str, Any]] = []
        for index, (text, reason, logprobs) in enumerate(choices):
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            told.append({"index": index, **said, "logprobs": self.logprobs(logprobs, 0) if logprobs else None, "finish_reason": reason})
        kind = "chat.completion" if self.chat else "text_completion"
        return orjson.dumps({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": told, "usage": usage_of(usage)})

    def logprobs(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """Log-probabilities in the form of chat, or in the older one of completions."""
        if self.chat:
            return {"content": [{**_token(one.token, one.logprob), "top_logprobs": [_token(*other) for other in one.top]} for one in logprobs], "refusal": None}
        offsets, letters = [], UTF8("replace")  # a letter of several tokens counts where it is whole
        for one in logprobs:
            offsets.append(offset)
            offset += len(letters.decode(_bytes(one.token)))
        return {
            "tokens": [_shown(one.token) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{_shown(token): logprob for token, logprob in (*one.top, (one.token, one.logprob))} if one.top else {} for one in logprobs],
            "text_offset": offsets,
        }


def _token(token: str, logprob: float) -> dict[str, Any]:
    told = _bytes(token)
    return {"token": told.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(told)}


def _shown(token: str) -> str:
    """A token by its text, or by its bytes where it is no text alone: as OpenAI's older form tells them apart."""
    try:
        token.encode()
    except UnicodeEncodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in _bytes(token))
    return token


def _bytes(token: str) -> bytes:
    return token.encode("utf-8", "surrogateescape")


def usage_of(usage: Usage) -> dict[str, int]:
    """Usage as OpenAI tells it."""
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "total_tokens": usage.total_tokens}


def error_event(message: str, *, kind: str = "server_error", code: str | None = None) -> bytes:
    """The event that ends a stream which cannot go on."""
    return b"data: " + orjson.dumps(error_body(message, kind=kind, code=code)) + b"\n\n"


def models_body(names: Sequence[str], *, created: int) -> bytes:
    """The body of GET /v1/models; the first is the model itself, the others are adapters of it."""
    return orjson.dumps({"object": "list", "data": [_model(name, created=created, parent=names[0]) for name in names]})


def model_body(name: str, *, created: int, parent: str) -> bytes:
    """The body of GET /v1/models/<name>."""
    return orjson.dumps(_model(name, created=created, parent=parent))


def _model(name: str, *, created: int, parent: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "largeforge", "root": name, "parent": parent if name != parent else None}
