"""What is told where a kind of attention, an architecture or quantized weights cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from largeforge.errors import ModelError
from largeforge.model.base import read_network
from tests.tiny_models import part, values


@pytest.mark.parametrize("kind", ["flash", "flex"])
def test_kinds_of_gpu_are_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is fetched; a plan needs no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = part("model", "hf", path="someone/something", attention=kind)
    with pytest.raises(ModelError, match=f"model.attention={kind} needs an NVIDIA GPU"):
        model.load(trainable=False)
    assert part("model", "nano", attention=kind).outline(trainable=False).network.config._attn_implementation == "sdpa"


def test_missing_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelError, match="needs flash-attn, which is not installed"):
        part("model", "nano", attention="flash").load(trainable=False)


@pytest.mark.parametrize("change", [{"head_dim": 63}, {"hidden_size": 255}, {"model_type": "mamba"}, {"model_type": "whisper"}])
def test_impossible_shape(change: dict[str, object]) -> None:
    shape = {**values("model", "nano")["shape"], **change}
    with pytest.raises(ModelError, match="model.shape cannot be built"):
        part("model", "nano", shape=shape).outline(trainable=False)


def test_quantized_already(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="quantized already"):
        read_network(tmp_path, dtype=torch.float32, attention="sdpa", arguments={"quantization_config": object()})
