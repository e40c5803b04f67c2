"""SFT's loss: by hand, against transformers' own, against TRL's trainer, packed and not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import MistralConfig, MistralForCausalLM

from largeforge.contract import LoadedModel
from largeforge.method.attention import ExampleAttention
from largeforge.method.head import SupervisedHead
from tests.method.conftest import VOCABULARY, Row, one_step, packed, padded, relative_difference, sft


def test_loss_by_hand(tiny: Callable[..., LoadedModel]) -> None:
    """Proves SYS-F-010, SR-F-001: with a head of zeros every token has probability 1 / V, so the mean is log V."""
    model = tiny(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.network.lm_head.weight)
    _, told = one_step(sft(model), [padded([([5, 6, 7], [False, True, True])])])
    assert told["loss"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_only_supervised_tokens_count(tiny: Callable[..., LoadedModel], rows: list[Row]) -> None:
    """The loss is transformers' own with -100 on every other label."""
    batch = padded(rows)
    labels = torch.where(batch.supervised_BT, batch.input_ids_BT, -100)
    network = tiny().network
    expected = network(input_ids=batch.input_ids_BT, labels=labels).loss
    _, told = one_step(sft(tiny()), [batch])
    assert told["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)


def test_packed_equals_unpacked_per_token(tiny: Callable[..., LoadedModel], rows: list[Row]) -> None:
    """No token sees another example: each one's log-probability is the same in a packed row, through the training call's own forward."""
    network = tiny().network.train()
    head = SupervisedHead(network)
    alone = torch.cat([head.logits(padded([row])) for row in rows[:8]])
    together = head.logits(packed(rows[:8]))
    assert torch.allclose(alone.log_softmax(-1), together.log_softmax(-1), atol=1e-5)
    # the same rows with positions that go on see each other: the comparison above can fail
    leaking = packed(rows[:8])
    leaking.position_ids_BT = torch.arange(leaking.input_ids_BT.shape[1])[None]
    assert not torch.allclose(alone.log_softmax(-1), head.logits(leaking).log_softmax(-1), atol=1e-2)


def test_both_ways_of_keeping_examples_apart_are_one(tiny: Callable[..., LoadedModel], rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention example by example (on a CPU) gives the loss and gradient of transformers' block mask (elsewhere)."""
    found, told = one_step(sft(tiny()), [packed(rows)])
    monkeypatch.setattr(ExampleAttention, "_usable", lambda *arguments: False)
    expected, masked = one_step(sft(tiny()), [packed(rows)])
    assert told["loss"] == pytest.approx(masked["loss"], rel=1e-6)
    assert relative_difference(found, expected) < 1e-6


@pytest.mark.parametrize(("window", "exact"), [(None, True), (4, False)])
def test_a_sliding_window_is_found(tiny: Callable[..., LoadedModel], rows: list[Row], window: int | None, exact: bool) -> None:
    """A model that looks back only so far is left to transformers' mask."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(1)
    network = MistralForCausalLM(MistralConfig(**shape, vocab_size=VOCABULARY, sliding_window=window, attn_implementation="sdpa", initializer_range=0.5))
    head = SupervisedHead(network)
    head.nll(packed(rows))
    assert head.attention.exact is exact


@pytest.mark.parametrize("trainable", ["hidden", "weight"])
def test_chunks_give_the_gradient_of_cross_entropy(monkeypatch: pytest.MonkeyPatch, trainable: str) -> None:
    """Sums, gradient of the hidden states and of the head's weight equal cross-entropy's, whatever the chunk."""
    from largeforge.method import head

    monkeypatch.setattr(head, "CHUNK", 5)
    torch.manual_seed(3)
    hidden, weight, targets = torch.randn(17, 8), torch.randn(31, 8), torch.randint(0, 31, (17,))
    wanted = {"hidden": hidden, "weight": weight}[trainable].requires_grad_()
    expected = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (gradient,) = torch.autograd.grad(expected * 0.25, wanted)
    found = head.ChunkedNLL.apply(hidden, weight, targets)
    (own,) = torch.autograd.grad(found * 0.25, wanted)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(own, gradient, rtol=1e-5, atol=1e-6)


class _Capped(torch.nn.Module):
    """A head whose logits are capped afterwards, as some models do."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.inner = network

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, **arguments: Any) -> Any:
        output = self.inner(**arguments)
        output.logits = 2.0 * torch.tanh(output.logits / 2.0)
        return output


def test_a_head_with_something_behind_it_is_found(tiny: Callable[..., LoadedModel], rows: list[Row]) -> None:
    """What follows the head is in the loss: capped logits take the general way, plain ones the chunked way."""
    plain = SupervisedHead(tiny().network)
    plain.nll(padded(rows))
    assert plain.chunked is True
    network = tiny(initializer_range=0.5).network
    capped = SupervisedHead(_Capped(network))
    found = capped.nll(padded(rows))
    assert capped.chunked is False
    batch = padded(rows)
    logits = 2.0 * torch.tanh(network(input_ids=batch.input_ids_BT).logits / 2.0)
    expected = functional.cross_entropy(logits[:, :-1][batch.supervised_BT[:, 1:]], batch.input_ids_BT[batch.supervised_BT], reduction="sum")
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_equals_trl(tiny: Callable[..., LoadedModel], rows: list[Row], tmp_path: Path) -> None:
    """Loss and gradient equal TRL's SFTTrainer on the same token ids and masks, relative 1e-5 in fp32."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    data = Dataset.from_list([{"input_ids": ids, "completion_mask": [int(flag) for flag in mask]} for ids, mask in rows])
    arguments = TRLConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        completion_only_loss=True,
        per_device_train_batch_size=32,
    )
    network = tiny(pad_token_id=0).network
    trainer = SFTTrainer(model=network, args=arguments, train_dataset=data, processing_class=_pad_only())
    inputs = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    assert int((inputs["labels"] != -100).sum()) == sum(sum(mask) for _, mask in rows)
    loss = trainer.compute_loss(network, inputs)
    loss.backward()
    theirs = {f"network.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    ours, told = one_step(sft(tiny(pad_token_id=0)), [padded(rows[:10]), packed(rows[10:20]), padded(rows[20:])])
    assert told["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert relative_difference(ours, theirs) < 1e-5


def _pad_only() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="1")), pad_token="0", eos_token="2", unk_token="1")
