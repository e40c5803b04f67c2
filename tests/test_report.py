"""report.md and its curves."""

from __future__ import annotations

import json
from pathlib import Path

from largeforge.report import Section, draw_bars, draw_curves, draw_histogram, write_report


def test_report_holds_tables_and_curves(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        for step in range(1, 6):
            stream.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
        stream.write(json.dumps({"step": 5, "validation_loss": 0.3}) + "\n")
    write_report(tmp_path, title="sft: nano", sections=[Section("Numbers", ("name", "value"), [("a|b", 0.12345)], text="Told.")])
    text = (tmp_path / "report.md").read_text()
    assert "| a\\|b | 0.1235 |" in text and "Told." in text and "![loss](curve_loss.png)" in text
    assert (tmp_path / "curve_loss.png").read_bytes().startswith(b"\x89PNG")
    # one point is no curve of its own; it stands in the picture of the loss
    assert "curve_validation" not in text


def test_curves_show_training_and_validation_together(tmp_path: Path) -> None:
    """Every measure has a picture, whatever the method calls it; what is no curve (memory, the step) has none."""
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        for step in range(1, 41):
            measures = {
                "loss": 2 / step + 0.2 * (step % 3),
                "learning_rate": 1e-3 * (1 - step / 40),
                "preference_accuracy": 1 - 1 / (step + 1),
                "memory_bytes": 1e9,
            }
            stream.write(json.dumps({"step": step, **measures}) + "\n")
            if step % 10 == 0:
                stream.write(json.dumps({"step": step, "validation_loss": 2 / step + 0.3, "validation_preference_accuracy": 0.5}) + "\n")
    assert list(draw_curves(tmp_path)) == ["loss", "preference_accuracy"]
    assert draw_curves(tmp_path / "nowhere") == {}


def test_sections_hold_pictures(tmp_path: Path) -> None:
    """Histograms and bars are drawn for no rows, one row, many, and names that the font has no letters for."""
    histogram = draw_histogram(tmp_path / "lengths.png", [1, 10, 100, 1000], {"train": [1, 0, 5], "test": [0, 2, 0]}, label="characters", log=True)
    for counts in ({"rows": [0]}, {"rows": [3]}):
        draw_histogram(tmp_path / "small.png", [0.0, 1.0], counts, label="score")
    for bars in ([], [("a $x$ label that is very long indeed, and longer than any axis has room for", 0.0, "0")], [("日本", 2.5, "2.5")]):
        draw_bars(tmp_path / "bars.png", bars, label="rows")
    write_report(tmp_path, title="prepare", sections=[Section("Length", text="Told.", pictures=[histogram.name, "bars.png"])])
    text = (tmp_path / "report.md").read_text()
    assert "Told.\n\n![Length](lengths.png)\n\n![Length](bars.png)" in text
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("lengths.png", "small.png", "bars.png"))
