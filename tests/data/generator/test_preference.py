"""preference: the best and the worst of several answers, with a margin; ties and prompts without a good answer are counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from largeforge.chat import ChatRequest, Failure
from largeforge.errors import InputError
from tests.data.generator.scripted import DOMAIN, domain_file, parted, taught


def judge(request: ChatRequest) -> Any:
    """Four answers a prompt, by turns; the judge likes long ones."""
    last = request.messages[-1].content
    if last.startswith("Judge "):
        return f"Score: {min(10, len(last.split(' as an answer')[0].split()) - 1)}"
    return ["Yes.", "Yes it is so indeed.", "Yes it is so, of course and always.", "Yes!"][request.seed % 4]


def test_chosen_and_rejected_by_a_judge(tmp_path: Path) -> None:
    """Proves SYS-F-002: n answers, scores of 1 to 10 read from the judge, the best against the worst; scores and teacher are in the lineage."""
    generator, teacher = taught("preference", judge, num_rows=2, prompts="domain", samples=8, domain=domain_file(tmp_path), margin=0.2, good=0.4)
    rows, _ = parted(generator)
    assert [row.content["prompt"] for row in rows] == [[{"role": "user", "content": seed.instruction}] for seed in generator.domain.seeds]
    for row in rows:
        chosen, rejected = row.content["chosen"][0], row.content["rejected"][0]
        assert chosen["role"] == rejected["role"] == "assistant"
        assert len(chosen["content"]) > len(rejected["content"])
        scores = row.lineage["scores"]
        assert scores["score_by"] == "judge" and scores["chosen"] - scores["rejected"] >= 0.2
        assert row.lineage["teacher"]["name"] == "tiny" and row.lineage["prompt"].startswith("tiny/seed ")
    judged = [request for request in teacher.asked if request.messages[-1].content.startswith("Judge ")]
    assert len(judged) < 16, "equal answers are judged once"
    assert {request.temperature for request in judged} == {0.25}
    assert {request.temperature for request in teacher.asked if request not in judged} == {1.0}


def test_ties_and_bad_answers_are_left_out(tmp_path: Path) -> None:
    """One prompt each: all good, all bad, one answer only, failures only, the judge says nothing, and one pair."""
    names = ["good", "bad", "same", "down", "mute", "fine"]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {name} here?", "answer": "42"}) + "\n" for name in names), encoding="utf-8")

    def say(request: ChatRequest) -> Any:
        last = request.messages[-1].content
        if last.startswith("Judge "):
            return "no idea" if "mute" in last else "9" if "great" in last else "2"
        name = last.split()[2]
        if name == "down":
            return Failure("unreachable", "gone")
        return {"same": "always", "good": f"great {request.seed}", "mute": f"mute {request.seed}"}.get(
            name, f"{'great' if name == 'fine' and request.seed % 2 else 'poor'} {request.seed}"
        )

    generator, _ = taught("preference", say, num_rows=9, prompts=str(path), samples=6, domain=domain_file(tmp_path))
    rows, rejected = parted(generator)
    assert [row.content["prompt"][0]["content"] for row in rows] == ["What is fine here?"]
    assert [item.reason for item in rejected] == ["tie", "all_bad", "too_few_answers", "unreachable", "too_few_answers"]
    assert generator.tally["samples_unreachable"] == 6 and generator.tally["samples_unscored"] == 6
    assert "no more prompts" in generator.ended


def test_a_verifier_knows_the_answer(tmp_path: Path) -> None:
    """Proves SYS-F-002: prompts of a template set, whose answers are known, scored by a program; nobody is asked to judge."""

    def sums(request: ChatRequest) -> str:
        words = request.messages[-1].content.strip("?.").split()
        right = eval(" ".join(words[-3:]))
        return f"That is {right}." if request.seed % 3 else f"That is {right + 1}."

    generator, teacher = taught("preference", sums, num_rows=8, prompts="arithmetic", score_by="exact_answer", samples=6, domain="math")
    rows, rejected = parted(generator)
    assert len(rows) == 8 and {item.reason for item in rejected} <= {"all_bad", "tie", "too_few_answers"}
    assert not any("Problem:" in request.messages[-1].content for request in teacher.asked)
    for row in rows:
        assert (row.lineage["scores"]["chosen"], row.lineage["scores"]["rejected"]) == (1.0, 0.0)
        assert row.lineage["prompt"].startswith("arithmetic/")
    assert [source.name for source in generator.sources()] == ["math", "tiny", "arithmetic"]


def test_the_teacher_invents_the_prompts(tmp_path: Path) -> None:
    def say(request: ChatRequest) -> str:
        last = request.messages[-1].content
        if last.startswith("Ask about"):
            return f"What about number {request.seed}?"
        return "word " * (1 + request.seed % 20)

    generator, _ = taught("preference", say, num_rows=3, prompts="instruct", score_by="length", words=10, domain=domain_file(tmp_path))
    rows, rejected = parted(generator)
    assert len(rows) == 3
    assert all(row.content["prompt"][0]["content"].startswith("What about number") for row in rows)
    assert not Counter(item.reason for item in rejected) - Counter({"tie": 99, "all_bad": 99, "too_few_answers": 99})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"score_by": "regex"}, "generator.pattern"),
        ({"score_by": "exact_answer", "prompts": "instruct"}, "answer is known"),
        ({"prompts": "arithmetics"}, "generator.prompts=arithmetic"),
        ({"prompts": "none.jsonl"}, "none.jsonl"),
        ({"domain": "no_judge"}, "judge_prompt"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_asked(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    domain = domain_file(tmp_path, DOMAIN.rpartition("judge_prompt")[0]) if changes.get("domain") else domain_file(tmp_path)
    with pytest.raises(InputError, match=word):
        taught("preference", judge, **{"num_rows": 1, **changes, "domain": domain})
