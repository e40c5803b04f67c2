"""Seconds until an engine must be ready: obeyed by every choice of serve and engine, or refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.config.compose import compose
from largeforge.errors import EXIT_USER, ConfigError

NOWHERE = "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("engine=echo",), "was not ready after 0.05 s"),
        (("engine=hf", "model=nano"), "was not ready after 0.05 s"),
        (("serve=engine", "engine=echo", "serve.port=18199"), "was not ready after 0.05 s"),
        (("engine=remote", f"engine.url={NOWHERE}"), f"{NOWHERE} does not answer"),
        (("serve=door", f"serve.engine_url={NOWHERE}"), f"{NOWHERE} does not answer"),
    ],
    ids=["echo", "hf", "engine alone", "remote", "door alone"],
)
def test_it_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    places = [f"folder={tmp_path / 'run'}", *([] if "serve=engine" in words else ["serve.port=0", "serve.grpc_port=0", "store.path=keys.sqlite3"])]
    begin = time.monotonic()
    assert main(["task=serve", *words, "serve.start_timeout_s=0.05", *places]) == EXIT_USER
    assert time.monotonic() - begin < 20
    said = capfd.readouterr()
    assert says in said.err + said.out


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        compose(["task=serve", "model=nano", *words], files=True)
    return str(refused.value)


@pytest.mark.parametrize("serve", ["all", "engine"])
def test_it_is_refused_where_vllm_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: str) -> None:
    """On the command line, in the environment and in a recipe; what says so instead is told."""
    monkeypatch.chdir(tmp_path)
    words = (f"serve={serve}", "engine=vllm")
    said = refusal(*words, "serve.start_timeout_s=77")
    assert "serve.start_timeout_s = 77" in said and "command line" in said
    assert said.rstrip().endswith(f"python -m largeforge task=serve model=nano serve={serve} engine=vllm engine.start_timeout_s=77"), said
    Path("mine.yaml").write_text("# python -m largeforge recipe=./mine.yaml\ndefaults:\n  - override /task: serve\nserve:\n  start_timeout_s: 77\n")
    assert "mine.yaml:5" in refusal("recipe=./mine.yaml", *words)
    monkeypatch.setenv("LARGEFORGE_SERVE__START_TIMEOUT_S", "77")
    assert "LARGEFORGE_SERVE__START_TIMEOUT_S" in refusal(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("engine=vllm", "engine.start_timeout_s=77"),
        ("serve=door", f"serve.engine_url={NOWHERE}", "serve.start_timeout_s=77"),
        ("serve=door", "engine=vllm", f"serve.engine_url={NOWHERE}", "serve.start_timeout_s=77"),
        ("engine=hf", "serve.start_timeout_s=77"),
    ],
)
def test_it_is_not_refused(words: tuple[str, ...]) -> None:
    assert compose(["task=serve", *words], files=True).task == "serve"
