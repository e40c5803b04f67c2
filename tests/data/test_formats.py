"""Formats: what each row says, how the format is told from its fields, and every way a row can be bad."""

from __future__ import annotations

from typing import Any

import pytest

from largeforge.chat import Message
from largeforge.data.formats import BadField, detect, explain_unknown, read_messages

USER, ASSISTANT = Message("user", "capital?"), Message("assistant", "Paris.")
ALPACA = {"instruction": "capital?", "input": "", "output": "Paris."}
SHAREGPT = {"conversations": [{"from": "human", "value": "capital?"}, {"from": "gpt", "value": "Paris."}]}
MESSAGES = {"messages": [USER.as_dict(), ASSISTANT.as_dict()]}


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        (MESSAGES, "messages"),
        ({"conversations": MESSAGES["messages"]}, "messages"),
        (SHAREGPT, "sharegpt"),
        ({"messages": SHAREGPT["conversations"]}, "sharegpt"),
        (ALPACA, "alpaca"),
        ({"instruction": "capital?", "output": "Paris."}, "alpaca"),
        ({"prompt": "capital?", "completion": "Paris."}, "prompt_completion"),
        ({"question": "capital?", "answer": "Paris."}, "prompt_completion"),
        ({"query": "capital?", "response": "Paris."}, "prompt_completion"),
        ({"instruction": "capital?", "response": "Paris."}, "prompt_completion"),
        ({"prompt": [USER.as_dict()], "completion": [ASSISTANT.as_dict()]}, "prompt_completion"),
        ({"messages": '[{"role": "user", "content": "capital?"}, {"role": "assistant", "content": "Paris."}]'}, "messages"),
    ],
)
def test_formats_are_detected_and_say_the_same(record: dict[str, Any], layout: Any) -> None:
    """Proves SYS-D-001 and SYS-D-002: Alpaca and ShareGPT rows, among others, become the same two turns."""
    assert detect(record) == layout
    assert read_messages(record, layout) == (USER, ASSISTANT)


def test_alpaca_joins_instruction_and_input() -> None:
    """Proves SYS-D-001."""
    assert read_messages({"instruction": "Translate.", "input": "chat", "output": "cat"}, "alpaca")[0].content == "Translate.\n\nchat"
    assert read_messages({"instruction": "Say hi.", "input": None, "output": "hi"}, "alpaca")[0].content == "Say hi."
    with_system = read_messages({"system": "Be brief.", "instruction": "Say hi.", "input": "", "output": "hi"}, "alpaca")
    assert with_system[0] == Message("system", "Be brief.")


def test_sharegpt_roles_and_system() -> None:
    """Proves SYS-D-002."""
    turns = [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "hi"}, {"from": "chatgpt", "value": "hello"}, {"from": "human", "value": "?"}]
    assert [message.role for message in read_messages({"conversations": turns}, "sharegpt")] == ["system", "user", "assistant", "user"]
    assert read_messages({**SHAREGPT, "system": "Be brief."}, "sharegpt")[0] == Message("system", "Be brief.")


def test_an_empty_system_message_is_left_out() -> None:
    assert read_messages({"messages": [{"role": "system", "content": ""}, *MESSAGES["messages"]]}, "messages") == (USER, ASSISTANT)


def test_a_prompt_that_looks_like_a_list_is_text() -> None:
    assert read_messages({"prompt": "[1, 2]", "completion": "[3]"}, "prompt_completion") == (Message("user", "[1, 2]"), Message("assistant", "[3]"))


def turns(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("record", "layout", "field", "says"),
    [
        (turns({"role": "asistant", "content": "x"}), "messages", "messages[0].role", "nearest: assistant"),
        (turns({"role": "tool", "content": "x"}), "messages", "messages[0].role", "allowed: system, user, assistant"),
        (turns(USER.as_dict(), {"role": "assistant", "content": "  "}), "messages", "messages[1].content", "an empty answer"),
        (turns({"role": "user", "content": ""}, ASSISTANT.as_dict()), "messages", "messages[0].content", "an empty message"),
        (turns(USER.as_dict()), "messages", "messages", "no assistant turn"),
        (turns(), "messages", "messages", "an empty list"),
        (turns(USER.as_dict(), "Paris."), "messages", "messages[1]", "text; an object with role and content"),
        (turns({"role": "user"}), "messages", "messages[0].content", "missing; it has: role"),
        (turns({"content": "x"}), "messages", "messages[0].role", "missing"),
        (turns({"role": "user", "content": ["x"]}), "messages", "messages[0].content", "a list; text is needed"),
        (turns({"role": 3, "content": "x"}), "messages", "messages[0].role", "a number; text is needed"),
        (turns(USER.as_dict(), {**ASSISTANT.as_dict(), "tool_calls": [{}]}), "messages", "messages[1].tool_calls", "not supported"),
        (turns(USER.as_dict(), {**ASSISTANT.as_dict(), "weight": 0}), "messages", "messages[1].weight", "not supported"),
        ({**MESSAGES, "tools": [{}]}, "messages", "tools", "not supported"),
        ({"messages": "hello"}, "messages", "messages", "text; a list of turns"),
        ({"text": "hello"}, "messages", "messages", "missing; the row has: text"),
        ({"conversations": [{"from": "gptt", "value": "x"}]}, "sharegpt", "conversations[0].from", "nearest: gpt"),
        ({"conversations": [{"from": "human"}]}, "sharegpt", "conversations[0].value", "missing"),
        ({"instruction": "x", "input": ""}, "alpaca", "output", "missing"),
        ({"instruction": "x", "output": ""}, "alpaca", "output", "an empty answer"),
        ({"instruction": None, "output": "x"}, "alpaca", "instruction", "null; text is needed"),
        ({"instruction": "x", "input": 3, "output": "y"}, "alpaca", "input", "a number"),
        ({"prompt": "x"}, "prompt_completion", "completion", "any of: completion, response, answer, output"),
        ({"answer": "x"}, "prompt_completion", "prompt", "missing"),
        ({"question": "x", "answer": 42}, "prompt_completion", "answer", "a number; text is needed"),
        ({"prompt": "x", "completion": "a\0b"}, "prompt_completion", "completion", "NUL"),
        ({"prompt": "x", "completion": "a\ud83d"}, "prompt_completion", "completion", "surrogate"),
    ],
)
def test_bad_fields_are_named(record: dict[str, Any], layout: Any, field: str, says: str) -> None:
    """Proves SYS-D-021: the schema of every row is checked, and the field at fault is named."""
    with pytest.raises(BadField) as caught:
        read_messages(record, layout)
    assert caught.value.field == field
    assert says in caught.value.message


def test_fields_that_fit_no_format_are_listed() -> None:
    assert detect({"text": "hello", "label": 1}) is None
    assert "text, label" in explain_unknown({"text": "hello", "label": 1})
