"""A teacher's words become new rows behind the rows they say again; answers that are of no use are counted, and no row is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from largeforge.chat import Answer, ChatRequest, Failure, Usage
from largeforge.data.rows import Row
from largeforge.data.step.augment import Augment
from largeforge.errors import InputError, Interrupted
from tests.data.step.made import chat, dropped, kept, make, preference, text

Said = Answer | Failure


class Teacher:
    """Answers with a function of what it is asked, in order, a few requests ahead; remembers what it was asked."""

    name = "a teacher of tests"

    def __init__(self, function: Callable[[ChatRequest], str | Said], *, ahead: int = 4, stop_after: int | None = None) -> None:
        self.function = function
        self.ahead = ahead
        self.stop_after = stop_after
        self.asked: list[ChatRequest] = []

    def __call__(self, requests: Iterable[ChatRequest]) -> Iterator[Said]:
        source = iter(requests)
        window: list[ChatRequest] = []
        while True:
            while len(window) < self.ahead and (request := next(source, None)) is not None:
                window.append(request)
                self.asked.append(request)
            if not window or (self.stop_after is not None and len(self.asked) > self.stop_after):
                return
            said = self.function(window.pop(0))
            yield Answer(said, "stop", Usage(10, 5)) if isinstance(said, str) else said

    @property
    def live(self) -> dict[str, Any]:
        return {"engine": self, "ask": self}


def original(request: ChatRequest) -> str:
    """What stands below the instruction."""
    return request.messages[0].content.rpartition("\n\n")[2]


def other_words(request: ChatRequest) -> str:
    return f"In other words ({request.seed % 1000}): {original(request)}"


ROWS = [chat(f"What is {n} times {n}?", str(n * n), f"rows.jsonl:{n + 1}", label="sum") for n in range(12)]


def test_new_rows_stand_behind_their_row_with_all_that_is_known_about_them() -> None:
    teacher = Teacher(other_words)
    made = kept(make("augment", copies=2, live=teacher.live)(ROWS))
    assert [row.origin for row in made[:4]] == ["rows.jsonl:1", "rows.jsonl:1, paraphrase 1", "rows.jsonl:1, paraphrase 2", "rows.jsonl:2"]
    assert [row for row in made if "from" not in row.lineage] == ROWS
    assert len(made) == 36
    copy = made[1]
    assert copy.content["messages"][0]["content"] == other_words(teacher.asked[0])
    assert copy.content["messages"][1] == ROWS[0].content["messages"][1]
    assert copy.content["label"] == "sum"
    assert copy.lineage == {
        "changed": ["augment"],
        "from": ROWS[0].id,
        "template": "paraphrase",
        "teacher": "a teacher of tests",
        "parameters": {"rewrite": "prompt", "temperature": 0.7, "top_p": 0.95, "max_tokens": 256, "seed": teacher.asked[0].seed},
    }


def test_the_same_seed_asks_the_same_whatever_the_order_of_rows() -> None:
    first, second, other = Teacher(other_words), Teacher(other_words, ahead=1), Teacher(other_words)
    made = kept(make("augment", live=first.live)(ROWS))
    assert {row.id for row in kept(make("augment", live=second.live)(replace(row) for row in ROWS[::-1]))} == {row.id for row in made}
    assert second.asked == first.asked[::-1]
    list(make("augment", seed=1, live=other.live)(ROWS))
    assert [request.seed for request in other.asked] != [request.seed for request in first.asked]


@pytest.mark.parametrize(
    ("said", "reason", "detail"),
    [
        ("  ", "empty", ""),
        ("what is 3  times 3", "unchanged", ""),
        ("Sure! Here is the text in other words: What is three by three?", "malformed", "talks about the text"),
        ("Here is a paraphrase:\nWhat is three by three?", "malformed", "talks about the text"),
        ("<|im_start|>user\nWhat is three by three?", "malformed", "holds marks of a chat template"),
        ("What is three by three? " * 20, "malformed", "479 characters for 18"),
        (Answer("What is three", "length", Usage(10, 256)), "cut_off", "256 tokens"),
        (Failure("unreachable", "nobody at http://teacher"), "no_answer", "unreachable: nobody at http://teacher"),
        (Failure("budget", "1000 tokens are spent"), "no_answer", "budget: 1000 tokens are spent"),
    ],
)
def test_an_answer_of_no_use_is_counted_and_the_row_stays(said: str | Said, reason: str, detail: str) -> None:
    items = list(make("augment", live=Teacher(lambda _: said).live)(ROWS[3:4]))
    assert items[0] is ROWS[3]
    [left] = dropped(items)
    assert (left.reason, left.detail, left.row.origin) == (reason, detail, "rows.jsonl:4, paraphrase 1")
    assert len(items) == 2


def test_the_same_answer_twice_is_one_row() -> None:
    items = list(make("augment", copies=3, live=Teacher(lambda _: "'What do you get for 3 by 3?'").live)(ROWS[3:4]))
    assert [row.content["messages"][0]["content"] for row in kept(items)] == ["What is 3 times 3?", "What do you get for 3 by 3?"]
    assert [item.reason for item in dropped(items)] == ["repeated", "repeated"]


def test_what_is_rewritten() -> None:
    rows = [chat("Ask.", "Answer."), preference("Ask.", "Good.", "Bad."), text("Text.")]
    for rewrite, expected in (("prompt", ["Ask.", "Ask.", "Text."]), ("answer", ["Answer.", "Good.", "Text."])):
        teacher = Teacher(lambda request: f"In short, {original(request)}")
        made = [row for row in kept(make("augment", rewrite=rewrite, live=teacher.live)(rows)) if "from" in row.lineage]
        assert [original(request) for request in teacher.asked] == expected
        for row, new, said in zip(rows, made, expected, strict=True):
            assert list(new.texts()) == [f"In short, {part}" if part == said else part for part in row.texts()]


def test_only_rows_to_train_on_and_only_a_share_of_them() -> None:
    rows = [text(f"row number {n}", f"f:{n}") for n in range(400)]
    teacher = Teacher(other_words)
    assert len(kept(make("augment", share=0.25, live=teacher.live)(rows))) == 400 + len(teacher.asked)
    assert 70 <= len(teacher.asked) <= 130
    aside = [replace(row, split="test") for row in rows]
    assert kept(make("augment", live=teacher.live)(aside)) == aside


def test_a_stop_loses_no_row_in_silence() -> None:
    teacher = Teacher(other_words, stop_after=6)
    seen: list[Any] = []
    with pytest.raises(Interrupted):
        seen.extend(make("augment", live=teacher.live)(ROWS))
    assert len(seen) < 24


@pytest.mark.parametrize("choice", ["augment", "augment_simplify", "augment_translate"])
def test_each_shipped_prompt_shows_the_text(choice: str) -> None:
    teacher = Teacher(other_words)
    rows = [chat("How tall are giraffes?", "Tall.", target_language="French"), chat("How old are giraffes?", "Old.")]
    assert len(kept(make(choice, live=teacher.live)(rows))) == 4
    assert [original(request) for request in teacher.asked] == ["How tall are giraffes?", "How old are giraffes?"]
    if choice == "augment_translate":
        assert ["French" in teacher.asked[0].messages[0].content, "German" in teacher.asked[1].messages[0].content] == [True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "Say it again."}, "does not show the text"),
        ({"prompt": "{{ text"}, "is no Jinja2"),
        ({"prompt": "{{ text }} {{ topic }}"}, "names topic"),
        ({"copies": 2, "temperature": 0.0}, "the same answer again"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make("augment", **changes)


def test_a_field_that_a_row_lacks_is_told_with_its_place() -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1  step\.augment\.prompt cannot be filled"):
        list(make("augment", prompt="{{ text }} {{ row.topic }}", live=Teacher(other_words).live)(ROWS))


def test_a_template_cannot_reach_out() -> None:
    step = make("augment", prompt="{{ text }}{{ row.__class__.__mro__ }}", live=Teacher(other_words).live)
    assert isinstance(step, Augment)
    with pytest.raises(InputError):
        step.request(Row({"text": "x"}, "f:1"), 1)
