"""What a row of each format says, as checked messages: messages, ShareGPT, Alpaca, prompt and completion. Knows nothing about files.

A record is the row as its file gave it: a dict of plain values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, cast

from largeforge.chat import Message, Role

Format = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}
TURN_LISTS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "question", "query", "instruction")
COMPLETIONS = ("completion", "response", "answer", "output")


# What a turn may carry that would change what is learnt, and that is not read here.
TURN_EXTRAS = ("tool_calls", "function_call", "reasoning_content", "thinking", "weight")


class BadField(Exception):
    """A field of a row that cannot be used."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


def detect(record: Mapping[str, Any]) -> Format | None:
    """The format that a record's fields show; None where they show none."""
    for name in TURN_LISTS:
        turns = _opened(record.get(name))
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "sharegpt" if "from" in turns[0] else "messages"
        if turns is not None:
            return "sharegpt" if name.startswith("conversation") else "messages"
    if "instruction" in record and "output" in record:
        return "alpaca"
    if _first(record, PROMPTS) and _first(record, COMPLETIONS):
        return "prompt_completion"
    return None


def read_messages(record: Mapping[str, Any], layout: Format) -> tuple[Message, ...]:
    """The turns of one record, checked: known roles, text in every turn, an answer to learn from.

    An empty system message is left out. Raises BadField.
    """
    _refuse_unread(record, ("tools", "functions"))
    return _checked(_READERS[layout](record))


def explain_unknown(record: Mapping[str, Any]) -> str:
    """What to say about a record that no format fits."""
    fields = ", ".join(str(name) for name in record) or "none"
    return (
        f"its fields ({fields}) fit no format: messages (messages), sharegpt (conversations), alpaca (instruction, input, output), "
        "prompt_completion (prompt or question; completion, response or answer)"
    )


# ---- one reader a format: (field, role, content) of every turn ----

Turn = tuple[str, str, str]


def _messages(record: Mapping[str, Any]) -> list[Turn]:
    return _turns(record, "messages", role_key="role", text_key="content", roles={role: role for role in ROLES})


def _sharegpt(record: Mapping[str, Any]) -> list[Turn]:
    turns = _turns(record, "conversations", role_key="from", text_key="value", roles=SHAREGPT_ROLES)
    if record.get("system"):
        turns.insert(0, ("system", "system", _text(record, "system")))
    return turns


def _alpaca(record: Mapping[str, Any]) -> list[Turn]:
    instruction = _text(record, "instruction")
    extra = _text(record, "input") if record.get("input") is not None else ""
    turns = [
        ("instruction", "user", f"{instruction}\n\n{extra}" if extra.strip() else instruction),
        ("output", "assistant", _text(record, "output")),
    ]
    if record.get("system"):
        turns.insert(0, ("system", "system", _text(record, "system")))
    return turns


def _prompt_completion(record: Mapping[str, Any]) -> list[Turn]:
    prompt, completion = _first(record, PROMPTS), _first(record, COMPLETIONS)
    if prompt is None or completion is None:
        missing, names = ("prompt", PROMPTS) if prompt is None else ("completion", COMPLETIONS)
        raise BadField(missing, f"missing (any of: {', '.join(names)}); the row has: {', '.join(map(str, record)) or 'no field'}")
    turns: list[Turn] = []
    if record.get("system"):
        turns.append(("system", "system", _text(record, "system")))
    for name, role in ((prompt, "user"), (completion, "assistant")):
        if _is_turns(record[name]):
            turns.extend(_turns(record, name, role_key="role", text_key="content", roles={r: r for r in ROLES}))
        else:
            turns.append((name, role, _text(record, name)))
    return turns


_READERS: dict[Format, Callable[[Mapping[str, Any]], list[Turn]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}


def _turns(record: Mapping[str, Any], name: str, *, role_key: str, text_key: str, roles: Mapping[str, str]) -> list[Turn]:
    field = name if name in record or name not in TURN_LISTS else next((other for other in TURN_LISTS if other in record), name)
    if field not in record:
        raise BadField(name, f"missing; the row has: {', '.join(map(str, record)) or 'no field'}")
    turns = _opened(record[field])
    if not isinstance(turns, list):
        raise BadField(field, f"{kind(turns)}; a list of turns is needed")
    if not turns:
        raise BadField(field, "an empty list; at least one question and its answer are needed")
    found = []
    for index, turn in enumerate(turns):
        at = f"{field}[{index}]"
        if not isinstance(turn, dict):
            raise BadField(at, f"{kind(turn)}; an object with {role_key} and {text_key} is needed")
        role = _text(turn, role_key, at=at)
        if role not in roles:
            raise BadField(f"{at}.{role_key}", _unknown_role(role, roles))
        _refuse_unread(turn, TURN_EXTRAS, at=at)
        found.append((f"{at}.{text_key}", roles[role], _text(turn, text_key, at=at)))
    return found


def _refuse_unread(record: Mapping[str, Any], names: Sequence[str], *, at: str = "") -> None:
    for name in names:
        value = record.get(name)
        if name == "weight" and value == 1:
            continue
        if value or value == 0:
            raise BadField(f"{at}.{name}" if at else name, "is not supported, and leaving it out would change what is learnt")


def _checked(turns: Sequence[Turn]) -> tuple[Message, ...]:
    messages = []
    for field, role, content in turns:
        if not content.strip():
            if role == "system":
                continue
            raise BadField(field, "an empty answer" if role == "assistant" else "an empty message")
        if "\0" in content:
            raise BadField(field, "holds a NUL character")
        try:
            content.encode()
        except UnicodeEncodeError as fault:
            raise BadField(field, f"holds half of a character (a lone surrogate, {content[fault.start]!a}) at {fault.start}") from fault
        messages.append(Message(cast(Role, role), content))
    if not any(message.role == "assistant" for message in messages):
        raise BadField(turns[0][0].split("[")[0], "no assistant turn, so there is nothing to learn")
    return tuple(messages)


def _text(record: Mapping[str, Any], name: str, *, at: str = "") -> str:
    field = f"{at}.{name}" if at else name
    if name not in record:
        raise BadField(field, f"missing; it has: {', '.join(map(str, record)) or 'no field'}")
    value = record[name]
    if not isinstance(value, str):
        raise BadField(field, f"{kind(value)}; text is needed")
    return value


def _first(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in record), None)


def _opened(value: Any) -> Any:
    """A list of turns that a CSV or Parquet column holds as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _is_turns(value: Any) -> bool:
    """A prompt or completion given as messages; text that merely looks like a list is text."""
    opened = _opened(value)
    return isinstance(value, list) or (isinstance(opened, list) and bool(opened) and all(isinstance(turn, dict) and "role" in turn for turn in opened))


def _unknown_role(role: str, roles: Mapping[str, str]) -> str:
    near = get_close_matches(role.lower(), roles, n=1)
    return f"{role!r} is no role (allowed: {', '.join(roles)}{f'; nearest: {near[0]}' if near else ''})"


def kind(value: Any) -> str:
    """A JSON value's type in plain words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
