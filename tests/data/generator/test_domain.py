"""Domains: prompts steer the teacher, examples stand as earlier turns, every fault is told with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.data.generator.domain import Domain, open_domain
from largeforge.data.generator.typed_yaml import SHIPPED
from largeforge.errors import InputError
from tests.data.generator.scripted import DOMAIN, domain_file


def test_examples_stand_as_earlier_turns(tmp_path: Path) -> None:
    """Proves SYS-F-005: the user's own prompts, seeds and system message are what the teacher is given."""
    domain = Domain(Path(domain_file(tmp_path, DOMAIN + "system: Be brief.\n")))
    asked = [(turn.role, turn.content) for turn in domain.asking_instruction("blue", domain.seeds[:1])]
    assert asked == [("system", "Be brief."), ("user", "Ask about grey"), ("assistant", "What is grey made of"), ("user", "Ask about blue")]
    answered = [turn.content for turn in domain.asking_response("Why?", domain.seeds[:1])]
    assert answered == ["Be brief.", "What is grey made of", "Grey is made of black and white.", "Why?"]
    assert domain.said("Why?") == [{"role": "user", "content": "Why?"}]
    kept = Domain(Path(domain_file(tmp_path, DOMAIN + "system: Be brief.\nkeep_system: true\n")))
    assert [turn["role"] for turn in kept.said("Why?")] == ["system", "user"]


@pytest.mark.parametrize(
    ("old", "new", "line", "word"),
    [
        ("{{ topic }}", "{{ subject }}", 7, "{{ subject }}"),
        ("Ask about {{ topic }}", "Ask something", 7, "{{ topic }} must stand in it"),
        ('{{ instruction }}"\ngrowth', '{% set x = 1 %}"\ngrowth', 8, "not allowed"),
        ("topics: [red, green, blue, cyan]", "topics: []", 3, "at least 1"),
        ("topic: pink, ", "", 6, "topic is missing"),
        ("name: tiny", "name: tiny\nname: big", 2, "duplicate"),
    ],
)
def test_faults_are_told_with_their_line(tmp_path: Path, old: str, new: str, line: int, word: str) -> None:
    assert old in DOMAIN
    with pytest.raises(InputError) as error:
        Domain(Path(domain_file(tmp_path, DOMAIN.replace(old, new, 1))))
    assert any(f"tiny.yaml:{line}" in told and word in told for told in str(error.value).splitlines()), str(error.value)


def test_a_prompt_that_is_not_there_is_named(tmp_path: Path) -> None:
    domain = Domain(Path(domain_file(tmp_path, DOMAIN.rpartition("judge_prompt")[0])))
    with pytest.raises(InputError, match="has no judge_prompt"):
        domain.prompt("judge_prompt", instruction="a", response="b")


@pytest.mark.parametrize("path", sorted((SHIPPED / "domains").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_domains(path: Path) -> None:
    """Each is called what its file is called, has every prompt, and more examples than are shown."""
    domain = open_domain(path.stem)
    assert domain.name == path.stem
    assert len(domain.seeds) >= 5 and len(domain.file.topics) >= 10
    more = domain.asking_more(["one", "two", "three"], 2)
    assert [turn.content for turn in more if turn.role == "assistant"] == ["1. one\n2. two", "1. three"]
    assert "2" in more[-1].content and "1" in more[-3].content
    assert "B" in domain.prompt("judge_prompt", instruction="A", response="B")
    assert len({seed.instruction for seed in domain.seeds}) == len(domain.seeds)


def test_an_unknown_domain() -> None:
    with pytest.raises(InputError, match="generator.domain=support"):
        open_domain("suport")
