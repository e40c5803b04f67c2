"""docs/requirements.yaml and the claims that tests make of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import traceability

SPECIFICATIONS = traceability.ROOT.parent / "shared" / "spec"


def test_every_entry_is_an_id_with_a_sentence() -> None:
    required = traceability.requirements()  # raises on a doubled id, an unknown field, an empty sentence
    assert len(required) == 199
    for one in required:
        assert one.says[0].isupper() or one.says.startswith(("vLLM", "fp16")), one
        assert one.says.endswith("."), one
        assert not (one.so_far and one.not_here), one


def test_every_claim_is_about_a_requirement_that_can_be_proven() -> None:
    required = {one.id: one for one in traceability.requirements()}
    for test, docstring in traceability.docstrings(traceability.ROOT / "tests"):
        unknown = set(traceability.ID.findall(docstring)) - set(required)
        assert not unknown, f"{test} names {unknown}, which docs/requirements.yaml does not hold"
    for one, tests in traceability.claims(traceability.ROOT / "tests").items():
        assert not required[one].not_here, f"{tests} prove {one}, which is said not to be provable here"
        assert not required[one].so_far, f"{tests} prove {one}, of which only a part is said to stand"


@pytest.mark.skipif(not SPECIFICATIONS.is_dir(), reason="the specifications are not in the repository")
def test_no_requirement_is_left_out() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(SPECIFICATIONS.glob("*.md")))
    rows = dict(re.findall(r"^\| ((?:SR|SYS)-[A-Z0-9-]+) \| ([^|]+) \|", text, flags=re.MULTILINE))
    ours = {one.id: one.says for one in traceability.requirements()}
    assert sorted(ours) == sorted(rows)
    assert not [one for one in ours if ours[one] == rows[one]], "in our own words"


def test_claims_are_read_from_docstrings(tmp_path: Path) -> None:
    (tmp_path / "tests" / "part").mkdir(parents=True)
    (tmp_path / "tests" / "part" / "test_x.py").write_text(
        '''
import nothing_of_this_name
pytestmark = pytest.mark.gpu

@pytest.mark.slow
def test_one():
    """Proves SYS-F-010, SYS-F-011 and
    SR-C-004: SYS-F-099 is not claimed."""

def test_two():
    """Says SYS-F-010; Proves SR-F-001."""

def helper():
    """Proves SR-F-002."""
'''
    )
    one, two = "tests/part/test_x.py::test_one (slow, gpu)", "tests/part/test_x.py::test_two (gpu)"
    assert traceability.claims(tmp_path / "tests") == {"SYS-F-010": [one], "SYS-F-011": [one], "SR-C-004": [one], "SR-F-001": [two]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SR-F-001: One.\nSR-F-001: Two.\n", "twice"),
        ("SR-F-1: One.\n", "no requirement"),
        ("SR-F-001: {says: One., reason: none}\n", "no requirement"),
        ("SR-F-001: {says: One., not_here: ''}\n", "no requirement"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "requirements.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        traceability.requirements(tmp_path / "requirements.yaml")


def test_every_id_is_printed_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert traceability.main([]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if traceability.ID.match(line)}
    assert set(lines) == {one.id for one in traceability.requirements()}
    assert " met " in lines["SR-C-001"] and "tests/test_licences.py::test_every_dependency_is_open" in printed
    assert "not provable here" in lines["SR-NF-020"] and "because: takes a year" in printed
    assert "not yet" in lines["SYS-F-030"]
    assert re.search(r"\d+ of \d+ are met \(\d+%", printed)
