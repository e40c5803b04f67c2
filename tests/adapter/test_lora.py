"""LoRA: which layers, how fresh weights are drawn, what scale; full fine-tuning beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from largeforge.errors import ConfigError
from tests.tiny_models import part


def network() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        return LlamaForCausalLM(config)


def lora(*, seed: int | None = 0, **changes: Any) -> Any:
    return part("adapter", "lora", live={"seed": seed}, **changes)


def weights(adapted: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}


def test_all_linear() -> None:
    """Proves SYS-F-011: every linear layer but the head learns an update of the rank asked for; the rest is frozen."""
    adapted: Any = lora(r=4, alpha=8).apply(network())
    learning = weights(adapted)
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in learning}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(learning) == 2 * 7 * 2 and not any("lm_head" in name for name in learning)
    assert {p.shape[0] for name, p in learning.items() if "lora_A" in name} == {4}
    assert all("lora_" in name for name in learning)


def test_named_layers() -> None:
    """Proves SYS-F-011: target modules by name."""
    adapted: Any = lora(target_modules=["q_proj", "v_proj"]).apply(network())
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights(adapted)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("wanted", [["q_porj"], ["q_proj", "q_porj"], "q_porj", []])
def test_unknown_layer(wanted: Any) -> None:
    """An unknown name is told with those there are, before peft trains less than was asked."""
    with pytest.raises(ConfigError, match=r"down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj") as caught:
        lora(target_modules=wanted).apply(network())
    assert "adapter.target_modules=[" in str(caught.value) and ("q_proj" in caught.value.next_step)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 32 / 16), (True, 32 / 4)])
def test_update_by_hand(rslora: bool, scale: float) -> None:
    """Proves SYS-F-011: rank and alpha: W x + alpha / r * B A x, with rslora alpha / sqrt(r)."""
    adapted: Any = lora(rslora=rslora).apply(network()).eval()
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        by_hand = x @ layer.base_layer.weight.T + scale * x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        torch.testing.assert_close(layer(x), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_training_starts_from_the_base(dora: bool) -> None:
    """B is zero at first, so logits are the base's; after a change of B they are not."""
    ids = torch.arange(6)[None]
    before = network().eval()(input_ids=ids).logits
    adapted: Any = lora(dora=dora).apply(network()).eval()
    torch.testing.assert_close(adapted(input_ids=ids).logits, before, atol=1e-5, rtol=1e-5)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(p)
    assert (adapted(input_ids=ids).logits - before).abs().max() > 0.01
    assert any("magnitude" in name for name, _ in adapted.named_parameters()) == dora


def test_dropout_only_in_training() -> None:
    adapted: Any = lora(dropout=0.5).apply(network())
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    x = torch.ones(1, 32)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_seed() -> None:
    """The same seed gives the same fresh weights and leaves the global generator alone; without one that generator decides."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = weights(lora(seed=3).apply(network()))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = weights(lora(seed=3).apply(network())), weights(lora(seed=4).apply(network()))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(7)
    one = weights(lora(seed=None).apply(network()))
    torch.manual_seed(7)
    assert all(torch.equal(value, one[name]) for name, value in weights(lora(seed=None).apply(network())).items())


def test_full() -> None:
    """adapter=none lets every parameter learn, in the network it was given."""
    given = network().requires_grad_(False)
    found = part("adapter", "none", live={"seed": 0}).apply(given)
    assert found is given and all(p.requires_grad for p in found.parameters())
