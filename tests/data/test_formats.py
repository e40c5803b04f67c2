"""Formats: what each row says, how the format is told from its fields, and every way a row can be bad."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from largeforge.chat import Message
from largeforge.data.formats import BadField, detect, detect_chat, explain_unknown, read_messages, read_row
from largeforge.data.rows import BadRow, Row, kind_of

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
    assert detect_chat({"text": "hello", "label": 1}) is None
    assert "text, label" in explain_unknown({"text": "hello", "label": 1})
    bad = read_row({"body": "hello", "label": 1}, "rows.jsonl:1", None)
    assert isinstance(bad, BadRow)
    assert "body, label" in str(bad) and "preference (prompt, chosen, rejected)" in str(bad)


# ---- rows of any kind ----

ASKED = {"role": "user", "content": "capital?"}
PARIS, LYON = {"role": "assistant", "content": "Paris."}, {"role": "assistant", "content": "Lyon."}
PAIR = {"prompt": [ASKED], "chosen": [PARIS], "rejected": [LYON]}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "capital?", "chosen": "Paris.", "rejected": "Lyon."},
        {"question": "capital?", "chosen": "Paris.", "rejected": "Lyon."},
        PAIR,
        {"prompt": "capital?", "chosen": [PARIS], "rejected": [LYON]},
        {"prompt": "capital?", "chosen": PARIS, "rejected": LYON},
        {"chosen": [ASKED, PARIS], "rejected": [ASKED, LYON]},
        {"prompt": "capital?", "chosen": [ASKED, PARIS], "rejected": [ASKED, LYON]},
        {"prompt": [ASKED], "chosen": [ASKED, PARIS], "rejected": [ASKED, LYON]},
        {"prompt": None, "chosen": [ASKED, PARIS], "rejected": [ASKED, LYON]},
        {"chosen": json.dumps([ASKED, PARIS]), "rejected": json.dumps([ASKED, LYON])},
        {
            "prompt": "capital?",
            "chosen": [{"from": "human", "value": "capital?"}, {"from": "gpt", "value": "Paris."}],
            "rejected": [{"from": "human", "value": "capital?"}, {"from": "gpt", "value": "Lyon."}],
        },
    ],
)
def test_pairs_of_every_form_say_the_same(record: dict[str, Any]) -> None:
    """Proves SYS-D-003 and SR-F-014: prompt, chosen and rejected, plain or as turns, the prompt named or shared."""
    row = read_row({**record, "score": 3}, "rows.jsonl:1", None)
    assert isinstance(row, Row), row
    assert (row.kind, row.content, row.origin) == ("preference", {**PAIR, "score": 3}, "rows.jsonl:1")


def test_a_shared_prompt_of_several_turns() -> None:
    more = {"role": "user", "content": "and now?"}
    row = read_row({"system": "Be brief.", "chosen": [ASKED, PARIS, more, PARIS], "rejected": [ASKED, PARIS, more, LYON]}, "r:1", None)
    assert isinstance(row, Row)
    assert row.content["prompt"] == [{"role": "system", "content": "Be brief."}, ASKED, PARIS, more]
    assert (row.content["chosen"], row.content["rejected"]) == ([PARIS], [LYON])


@pytest.mark.parametrize(
    ("record", "field", "says"),
    [
        ({"chosen": "a", "rejected": "b"}, "prompt", "missing (any of: prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected", "nothing to prefer"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected", "an empty answer"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt", "an empty message"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "rejected", "null; text is needed"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "rejected", "a number"),
        ({"prompt": "q", "chosen": [ASKED, PARIS], "rejected": [ASKED, LYON]}, "prompt", "is not what chosen and rejected begin with"),
        ({"chosen": [ASKED, PARIS], "rejected": [PARIS, LYON]}, "rejected", "begins with another turn"),
        ({"chosen": [ASKED], "rejected": [ASKED, LYON]}, "chosen", "no answer"),
        ({"prompt": "q", "chosen": [], "rejected": [LYON]}, "chosen", "an empty list"),
        ({"prompt": "q", "chosen": {"content": "x"}, "rejected": LYON}, "chosen[0].role", "missing"),
        ({"prompt": [PARIS], "chosen": [PARIS], "rejected": [LYON]}, "prompt", "no user turn"),
        ({"messages": MESSAGES["messages"], "chosen": "a", "rejected": "b"}, "prompt", "missing"),
        ({"text": ""}, "text", "an empty text"),
        ({"text": 7}, "text", "a number"),
        ({"text": "a\0b"}, "text", "NUL"),
        ({"text": "a", "n": 2**64}, "n", "does not fit into 64 bits"),
        ({"text": "a", "n": -(2**63) - 1}, "n", "does not fit into 64 bits"),
        ({"text": "a", "n": 10**5000}, "n", "does not fit into 64 bits"),
        ({"text": "a", "n": {"deep": [1.0, float("nan")]}}, "n.deep[1]", "nan is no number"),
        ({"text": "a", "n": float("inf")}, "n", "inf is no number"),
        ({"text": "a", "b": b"bytes"}, "b", "bytes; text, numbers"),
        ({"text": "a", "b": "\ud800"}, "b", "surrogate"),
        (["a"], "", "is a list; an object"),
    ],
)
def test_bad_rows_of_any_kind_are_named(record: Any, field: str, says: str) -> None:
    """Proves SYS-D-021: preference and text rows, and what stands beside them, are checked too."""
    bad = read_row(record, "rows.jsonl:7", None)
    assert isinstance(bad, BadRow), bad
    assert (bad.origin, bad.field) == ("rows.jsonl:7", field)
    assert says in bad.message


def test_what_else_a_row_has_is_kept_beside() -> None:
    beside = {"label": 1, "category": "geo", "scores": [0.5, None], "meta": {"x": True}}
    for record in (ALPACA, SHAREGPT, MESSAGES, {"question": "capital?", "answer": "Paris."}):
        row = read_row({**record, **beside, "nothing": None}, "r:1", None)
        assert isinstance(row, Row)
        assert row.content == {"messages": MESSAGES["messages"], **beside}
    when = read_row({"text": "a", "at": datetime.date(2024, 2, 29), "empty": ""}, "r:1", "text", empty_is_absent=True)
    assert isinstance(when, Row)
    assert when.content == {"text": "a", "at": "2024-02-29"}


@pytest.mark.parametrize(
    ("record", "layout", "field"),
    [
        ({**ALPACA, "messages": "x"}, "alpaca", "messages"),
        ({"text": "a", "messages": []}, "text", "messages"),
        ({**MESSAGES, "chosen": "a", "rejected": "b"}, "messages", "chosen"),
        ({"instruction": "q", "chosen": "a", "rejected": "b", "prompt": None, "text": "x"}, "preference", None),
    ],
)
def test_fields_under_a_name_of_ours_are_refused(record: dict[str, Any], layout: Any, field: str | None) -> None:
    row = read_row(record, "r:1", layout)
    if field is None:
        assert isinstance(row, BadRow) and row.field == "prompt"
    else:
        assert isinstance(row, BadRow) and row.field == field and "rename it or leave it out" in row.message


def test_kind_of_prefers_the_pair() -> None:
    assert kind_of({"messages": [], "chosen": [], "rejected": []}) == "preference"
    assert (kind_of({"messages": [], "chosen": 1}), kind_of({"text": ""})) == ("messages", "text")
