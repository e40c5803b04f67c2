"""A machine's numbers are kept and read back; damaged ones give way to those that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.plan.calibration import SHIPPED_CPU, SHIPPED_CUDA, Calibration, calibration_path, keep_calibration, read_calibration
from scripts.benches.plan import Point, fit


def test_kept_numbers_are_read_back(cache: Path) -> None:
    assert read_calibration("cpu") == SHIPPED_CPU
    ours = Calibration(123, 45, 1.25, "measured")
    assert keep_calibration(ours).is_relative_to(cache)
    assert read_calibration("cpu") == ours
    assert read_calibration("cuda") == SHIPPED_CUDA
    calibration_path().write_text('{"runtime_bytes": 1', encoding="utf-8")
    assert read_calibration("cpu") == SHIPPED_CPU


def test_three_numbers_are_found() -> None:
    """Growth = kept + 100 + 0.2 a kernel + 1.5 x what passes."""
    forms = [(kernels, kept, passing) for kernels in (50, 400) for kept, passing in ((20, 10), (50, 300), (700, 900))]
    points = [Point(kernels, kept, passing, kept + 100 + 0.2 * kernels + 1.5 * passing) for kernels, kept, passing in forms]
    assert fit(points) == pytest.approx((100, 0.2, 1.5))
