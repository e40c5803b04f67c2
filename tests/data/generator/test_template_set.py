"""Template sets: typed slots, every fault with file and line, and row i as a function of the seed and i."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from largeforge.data.generator.template_set import TemplateSet, open_set
from largeforge.data.generator.typed_yaml import SHIPPED
from largeforge.errors import InputError

HEAD = "name: trial\ndescription: a trial\n"
SLOTS = """\
slots:
  colour: {type: choice, values: {red: 9, blue: 1}}
  size: {type: choice, values: [1, 2]}
  count: {type: int, min: 2, max: 8, step: 2}
  price: {type: float, min: 0.5, max: 1.5, decimals: 1}
  name: {type: text, values: [Ana, Ben]}
  day: {type: date, min: 2026-02-27, max: 2026-03-02}
  written: {type: date, min: 2026-02-27, max: 2026-03-02, format: "%d/%m"}
  thing: {type: template, template: "{{ count }} {{ colour }} {{ inner }}"}
  inner: {type: template, template: "{{ 'ball' if count == 1 else 'balls' }}"}
  word: {type: file, path: words.txt}
  city: {type: file, path: cities.jsonl}
"""
TEMPLATES = """\
templates:
  - id: chat
    weight: 3
    messages:
      - {role: system, content: You sell balls.}
      - {role: user, content: "{{ name }} wants {{ thing }} of size {{ size }} for {{ price }}."}
      - {role: assistant, content: "On {{ day }} or {{ written }}, in {{ city.name }}: {{ word }}"}
    fields: {label: "{{ colour }}", checked: true}
  - id: plain
    text: "{{ word }} {{ count * 2 }}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("one\n\ntwo\nthree\n", encoding="utf-8")
    (tmp_path / "cities.jsonl").write_text('{"name": "Bern"}\n{"name": "Rome"}\n', encoding="utf-8")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "set.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as error:
        TemplateSet(written(folder, text))
    return str(error.value)


def test_every_kind_of_slot(folder: Path) -> None:
    """Proves SR-F-012: rows of chat and of text from templates with typed slots."""
    made = TemplateSet(written(folder, HEAD + SLOTS + TEMPLATES))
    rows = [made.row(3, number) for number in range(400)]
    chats = [row.content for row in rows if row.kind == "messages"]
    texts = [row.content for row in rows if row.kind == "text"]
    assert 240 < len(chats) < 340 and len(chats) + len(texts) == 400
    assert sum(row["label"] == "red" for row in chats) / len(chats) == pytest.approx(0.9, abs=0.06)
    assert {row["checked"] for row in chats} == {True}
    users = {row["messages"][1]["content"] for row in chats}
    assert any(text.endswith("for 0.5.") for text in users) and any(text.endswith("for 1.5.") for text in users)
    assert {text.split()[0] for text in users} == {"Ana", "Ben"}
    assert {text.split()[2] for text in users} == {"2", "4", "6", "8"}
    assert {text.split()[4] for text in users} == {"balls"}
    answers = {row["messages"][2]["content"] for row in chats}
    assert {text.split()[1] for text in answers} == {"2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02"}
    assert {text.split()[3] for text in answers} == {"27/02,", "28/02,", "01/03,", "02/03,"}
    assert {text.split()[5] for text in answers} == {"Bern:", "Rome:"}
    assert {row["text"].split()[0] for row in texts} == {"one", "two", "three"}


def test_a_row_is_a_function_of_seed_and_number(folder: Path) -> None:
    """Fixed ids: neither the machine, nor Python's hash seed, nor what was drawn before moves a row."""
    made, again = (TemplateSet(written(folder, HEAD + SLOTS + TEMPLATES)) for _ in range(2))
    rows = [made.row(0, number) for number in range(20)]
    assert again.row(0, 17) == rows[17]
    assert again.row(1, 17).id != rows[17].id
    assert rows[0].id == "80aeba614d0fc5a3149a8dae0b556ba4"
    assert rows[5].lineage == {"generator": "template", "template": f"trial/{rows[5].origin.split('/')[1].split(',')[0]}", "parameters": {"seed": 0, "draw": 5}}


def test_counts_what_it_can_make(folder: Path) -> None:
    """By hand: chat is 2 colours x 2 sizes x 4 counts x 11 prices x 2 names x 4 days x 4 written days x 3 words x 2 cities; plain is 4 counts x 3 words."""
    made = TemplateSet(written(folder, HEAD + SLOTS + TEMPLATES))
    assert made.count_at_most == 2 * 2 * 4 * 11 * 2 * 4 * 4 * 3 * 2 + 4 * 3
    small = TemplateSet(written(folder, HEAD + "slots: {a: {type: int, min: 1, max: 3}}\ntemplates: [{id: x, text: '{{ a // 2 }} it is'}]\n"))
    assert [row.content["text"] for row in small.every()] == ["0 it is", "1 it is", "1 it is"]


