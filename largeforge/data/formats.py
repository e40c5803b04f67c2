"""What a row of each layout says, checked: messages, ShareGPT, Alpaca, prompt and completion, pairs of answers, text. Knows nothing about files.

A record is the row as its file gave it: a dict of plain values.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, cast

from largeforge.chat import Message, Role
from largeforge.data.rows import BadRow, Row, kind_of

Format = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
Layout = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "preference", "text"]

Turn = tuple[str, str, str]
"""Field, role and content."""

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


def detect(record: Mapping[str, Any]) -> Layout | None:
    """The layout that a record's fields show; None where they show none."""
    if "chosen" in record and "rejected" in record:
        return "preference"
    return detect_chat(record) or ("text" if "text" in record else None)


def detect_chat(record: Mapping[str, Any]) -> Format | None:
    """The layout of chat that a record's fields show; None where they show none."""
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


def read_row(value: Any, origin: str, layout: Layout | None, *, empty_is_absent: bool = False) -> Row | BadRow:
    """Read one raw record as canonical content; what else it has (label, category ...) is kept beside under its own name.

    Args:
        value: what the file gave; an object where the file is right.
        origin: where it stands.
        layout: None looks at this record's own fields.
        empty_is_absent: whether an empty field says nothing, as in a CSV, where every row has every column.
    """
    if not isinstance(value, dict):
        return BadRow(origin, "", f"is {kind(value)}; an object with fields is needed")
    layout = layout or detect(value)
    if layout is None:
        return BadRow(origin, "", explain_unknown(value, any_layout=True), "rename the fields, or name the format: data.format=messages")
    try:
        content, read = _content(value, layout)
        for name, extra in value.items():
            if name in read or extra is None or (empty_is_absent and extra == ""):
                continue
            if name in content:
                raise BadField(str(name), f"stands beside the fields of {layout}, but is the name under which they are kept: rename it or leave it out")
            content[_sound(str(name), str(name))] = _plain(extra, str(name))
        meant = "preference" if layout == "preference" else "text" if layout == "text" else "messages"
        if kind_of(content) != meant:
            clash = "messages" if meant == "text" and "messages" in content else "chosen"
            raise BadField(clash, f"stands beside the fields of {layout}, and would make another kind of row of it: rename it or leave it out")
    except BadField as fault:
        return BadRow(origin, fault.field, fault.message)
    return Row(content, origin)


def read_messages(record: Mapping[str, Any], layout: Format) -> tuple[Message, ...]:
    """The turns of one record, checked: known roles, text in every turn, an answer to learn from.

    An empty system message is left out. Raises BadField.
    """
    _refuse_unread(record, ("tools", "functions"))
    return _checked(_READERS[layout](record))


def explain_unknown(record: Mapping[str, Any], *, any_layout: bool = False) -> str:
    """What to say about a record that no format of chat fits, or (`any_layout`) no layout at all."""
    fields = ", ".join(str(name) for name in record) or "none"
    more = ", preference (prompt, chosen, rejected), text (text)" if any_layout else ""
    return (
        f"its fields ({fields}) fit no format: messages (messages), sharegpt (conversations), alpaca (instruction, input, output), "
        f"prompt_completion (prompt or question; completion, response or answer){more}"
    )


# ---- one row of any kind, and the names of the fields that were read ----


def _content(record: Mapping[str, Any], layout: Layout) -> tuple[dict[str, Any], set[str]]:
    """Canonical content without further fields. Raises BadField."""
    if layout == "text":
        text = _text(record, "text")
        if not text.strip():
            raise BadField("text", "an empty text")
        return {"text": _sound(text, "text")}, {"text"}
    _refuse_unread(record, ("tools", "functions"))
    if layout == "preference":
        return _pair(record)
    messages = _checked(_READERS[layout](record))
    return {"messages": [message.as_dict() for message in messages]}, _fields(record, layout)


def _fields(record: Mapping[str, Any], layout: Format) -> set[str]:
    """Which fields of a record of chat are read."""
    if layout == "alpaca":
        return {"instruction", "input", "output", "system"}
    if layout == "prompt_completion":
        return {_first(record, PROMPTS) or "", _first(record, COMPLETIONS) or "", "system"}
    own = "messages" if layout == "messages" else "conversations"
    used = own if own in record else next((name for name in TURN_LISTS if name in record), own)
    return {used} if layout == "messages" else {used, "system"}


