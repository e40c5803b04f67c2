"""Three layers stand for many: what is counted, followed and dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from largeforge.adapter.config import FullConfig, LoRAConfig
from largeforge.adapter.full import Full
from largeforge.adapter.lora import LoRA
from largeforge.batch import BatchShape
from largeforge.contract import LoadedModel, Reference
from largeforge.method.config import SFTConfig
from largeforge.method.sft import SFT
from largeforge.model.config import Shape
from largeforge.model.shape import network_config
from largeforge.plan.ledger import Event, Segment
from largeforge.plan.step import Trace, batch_values, settle, trace_step
from largeforge.plan.timeline import Weights, timeline


def traced(*, layers: int, rank: int, whole: bool, packed: bool = False, checkpointing: bool = False) -> tuple[Trace, Weights]:
    from transformers import AutoModelForCausalLM

    shape = Shape(
        model_type="llama",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        rope_theta=10000.0,
    )
    adapter: Any = Full(FullConfig(_target_="x"))
    if rank:
        adapter = LoRA(LoRAConfig(_target_="x", r=rank, alpha=16.0, dropout=0.0, target_modules="all-linear", rslora=False, dora=False))
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(network_config(shape), dtype=torch.bfloat16 if rank else torch.float32)  # type: ignore[no-untyped-call]
        network = adapter.apply(network)
    network.train()
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in network.parameters()]
    weights = Weights(tuple(size for size, learns in sizes if learns), tuple(size for size, learns in sizes if not learns))
    method = SFT(SFTConfig(_target_="x", learning_rate=1e-3, train_on="answer"), model=LoadedModel(network, None, "", Reference("model", "x")))
    settle(method, on_cpu=True)
    batch = BatchShape(4, 96, 4 * 40, 4 * 96, packed)
    trace = trace_step(method, shapes=[batch, batch], precision="bf16", checkpointing=checkpointing, mean_tokens=32, whole=whole)
    return trace, weights


@pytest.mark.parametrize(("rank", "packed", "checkpointing"), [(8, True, False), (0, False, False), (0, False, True)])
def test_three_layers_stand_for_five(rank: int, packed: bool, checkpointing: bool) -> None:
    short, weights = traced(layers=5, rank=rank, whole=False, packed=packed, checkpointing=checkpointing)
    whole, _ = traced(layers=5, rank=rank, whole=True, packed=packed, checkpointing=checkpointing)
    assert (short.num_layers, short.depth) == (3, 5)
    assert whole.num_layers == 5
    ours, full = timeline(short, weights).at_peak(), timeline(whole, weights).at_peak()
    for name, size in full.items():
        assert ours[name] == pytest.approx(size, rel=0.02, abs=100_000), name
    assert sum(ours.values()) == pytest.approx(sum(full.values()), rel=0.02)


def test_only_weights_gradients_and_state_are_left() -> None:
    trace, weights = traced(layers=5, rank=8, whole=False)
    left = timeline(trace, weights).at_end()
    assert left["weights"] == weights.total
    assert left["gradients"] == sum(weights.learning)
    assert left["optimizer"] == pytest.approx(2 * sum(weights.learning), rel=1e-3)
    assert left["activations"] + left["logits"] < 0.02 * sum(timeline(trace, weights).at_peak().values())


def test_a_timeline_by_hand() -> None:
    """Five layers of which three were run; each keeps 10 forward, its neighbour's 3 come and go, each makes a gradient of 5."""
    forward = [
        Segment("forward", 0, [Event(0, 10), Event(1, 3)]),
        Segment("forward", 1, [Event(2, 10), Event(1, -3), Event(3, 3)]),
        Segment("forward", 2, [Event(4, 10), Event(3, -3), Event(5, 3)]),
    ]
    head = [Segment("head", None, [Event(6, 100), Event(6, -100), Event(5, -3)])]
    backward = [
        Segment("backward", 2, [Event(4, -10), Event(7, 5)]),
        Segment("backward", 1, [Event(2, -10), Event(8, 5)]),
        Segment("backward", 0, [Event(0, -10), Event(9, 5)]),
    ]
    trace = Trace([*forward, *head, *backward, Segment("step")], frozenset({7, 8, 9}), num_layers=3, depth=5, state_factor=2.0, scratch_factor=0.0)
    line = timeline(trace, Weights(learning=(5,) * 5, frozen=(1000,)))
    assert line.unmatched == 0
    assert line.at_peak() == {"weights": 1025, "gradients": 0, "optimizer": 50, "gathered": 0, "activations": 53, "logits": 100}
    assert line.at_end() == {"weights": 1025, "gradients": 25, "optimizer": 50, "gathered": 0, "activations": 0, "logits": 0}


def test_a_batch_has_the_shape_that_was_asked_for() -> None:
    ids, positions, supervised = batch_values(BatchShape(2, 10, 7, 20, True), mean_tokens=4)
    assert ids.shape == positions.shape == supervised.shape == (2, 10)
    assert positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert supervised.sum() == 7
    assert not supervised[positions == 0].any()
    assert batch_values(BatchShape(2, 10, 7, 20, False), mean_tokens=4)[1][1].tolist() == list(range(10))
