"""Every model's YAML is planned from its shape alone: the right number of parameters, no hub, no weights."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from largeforge.errors import ModelError
from tests.tiny_models import CONF, part, values

# as the models' own cards and checkpoints count them
PARAMETERS = {
    "nano": 3_410_176,
    "smollm2": 134_515_008,
    "smollm2_360m": 361_821_120,
    "qwen3_0_6b": 596_049_920,
    "llama3_2_1b": 1_235_814_400,
    "mistral7b": 7_241_732_096,
    "qwen3_8b": 8_190_735_360,
    "llama3_1_8b": 8_030_261_248,
    "llama3_3_70b": 70_553_706_496,
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any) -> None:
        raise AssertionError(f"something connects: {words}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_yaml_is_counted() -> None:
    assert {path.stem for path in (CONF / "model").glob("*.yaml")} == {*PARAMETERS, "hf"}


@pytest.mark.parametrize("choice", PARAMETERS)
def test_parameters(choice: str, cache: Path, no_network: None) -> None:
    """Outlined with LoRA r=16 on every linear layer but the head: the base counts as published, the adapter as r * (in + out)."""
    network = part("model", choice).outline(trainable=True, precision="bf16", adapter=part("adapter", "lora")).network
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert frozen == PARAMETERS[choice]
    assert {p.device.type for p in network.parameters()} == {"meta"} and not cache.exists()
    shape = values("model", choice)["shape"]
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    queries, keys = shape["num_attention_heads"] * shape["head_dim"], shape["num_key_value_heads"] * shape["head_dim"]
    pairs = [(width, queries), (width, keys), (width, keys), (queries, width), (width, inner), (width, inner), (inner, width)]
    assert learning == shape["num_hidden_layers"] * 16 * sum(map(sum, pairs))


def test_unknown_architecture() -> None:
    shape = {**values("model", "mistral7b")["shape"], "model_type": "mistrial"}
    with pytest.raises(ModelError, match="model.shape.model_type=mistrial is no architecture"):
        part("model", "mistral7b", shape=shape).outline(trainable=False)


def test_no_shape_and_not_here(no_network: None) -> None:
    with pytest.raises(ModelError, match="someone/something is not on this machine, and its config gives no shape"):
        part("model", "hf", path="someone/something").outline(trainable=False)
