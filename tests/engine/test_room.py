"""How much the engine takes of a machine: what the config says, or a share of what is free."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError

from largeforge.contract import LoadedModel
from largeforge.engine.answers import every_answer
from tests.engine.conftest import ask, engine
from tests.tiny_models import config


def test_keys_and_values(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is kept to; auto is a quarter of what is free, and 4 GiB at most."""
    assert engine(nano, kv_cache_bytes=10_000_000)._cache_bytes() == 10_000_000
    for free, expected in [(2**30, 2**28), (2**40, 4 * 2**30)]:
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert engine(nano)._cache_bytes() == expected


def test_the_cache_is_no_larger(nano: LoadedModel) -> None:
    """The blocks that there are: those that fit."""
    talking = engine(nano, batch_size=4, kv_cache_bytes=100 * 32 * 4096)  # 100 blocks of 32 tokens, of 4 KiB each
    totals: list[int] = []

    def asking() -> Any:
        yield ask("x", max_tokens=2)

    for _ in every_answer(talking, list(asking()), in_flight=1):
        totals.append(talking.load().total_blocks)
    assert totals == [100]


def test_tokens_of_a_forward_pass(nano: LoadedModel) -> None:
    """A longer prompt is read in pieces of so many."""
    talking = engine(nano, batch_size=4, max_batch_tokens=16)
    sizes: list[int] = []
    nano.network.get_input_embeddings().register_forward_hook(lambda module, inputs, out: sizes.append(inputs[0].numel()))
    [_] = every_answer(talking, [ask("word " * 50, max_tokens=2, ignore_end=True)], in_flight=1)
    assert max(sizes) == 16 and len(sizes) > 4


def test_threads(nano: LoadedModel) -> None:
    """Set where the process is the engine's own, and nowhere else."""
    before = torch.get_num_threads()
    try:
        engine(nano, threads=before + 1)
        assert torch.get_num_threads() == before
        from largeforge.engine.hf import HF

        HF(config("engine", "hf", threads=before + 1), model=nano, device="cpu", serving=True)  # type: ignore[arg-type]
        assert torch.get_num_threads() == before + 1
        HF(config("engine", "hf"), model=nano, device="cpu", serving=True)  # type: ignore[arg-type]
        assert 1 <= torch.get_num_threads() <= (psutil.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [{"kv_cache_bytes": "much"}, {"kv_cache_bytes": 0}, {"threads": 0}, {"speculation": "magic"}, {"max_batch_tokens": 0}])
def test_what_is_not_allowed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config("engine", "hf", **wrong)
