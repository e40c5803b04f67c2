"""A nano that has learnt to say something: random weights end no answer and repeat themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from largeforge.chat import Answer, ChatRequest, Message, Usage
from largeforge.contract import LoadedModel
from tests.tiny_models import part


def ask(text: str, **drawing: Any) -> ChatRequest:
    return ChatRequest((Message("user", text),), **drawing)


def engine(model: LoadedModel, **changes: Any) -> Any:
    return part("engine", "hf", live={"model": model, "device": "cpu"}, **changes)


@pytest.fixture
def nano(nano_cache: Path) -> LoadedModel:
    """nano in fp32, its embedding spread out so that answers vary and sometimes end."""
    model: LoadedModel = part("model", "nano").load(trainable=False, precision="fp32")
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
        weight = model.network.get_input_embeddings().weight
        assert model.tokenizer is not None
        weight[model.tokenizer.eos_token_id] *= 2.5  # the end of a turn is likely now and then
    return model


def by_generate(model: LoadedModel, request: ChatRequest) -> Answer:
    """What transformers' own generate says, one prompt at a time."""
    assert model.tokenizer is not None
    tokenizer: Any = model.tokenizer
    encoded = tokenizer.apply_chat_template([m.as_dict() for m in request.messages], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    network: Any = model.network
    with torch.no_grad():
        out = network.generate(**encoded, do_sample=False, max_new_tokens=request.max_tokens, pad_token_id=tokenizer.pad_token_id)
    ids = out[0, encoded["input_ids"].shape[1] :].tolist()
    ended = ids[-1] == tokenizer.eos_token_id
    ids = ids[:-1] if ended else ids
    return Answer(tokenizer.decode(ids, skip_special_tokens=True), "stop" if ended else "length", Usage(encoded["input_ids"].shape[1], len(ids)))
