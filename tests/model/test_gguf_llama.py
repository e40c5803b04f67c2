"""The conversion of GGUF files: equal to what transformers makes of the same file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from largeforge.errors import ModelError
from largeforge.model.gguf_llama import convert
from tests.model.tiny_gguf import TEMPLATE, write_gguf


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf")
    goal = folder / "model"
    goal.mkdir()
    convert(folder / "tiny.gguf", goal)
    return folder, goal


def test_weights_equal_those_of_transformers(converted: tuple[Path, Path]) -> None:
    """Bit for bit, after rounding to bf16; q and k in the order transformers' rotary embedding wants."""
    source, goal = converted
    theirs = AutoModelForCausalLM.from_pretrained(source, gguf_file="tiny.gguf", dtype=torch.float32).state_dict()
    network = AutoModelForCausalLM.from_pretrained(goal, dtype="auto")
    ours = network.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weights in theirs.items():
        assert torch.equal(weights.to(torch.bfloat16), ours[name]), name
    assert network.config.rope_parameters["rope_theta"] == 100000.0 and network.config.rms_norm_eps == 1e-5 and network.config.tie_word_embeddings
    assert network.generation_config.eos_token_id == 2


def test_tokenizer(converted: tuple[Path, Path]) -> None:
    """Merges, special tokens, template; digits one by one as the file's `pre` asks; a pad token that is not the EOS."""
    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.tokenize(" the<|im_end|>") == ["Ġthe", "<|im_end|>"]
    assert tokenizer.tokenize("  12") == ["Ġ", "Ġ", "1", "2"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert tokenizer.chat_template == TEMPLATE and tokenizer.model_max_length == 128
    text = "Größe: 12 €\n\tthe end"
    assert tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == text


def test_config_is_plain(converted: tuple[Path, Path]) -> None:
    """Nothing of GGUF is left, so that the folder saves and loads like any other."""
    found = json.loads((converted[1] / "config.json").read_text())
    assert found["model_type"] == "llama" and found["dtype"] == "bfloat16" and "quantization_config" not in found


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGXX" + bytes(100))
    with pytest.raises(ModelError, match="no GGUF file"):
        convert(tmp_path / "no.gguf", tmp_path)
    write_gguf(tmp_path / "other.gguf", pre="qwen2")
    with pytest.raises(ModelError, match="llama/gpt2/qwen2; only llama/gpt2/smollm"):
        convert(tmp_path / "other.gguf", tmp_path)
