"""Devices by name, and the one that is here."""

from __future__ import annotations

import pytest

from largeforge.errors import ConfigError
from largeforge.plan.devices import GIB, device_for, found_cpu, table


def test_every_name_of_the_table_is_a_device() -> None:
    assert {"cpu", "rtx3060-12gb", "rtx4090", "rtx5090", "a100-80gb", "h100-80gb", "h200-141gb", "b200"} <= set(table())
    for name in table():
        device = device_for(name, kind="cpu")
        assert device.name == name
        assert 8 * GIB < device.memory_bytes < 300 * GIB or device.kind == "cpu"
        assert device.title


def test_a_name_may_be_written_large() -> None:
    assert device_for("RTX4090", kind="cpu").memory_bytes == int(23.5 * GIB)


def test_true_is_what_is_here() -> None:
    device = device_for(True, kind="cpu")
    assert device == found_cpu()
    assert device.found
    assert device.memory_bytes > GIB


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest: rtx4090") as caught:
        device_for("rtx4009", kind="cpu")
    assert "plan=rtx4090" in str(caught.value)
