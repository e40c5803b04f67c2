"""self_instruct: the pool grows out of what was kept, and what is shown comes from seeds and pool."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from largeforge.chat import ChatRequest
from tests.data.generator.scripted import domain_file, parted, taught


def grow(request: ChatRequest) -> str:
    last = request.messages[-1].content
    if last.endswith("more"):
        return f"Task 1: What is the colour of number {request.seed}?\n2) Where does {request.seed} live today?\nno number here\n3. Hm"
    return "I do not know." if last.startswith("Where") else f"It is green, as {last.split()[-1]} says."


def test_the_pool_grows(tmp_path: Path) -> None:
    """Proves SYS-F-001: lists of new instructions, parsed and answered; later rounds are shown what earlier ones made (Wang et al. 2022)."""
    generator, teacher = taught("self_instruct", grow, num_rows=12, round=2, per_request=3, shots=4, own_shots=2, domain=domain_file(tmp_path))
    rows, rejected = parted(generator)
    assert len(rows) == 12
    assert Counter(item.reason for item in rejected) == {"too_short": 6}
    growing = ["\n".join(turn.content for turn in request.messages) for request in teacher.asked if request.messages[-1].content == "3 more"]
    own = [len(re.findall("number|live", prompt)) for prompt in growing]
    assert own[:2] == [0, 0] and set(own[2:]) == {2}, "the first round knows only seeds, then two of its own are shown"
    assert all("What is grey made of" in prompt and "What is pink made of" in prompt for prompt in growing)
    assert rows[0].origin == "self_instruct tiny, try 0.1"
    assert rows[0].lineage["prompt"] == "tiny/self_instruct"


def test_only_what_was_kept_joins_the_pool(tmp_path: Path) -> None:
    """An instruction whose answer was too short is never shown."""
    generator, teacher = taught("self_instruct", grow, num_rows=4, round=2, min_words=5, domain=domain_file(tmp_path))
    rows, rejected = parted(generator)
    assert len(rows) == 4 and "too_short" in {item.reason for item in rejected}
    assert all(text.startswith("What is the colour") for text in generator.pool)
    growing = [request.messages for request in teacher.asked if request.messages[-1].content.endswith("more")]
    assert growing and not any("live" in turn.content for turns in growing for turn in turns)


def test_a_list_without_numbers_is_malformed(tmp_path: Path) -> None:
    generator, _ = taught("self_instruct", lambda request: "Some prose.", num_rows=2, attempts=2, domain=domain_file(tmp_path))
    rows, rejected = parted(generator)
    assert not rows and {item.reason for item in rejected} == {"malformed"}
