"""Frozen weights in 4 and 8 bits: as they are loaded, as they train, as a plan counts them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from largeforge.config.compose import compose
from largeforge.contract import LoadedModel
from largeforge.errors import ConfigError, MissingExtra
from largeforge.run import execute
from tests.tiny_models import part

CHOICES = ["nf4", "int8"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LARGEFORGE_CACHE", str(cache))


def load(choice: str, *, trainable: bool = True, precision: str = "fp32", **changes: Any) -> LoadedModel:
    adapter = part("adapter", "lora", r=4, live={"seed": 1}) if trainable else None
    found: LoadedModel = part("model", "nano").load(trainable=trainable, precision=precision, quant=part("quant", choice, **changes), adapter=adapter)
    return found


def loss_of(network: Any) -> torch.Tensor:
    ids = torch.arange(48).view(2, 24) * 7 % 4000
    logits = network(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def gradient(network: Any) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss_of(network).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("choice", CHOICES)
def test_blocks_are_packed_and_the_rest_is_not(choice: str) -> None:
    network: Any = load(choice, trainable=False).network
    layer = network.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == (torch.uint8 if choice == "nf4" else torch.int8)
    assert layer.weight.numel() * layer.weight.element_size() == 256 * 512 // (2 if choice == "nf4" else 1)
    assert network.get_output_embeddings().weight.dtype.is_floating_point and network.model.norm.weight.dtype.is_floating_point


@pytest.mark.parametrize("choice", CHOICES)
def test_equal_weights_are_equal_bits(choice: str) -> None:
    """What exact resume stands on: frozen weights come from their source, and quantize to the same bytes."""
    one, two = (load(choice).network.state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one if isinstance(one[name], torch.Tensor))


@pytest.mark.parametrize("choice", CHOICES)
def test_only_the_adapter_learns_in_fp32(choice: str) -> None:
    network: Any = load(choice).network
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {name for name, p in network.named_parameters() if "lora_" in name}
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    assert all(float(grad.abs().max()) > 0 for grad in gradient(network).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_validation_changes_no_gradient(precision: str) -> None:
    """bitsandbytes repacks 4-bit weights on a CPU for a kernel without a gradient when it is asked in evaluation mode; training must not meet that."""
    network: Any = load("nf4", precision=precision).network
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        before = gradient(network)
        network.eval()
        with torch.no_grad():
            asked = loss_of(network)
        network.train()
        after = gradient(network)
    assert torch.isfinite(asked)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_loss_is_near_that_of_the_weights_as_they_are(choice: str) -> None:
    """Proves SR-F-003: QLoRA's loss stays within 2 % of LoRA's over a short run."""
    losses = {}
    for quant in ("none", choice):
        words = ["task=sft", "model=nano", "data=demo", "data.num_rows=64", "trainer.max_steps=12", "trainer=cpu", "trainer.precision=fp32", "tracker=none"]
        assert execute(compose([*words, "benchmark=none", f"quant={quant}", f"folder={quant}"])) == 0
        losses[quant] = json.loads(Path(quant, "result.json").read_text())["metrics"]["loss"]
    assert losses[choice] == pytest.approx(losses["none"], rel=0.02)
    assert losses[choice] != losses["none"]
    # the adapter stands on the base as it is, and loads with it held either way
    for words in ([], [f"quant={choice}"]):
        assert execute(compose(["task=chat", f"model={choice}/artifact", "prompt=hi", "engine.max_tokens=2", *words])) == 0


def test_quantized_weights_cannot_learn() -> None:
    with pytest.raises(ConfigError, match="quantized weights cannot learn"):
        compose(["task=sft", "quant=nf4", "adapter=none"])


@pytest.mark.parametrize("choice", CHOICES)
def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest))
    with pytest.raises(MissingExtra) as caught:
        part("quant", choice)
    assert "largeforge[quant]" in caught.value.next_step


@pytest.mark.parametrize(("choice", "bytes_of_layer"), [("nf4", 65536 + 2048 + 4 * 8), ("int8", 131072 + 512 * 4)])
def test_an_outline_has_the_size_of_what_is_loaded(choice: str, bytes_of_layer: int) -> None:
    """512 x 256 weights: half a byte each, a byte for 64 of them, a float for 256 of those; or a byte each and a float a row."""
    adapter = part("adapter", "lora", r=4, live={"seed": 1})
    network: Any = part("model", "nano").outline(trainable=True, precision="bf16", quant=part("quant", choice), adapter=adapter).network
    layer = network.base_model.model.model.layers[0].mlp.up_proj.base_layer
    assert sum(p.numel() * p.element_size() for p in layer.parameters()) == bytes_of_layer
    plain: Any = part("model", "nano").outline(trainable=True, precision="bf16", quant=part("quant", "none"), adapter=adapter).network
    stands_for = sum(getattr(p, "stands_for", p.numel()) for p in network.parameters())
    assert stands_for == sum(p.numel() for p in plain.parameters())
