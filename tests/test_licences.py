"""The licences of what LargeForge installs."""

from __future__ import annotations

from email.message import Message

import pytest

from scripts import licences


def metadata(*headers: tuple[str, str]) -> Message:
    message = Message()
    for key, value in headers:
        message[key] = value
    return message


def test_every_dependency_is_open(capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SR-C-001: everything the package and its extras install here names an open licence (NVIDIA's own drivers' libraries apart, which are told)."""
    assert licences.main() == 0, capsys.readouterr().out
    names = licences.closure("largeforge", licences.EXTRAS)
    assert {"torch", "transformers", "lightning", "hydra-core", "pydantic", "pytest", "ruff", "markupsafe"} <= set(names)  # the last one is four steps away


@pytest.mark.parametrize(
    ("headers", "text", "verdict"),
    [
        ([("License-Expression", "Apache-2.0 AND (MIT OR GPL-3.0-only)")], "Apache-2.0 AND (MIT OR GPL-3.0-only)", "open"),
        ([("License-Expression", "MIT AND GPL-3.0-only")], "MIT AND GPL-3.0-only", "unknown"),
        ([("License", "Apache 2.0 License")], "Apache-2.0", "open"),
        ([("License", "Copyright\nall of it"), ("Classifier", "License :: OSI Approved :: BSD License")], "BSD-3-Clause", "open"),
        ([("License", "UNKNOWN"), ("Classifier", "License :: Other/Proprietary License")], "Other/Proprietary-License", "unknown"),
        ([("License", "NVIDIA Proprietary Software"), ("Classifier", "License :: OSI Approved :: MIT License")], "NVIDIA Proprietary Software", "unknown"),
        ([], "no licence is named", "unknown"),
    ],
)
def test_what_a_distribution_says(headers: list[tuple[str, str]], text: str, verdict: str) -> None:
    assert licences.licence_of("some-library", metadata(*headers)) == licences.Licence("some-library", text, verdict)


def test_nvidia_is_told_apart() -> None:
    assert licences.licence_of("nvidia-cudnn-cu13", metadata(("License", "NVIDIA Proprietary Software"))).verdict == "proprietary"


def test_an_unknown_licence_fails_with_its_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(licences, "OPEN", licences.OPEN - {"ISC"})
    assert licences.main() == 1
    assert "shellingham: 'ISC' is no open licence" in capsys.readouterr().out
