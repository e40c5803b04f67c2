"""A machine's numbers are kept and read back; damaged ones give way to those that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.plan.calibration import SHIPPED_CPU, SHIPPED_CUDA, Calibration, calibration_path, keep_calibration, read_calibration
from scripts.benches.plan import relative_line


def test_kept_numbers_are_read_back(cache: Path) -> None:
    assert read_calibration("cpu") == SHIPPED_CPU
    ours = Calibration(123, 1.25, "measured")
    assert keep_calibration(ours).is_relative_to(cache)
    assert read_calibration("cpu") == ours
    assert read_calibration("cuda") == SHIPPED_CUDA
    calibration_path().write_text('{"runtime_bytes": 1', encoding="utf-8")
    assert read_calibration("cpu") == SHIPPED_CPU


def test_a_line_is_found() -> None:
    assert relative_line([(x, 1.5 * x + 100.0) for x in (10.0, 300.0, 2000.0)]) == pytest.approx((1.5, 100.0))
