"""Attention over a paged cache: the same tokens as transformers' own, whatever the lengths, windows and heads; refused where it would compute another thing."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from largeforge.chat import Answer, ChatRequest
from largeforge.contract import LoadedModel
from largeforge.engine import batching
from largeforge.engine.answers import every_answer
from largeforge.engine.paged_attention import NAME, Piece, can_page, plan
from tests.engine.conftest import engine

SHAPE: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}


def prompts(lengths: list[int], max_tokens: int) -> list[ChatRequest]:
    chance = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        ids = tuple(torch.randint(5, 4096, (length,), generator=chance).tolist())
        found.append(ChatRequest((), prompt=ids, max_tokens=max_tokens, ignore_end=True))
    return found


def network(kind: str, **changes: Any) -> Any:
    """A tiny network with random weights: full attention, a sliding window, or layers of both kinds; query heads that share keys."""
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    if kind == "full":
        config: Any = LlamaConfig(**SHAPE, **heads)
    elif kind == "sliding":
        config = MistralConfig(**SHAPE, **heads, sliding_window=24)
    else:
        config = Qwen2Config(**SHAPE, **heads, sliding_window=24, use_sliding_window=True, layer_types=["full_attention", "sliding_attention"])
    made: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return made.eval()


def by_generate(made: Any, requests: list[ChatRequest]) -> list[list[int]]:
    found = []
    for request in requests:
        ids = torch.tensor([request.prompt])
        with torch.no_grad():
            out = made.generate(ids, do_sample=False, max_new_tokens=request.max_tokens, eos_token_id=-1, pad_token_id=0)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def said(talking: Any, requests: list[ChatRequest], in_flight: int = 16) -> list[Answer]:
    return list(every_answer(talking, requests, in_flight=in_flight))


@pytest.mark.parametrize("kind", ["full", "sliding", "both"])
def test_equal_to_generate(nano: LoadedModel, kind: str) -> None:
    """Prompts shorter and longer than a block, a window and a forward pass, all at once: token for token what generate says of each."""
    made = network(kind)
    requests = prompts([1, 2, 5, 23, 24, 25, 31, 32, 33, 40, 64, 65, 150, 301, 7, 90], max_tokens=40)
    expected = by_generate(made, requests)
    talking = engine(dataclasses.replace(nano, network=made), batch_size=16, max_batch_tokens=96)
    assert nano.tokenizer is not None
    assert [one.text for one in said(talking, requests)] == [nano.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert made.config._attn_implementation == "sdpa"


def test_equal_to_stock(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers as with transformers' own attention over the paged cache, where this one is not used."""
    requests = prompts([3, 40, 100, 250], max_tokens=20)
    talking = engine(nano, batch_size=4, max_batch_tokens=128)
    ours = said(talking, requests)
    asked: list[str] = []

    def refused(made: Any) -> bool:
        asked.append(made.config._attn_implementation)
        return False

    monkeypatch.setattr(batching, "can_page", refused)
    assert said(talking, requests) == ours and asked == ["sdpa"]


def test_somebody_else_computes_meanwhile(nano: LoadedModel) -> None:
    """While batches run the network still computes what it always did, padded batches among it; afterwards its attention is the old one."""
    ids, mask = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = nano.network(input_ids=ids, attention_mask=mask).logits
    talking = engine(nano, batch_size=4)

    async def go() -> torch.Tensor:
        await talking.answer(prompts([5], 2)[0])
        assert nano.network.config._attn_implementation == NAME
        with torch.no_grad():
            logits: torch.Tensor = nano.network(input_ids=ids, attention_mask=mask).logits
        await talking.close()
        return logits

    assert torch.equal(asyncio.run(go())[mask.bool()], before[mask.bool()])
    assert nano.network.config._attn_implementation == "sdpa"


def test_refused() -> None:
    """Soft caps and sinks are not computed here; an attention that the user chose beyond sdpa and eager stays."""
    made = network("full")
    assert can_page(made)
    made.config._attn_implementation = "flash_attention_2"
    assert not can_page(made)
    made.config._attn_implementation = "eager"
    assert can_page(made)
    made.config.attn_logit_softcapping = 50.0
    assert not can_page(made)
    made.config.attn_logit_softcapping = None
    made.model.layers[0].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    assert not can_page(made)


def allocator(window: int | None = None) -> Any:
    """What `plan` asks of transformers' allocator, blocks of 4 tokens, 2 layers."""
    found = SimpleNamespace(index=0, tokens_per_page=4, block_physical_stride=16, pages_per_block=2)
    if window is not None:
        found.sliding_window = window
    found.get_write_indices = lambda name, past, length: [1000 + past + n for n in range(length)]
    return found


def test_classes() -> None:
    """One long conversation pads nobody: few classes of about the same number of blocks, everybody in one of them."""
    lengths = [10, 12, 500, 9, 480, 11, 100]
    pieces = [Piece(length, 1, (list(range(length // 4 + 1)),)) for length in lengths]
    laid = plan(allocator(), [str(n) for n in range(len(pieces))], pieces)
    tokens = [one.tokens.tolist() for one in laid.classes if one.tokens is not None]
    assert sorted(tokens) == [[0, 1, 3, 5], [2, 4], [6]]
    padded = sum(one.pages.numel() // 2 for one in laid.classes if one.pages is not None)
    assert padded <= 1.3 * sum(length // 4 + 1 for length in lengths)
    narrow = plan(allocator(), [str(n) for n in range(len(pieces))], pieces, room=8)  # no more at once than stays in a CPU's cache
    assert sorted(one.num for one in narrow.classes) == [1, 1, 1, 2, 2]


def test_where_keys_are_written_and_read() -> None:
    """By hand: blocks 7 and 3 of 4 tokens; the sixth token goes to the second place of block 3, and what comes after it is not seen."""
    laid = plan(allocator(), ["a"], [Piece(5, 1, ([7, 3],))])
    [one] = laid.classes
    assert laid.written.tolist() == [3 * 16 + 1]
    assert one.tokens is None and one.mask is not None and one.pages is not None
    assert one.mask.flatten().tolist() == [True] * 6 + [False] * 2
    assert one.pages.tolist() == [28, 12, 29, 13]  # pages of keys, then of values: 2 per layer and block
    # a window of 6 in a ring of two blocks: token 8 stands where token 2 stood, and six are seen
    laid = plan(allocator(window=6), ["a"], [Piece(8, 1, ([7, 3],))])
    [one] = laid.classes
    assert laid.written.tolist() == [7 * 16 + 2]
    assert one.mask is not None and one.mask.flatten().tolist() == [True] * 6 + [False] * 2