def test_every_fault_is_told_with_its_line(folder: Path) -> None:
    """Line 4 on: each slot and each template has one fault; all are told at once."""
    said = faults(
        folder,
        HEAD
        + """\
slots:
  a: {type: int, min: 5, max: 2}
  b: {type: number, min: 1}
  c: {type: float, min: 1.0}
  d: {type: date, min: soon, max: 2026-01-01}
  e: {type: text, values: []}
  f: {type: text, values: [x], more: 1}
  g: {type: choice, values: {x: -1}}
  h: {type: file, path: ../secret}
templates:
  - {id: x, text: ok, messages: []}
  - {id: "not a name", text: ok}
  - id: y
    messages:
      - {role: boss, content: hi}
""",
    )
    for line, word in [(4, "max=2"), (5, "number"), (6, "max is missing"), (7, "slots.d.min"), (8, "slots.e.values"), (9, "more"), (10, "greater"), (11, "..")]:
        assert any(f"set.yaml:{line}  " in told and word in told for told in said.splitlines()), (line, word, said)
    for line, word in [(13, "one"), (14, "id"), (17, "role")]:
        assert any(f"set.yaml:{line}  " in told and word in told for told in said.splitlines()), (line, word, said)


@pytest.mark.parametrize(
    ("rest", "line", "word"),
    [
        ("slots: {colour: {type: text, values: [x]}}\ntemplates:\n  - id: x\n    text: '{{ color }}'\n", 6, "did you mean colour"),
        ("templates:\n  - id: x\n    text: |\n      one\n      two {{ 1 +\n", 7, "unexpected"),
        ("templates:\n  - id: x\n    text: '{% set x = 1 %}'\n", 5, "not allowed"),
        (
            "slots:\n  a: {type: template, template: '{{ b }}'}\n  b: {type: template, template: '{{ a }}'}\ntemplates: [{id: x, text: '{{ a }}'}]\n",
            4,
            "needs itself",
        ),
        ("templates:\n  - {id: x, text: a}\n  - {id: x, text: b}\n", 5, "stands twice"),
        ("slots:\n  a: {type: file, path: none.txt}\ntemplates: [{id: x, text: '{{ a }}'}]\n", 4, "no file"),
        ("slots: {a: {type: int, min: 0, max: 0}}\ntemplates:\n  - id: x\n    text: '{{ 1 // a }}'\n", 5, "zero"),
        ("templates:\n  - id: x\n    messages:\n      - {role: user, content: hi}\n", 4, "ends with a turn of the assistant"),
        ("templates:\n  - id: x\n    text: ' '\n", 4, "the text is empty"),
    ],
)
def test_faults_of_templates(folder: Path, rest: str, line: int, word: str) -> None:
    said = faults(folder, HEAD + rest)
    assert any(f"set.yaml:{line}  " in told and word in told for told in said.splitlines()), said


def test_a_link_does_not_lead_out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A set from a stranger reads no file of the user's, be it through a link."""
    secret = tmp_path_factory.mktemp("home") / "secret.txt"
    secret.write_text("password\n", encoding="utf-8")
    (folder / "words.txt").unlink()
    (folder / "words.txt").symlink_to(secret)
    assert "leads out" in faults(folder, HEAD + SLOTS + TEMPLATES)


def test_broken_yaml_and_unknown_names(folder: Path) -> None:
    assert "set.yaml:3:" in faults(folder, HEAD + "slots: {a: [}\n")
    with pytest.raises(InputError, match="generator.templates=orders"):
        open_set("order", key="generator.templates")
    with pytest.raises(InputError, match="no such file"):
        open_set(str(folder / "none.yaml"), key="generator.templates")


@pytest.mark.parametrize("path", sorted((SHIPPED / "templates").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sets(path: Path) -> None:
    """Each is called what its file is called, and makes at least 300 distinct rows."""
    made = open_set(path.stem, key="generator.templates")
    assert made.name == path.stem
    rows = [made.row(0, number) for number in range(600)]
    assert len({row.id for row in rows}) >= 300
    assert len({row.kind for row in rows}) == 1


def test_dates_are_dates(folder: Path) -> None:
    made = TemplateSet(written(folder, HEAD + SLOTS + TEMPLATES))
    assert made.slots["day"].every() == [date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 2)]