def _pair(record: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """A prompt and two answers to it, plain or as turns.

    Where the answers are whole conversations, the turns that both begin with are the prompt, as in TRL; a prompt that stands
    beside them may be its last turn or all of it.
    """
    named = _first(record, PROMPTS)
    chosen, rejected = (_side(record, name) for name in ("chosen", "rejected"))
    prompt = _asked(record, named) if named is not None and record[named] is not None else []
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared][1:] == rejected[shared][1:]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise BadField("rejected", "says the same as chosen, so there is nothing to prefer")
    if chosen[0][1] != "assistant":  # a whole conversation
        begins = chosen[:shared]
        while begins and begins[-1][1] == "assistant":  # both answers begin alike: the prompt ends before them
            begins = begins[:-1]
        if not begins:
            raise BadField("rejected", "begins with another turn than chosen; both must answer the same prompt")
        said = [turn[1:] for turn in begins]
        asked = [turn[1:] for turn in prompt]
        if asked and said[: len(asked)] != asked and said[-len(asked) :] != asked:
            raise BadField(str(named), "is not what chosen and rejected begin with")
        whole = begins if not asked or said[-len(asked) :] == asked else begins[: len(asked)]
        prompt, chosen, rejected = whole, chosen[len(whole) :], rejected[len(whole) :]
    if not prompt:
        raise BadField("prompt", f"missing (any of: {', '.join(PROMPTS)}), and chosen and rejected share no first turns that could be it")
    if record.get("system"):
        prompt = [("system", "system", _text(record, "system")), *prompt]
    content = {}
    for name, turns in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise BadField(name, "holds the prompt and no answer to it")
        content[name] = [message.as_dict() for message in _checked(turns, answers=name != "prompt")]
    if not any(turn["role"] == "user" for turn in content["prompt"]):
        raise BadField(str(named or "chosen"), "no user turn, so nothing is asked")
    return content, {str(named), "chosen", "rejected", "system"}


def _asked(record: Mapping[str, Any], name: str) -> list[Turn]:
    """The prompt of a pair."""
    if is_turns(record[name]):
        return _turns(record, name, role_key="role", text_key="content", roles={r: r for r in ROLES})
    return [(name, "user", _text(record, name))]


def _side(record: Mapping[str, Any], name: str) -> list[Turn]:
    """One answer of a pair: text, one turn, or a list of turns in either way of naming who speaks."""
    if name not in record:
        raise BadField(name, f"missing; the row has: {', '.join(map(str, record)) or 'no field'}")
    value = record[name]
    if isinstance(value, dict):
        record, value = {name: [value]}, [value]
    if not is_turns(value):
        return [(name, "assistant", _text(record, name))]
    first = _opened(value)
    if first and isinstance(first[0], dict) and "from" in first[0]:
        return _turns(record, name, role_key="from", text_key="value", roles=SHAREGPT_ROLES)
    return _turns(record, name, role_key="role", text_key="content", roles={r: r for r in ROLES})


def _plain(value: Any, field: str) -> Any:
    """A further field as JSON can hold it exactly; times become ISO 8601. Raises BadField."""
    if isinstance(value, str):
        return _sound(value, field)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise BadField(field, f"the number {value:.3e} does not fit into 64 bits" if abs(value) < 10**300 else "a number that does not fit into 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadField(field, f"{value} is no number that JSON can hold")
        if value >= 2**64 or value <= -(2**63):  # an integer that a JSON reader made a float of, for all that is known
            raise BadField(field, f"the number {value:.3e} does not fit into 64 bits")
        return value
    if isinstance(value, Mapping):
        return {_sound(str(name), field): _plain(inner, f"{field}.{name}") for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{field}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise BadField(field, f"{kind(value)}; text, numbers, true or false, lists and objects can be kept: leave this field out")


# ---- one reader a format of chat: (field, role, content) of every turn ----


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
        if is_turns(record[name]):
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


def _checked(turns: Sequence[Turn], *, answers: bool = True) -> tuple[Message, ...]:
    """The turns as messages, each with text; where `answers`, one of them is the assistant's. Raises BadField."""
    messages = []
    for field, role, content in turns:
        if not content.strip():
            if role == "system":
                continue
            raise BadField(field, "an empty answer" if role == "assistant" else "an empty message")
        messages.append(Message(cast(Role, role), _sound(content, field)))
    if answers and not any(message.role == "assistant" for message in messages):
        raise BadField(turns[0][0].split("[")[0], "no assistant turn, so there is nothing to learn")
    return tuple(messages)


def _sound(text: str, field: str) -> str:
    """The text itself, where UTF-8 can hold it and nothing cuts it off. Raises BadField."""
    if "\0" in text:
        raise BadField(field, "holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise BadField(field, f"holds half of a character (a lone surrogate, {text[fault.start]!a}) at {fault.start}") from fault
    return text


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


def is_turns(value: Any) -> bool:
    """A prompt or completion given as messages; text that merely looks like a list is text."""
    opened = _opened(value)
    return isinstance(value, list) or (
        isinstance(opened, list) and bool(opened) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in opened)
    )


def _unknown_role(role: str, roles: Mapping[str, str]) -> str:
    near = get_close_matches(role.lower(), roles, n=1)
    return f"{role!r} is no role (allowed: {', '.join(roles)}{f'; nearest: {near[0]}' if near else ''})"


def kind(value: Any) -> str:
    """A JSON value's type in plain words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
