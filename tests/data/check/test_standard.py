"""All checks together: clean rows, cuts into shards, the report, the verdict."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from largeforge.build import build
from largeforge.data.check import spill
from largeforge.data.check.config import NothingConfig, StandardConfig
from largeforge.data.check.nothing import Nothing
from largeforge.data.check.standard import CHECKS, Standard
from largeforge.data.rows import Kind, Row
from largeforge.errors import CheckFailed, InputError
from largeforge.report import write_report
from tests.data.check.clean import check, clean_rows, config, shipped_values


def defective_rows(num_rows: int = 1000) -> list[Row]:
    """Rows with a bit of everything."""
    rows = clean_rows(num_rows=num_rows)
    draw = random.Random(3)
    for number in range(0, num_rows, 20):
        row = rows[number]
        content = dict(row.content)
        what = number // 20 % 6
        if what == 0:
            content = dict(rows[number + 3].content)
        elif what == 1:
            content["messages"] = [*content["messages"][:-1], {"role": "assistant", "content": "TODO"}]
        elif what == 2:
            content["messages"] = [{"role": "assistant", "content": "x"}]
        elif what == 3:
            content["label"] = "rare"
        elif what == 4:
            content["messages"] = [*content["messages"][:-1], {"role": "assistant", "content": "She is stupid. " * 2000}]
        else:
            content = {"messages": rows[number + 7].content["messages"]}
        rows[number] = replace(row, content=content, split=draw.choice(["train", "test"]))
    return rows


@pytest.mark.parametrize("kind", ["messages", "preference", "text"])
def test_clean_rows_raise_no_finding(kind: Kind) -> None:
    """1,500 rows of each kind through every check with the shipped thresholds. Proves SYS-F-003."""
    assert check(clean_rows(kind, 1500)) == []
    assert check(clean_rows(kind, 30, seed=1)) == []
    assert check([]) == []


def test_cuts_and_files_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows are cut into shards, counted elsewhere and sent by pickle, in memory or in files: findings and numbers are the same."""
    rows = defective_rows(600)
    told = []
    for number, (cut, buffer) in enumerate([(600, 1 << 30), (600, 1), (83, 5000)]):
        monkeypatch.setattr(spill, "BUFFER_BYTES", buffer)
        settings = config(duplicates={"near_share": 0.0, "sample": 500}, quality={"low": 1.0, "max_low_share": 0.0, "sample": 400})
        standard: Standard = build(settings, seed=3, folder=tmp_path / f"records{number}")
        for begin in range(0, len(rows), cut):
            fresh = pickle.loads(pickle.dumps(standard.fresh()))
            standard.merge(pickle.loads(pickle.dumps(fresh.look(rows[begin : begin + cut]))))
        if buffer == 1:
            assert len(list((tmp_path / f"records{number}").rglob("*.bin"))) > 100
        told.append((standard.findings(), standard.metrics()))
    assert len({finding.check for finding in told[0][0]}) >= 7
    assert any("nearly" in finding.message for finding in told[0][0])
    assert all(one == told[0] for one in told[1:])


def test_state_is_bounded() -> None:
    """What a worker sends grows with the rows by hashes and compressed texts alone, and what is collected stays in files."""
    standard = Standard(config())
    for begin in range(0, 20_000, 4000):
        rows = [Row({"text": f"Row {number} says {number * 7919 % 100_003} and little more."}, f"rows:{number}") for number in range(begin, begin + 4000)]
        part = standard.fresh().look(rows)
        assert len(pickle.dumps(part)) < 4000 * 450
        standard.merge(part)
    held = pickle.dumps(standard._total())
    assert len(held) < 4 * spill.BUFFER_BYTES


def test_findings_are_ordered_and_the_report_reads_well(tmp_path: Path) -> None:
    standard = Standard(config()).look(defective_rows(600))
    severities = [finding.severity for finding in standard.findings()]
    assert severities == sorted(severities, key=["error", "warning", "note"].index) and severities[0] == "error"
    write_report(tmp_path, title="prepare", sections=standard.sections(tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert "## Leakage between splits" in text and "| of no kind |" in text
    for picture in ("check_length.png", "check_bias_rows.png", "check_balance_0.png"):
        assert f"({picture})" in text and (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert standard.metrics()["findings_error"] >= 1


@pytest.mark.parametrize(("fail_on", "errors", "warnings"), [("never", False, False), ("error", True, False), ("warning", True, True)])
def test_fail_on_decides(fail_on: str, errors: bool, warnings: bool) -> None:
    """Exit code 4 where a finding is as bad as check.fail_on says, and the report is named."""
    bad = {
        "error": [Row({"text": 3}, "rows:1")],
        "warning": [Row({"text": "N/A"}, "rows:1")],
        "clean": clean_rows(num_rows=5),
    }
    for name, fails in (("error", errors), ("warning", warnings), ("clean", False)):
        verdict = Standard(config(fail_on=fail_on)).look(bad[name]).verdict(report=Path("report.md"))
        assert isinstance(verdict, CheckFailed) == fails, name
        if verdict:
            assert verdict.exit_code == 4 and "report.md" in str(verdict) and "rows do not pass" in str(verdict)


def test_only_and_skip() -> None:
    rows = defective_rows(200)
    assert {finding.check for finding in check(rows, only=["schema", "length"])} <= {"schema", "length"}
    assert "schema" not in {finding.check for finding in check(rows, skip=["schema"])}
    for name in CHECKS:
        assert {finding.check for finding in check(rows, only=[name])} <= {name}
    with pytest.raises(InputError, match="both name length"):
        check(rows, only=["length"], skip=["length"])
    with pytest.raises(InputError, match="leave no check"):
        check(rows, skip=list(CHECKS))


@pytest.mark.parametrize("change", [{"fail_on": "note"}, {"only": ["lenght"]}, {"length": {"z": 0.0}}, {"duplicates": {"similarity": 1.5}}, {"examples": -1}])
def test_bad_settings_are_refused(change: dict[str, Any]) -> None:
    values = dict(shipped_values())
    for name, value in change.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError):
        StandardConfig.model_validate(values)


def test_nothing_has_every_verb(tmp_path: Path) -> None:
    nothing: Nothing = build(NothingConfig.model_validate({"_target_": "largeforge.data.check.nothing.Nothing", "fail_on": "never"}), seed=0)
    nothing.merge(pickle.loads(pickle.dumps(nothing.fresh().look([Row({"text": 3}, "rows:1")]))))
    assert (nothing.findings(), nothing.sections(tmp_path), nothing.metrics(), nothing.verdict(), list(tmp_path.iterdir())) == ([], [], {}, None, [])
    public = {name for name in dir(Standard) if not name.startswith("_")}
    assert public <= set(dir(nothing))


def test_records_of_a_killed_run_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "BUFFER_BYTES", 1)
    rows = defective_rows(100)
    killed = Standard(config(only=["duplicates"]), folder=tmp_path).look(rows)
    again = Standard(config(only=["duplicates"]), folder=tmp_path).look(rows)
    assert again.findings() == check(rows, only=["duplicates"])
    killed.close()


def test_temporary_records_are_taken_away() -> None:
    standard = Standard(config()).look(clean_rows(num_rows=50))
    folder = standard._total().origins.path
    assert folder is not None and folder.parent.is_dir()
    standard.findings()
    standard.close()
    assert not folder.parent.exists()
