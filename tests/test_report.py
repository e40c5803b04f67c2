"""report.md and its curves."""

from __future__ import annotations

import json
from pathlib import Path

from largeforge.report import Section, write_report


def test_report_holds_tables_and_curves(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        for step in range(1, 6):
            stream.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
        stream.write(json.dumps({"step": 5, "validation_loss": 0.3}) + "\n")
    write_report(tmp_path, title="sft: nano", sections=[Section("Numbers", ("name", "value"), [("a|b", 0.12345)], text="Told.")])
    text = (tmp_path / "report.md").read_text()
    assert "| a\\|b | 0.1235 |" in text and "Told." in text and "![loss](curve_loss.png)" in text
    assert (tmp_path / "curve_loss.png").read_bytes().startswith(b"\x89PNG")
    # one point is no curve
    assert "validation_loss" not in text
