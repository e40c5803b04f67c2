"""From a GGUF file of a Llama with a byte-level BPE to the files transformers reads; knows nothing about where it came from.

Weights are dequantized by gguf's own numpy code and named as transformers names them: equal to what
`from_pretrained(gguf_file=...)` gives, in a quarter of the time. The tokenizer splits digits as `tokenizer.ggml.pre=smollm` asks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from largeforge.artifact import write_atomically
from largeforge.errors import ModelError

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of token that are never split


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (bf16), tokenizer and chat template into `folder`.

    Raises:
        ModelError: the file is no GGUF, or not of the one architecture and tokenizer this understands.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    try:
        reader = GGUFReader(gguf)
    except (ValueError, OSError, IndexError) as fault:
        raise ModelError(f"{gguf} is no GGUF file that can be read: {fault}.") from fault
    facts = {name: field.contents() for name, field in reader.fields.items()}
    kind = (facts.get("general.architecture"), facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre"))
    if kind != ("llama", "gpt2", "smollm"):
        raise ModelError(f"{gguf} holds {'/'.join(map(str, kind))}; only llama/gpt2/smollm is converted here.")
    tensors = state(reader.tensors, num_heads=facts["llama.attention.head_count"], num_key_value_heads=facts["llama.attention.head_count_kv"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(facts, folder, tied="lm_head.weight" not in tensors)
    write_tokenizer(facts, folder)


def state(tensors: Any, *, num_heads: int, num_key_value_heads: int) -> dict[str, torch.Tensor]:
    """Return the network's weights in bf16 by their names in transformers."""
    from gguf.quants import dequantize

    found = {}
    for tensor in tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        _, _, part = tensor.name.partition("blk.")
        if not part:
            name = _OUTER[tensor.name]
        else:
            layer, piece, _ = part.split(".")
            name = f"model.layers.{layer}.{_BLOCK[piece]}.weight"
            if piece in ("attn_q", "attn_k"):
                weights = _halves(weights, num_heads if piece == "attn_q" else num_key_value_heads)
        found[name] = torch.tensor(weights, dtype=torch.float32).to(torch.bfloat16).contiguous()
    return found


def _halves(weights: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo GGUF's order of rotary pairs: it interleaves what transformers keeps in two halves of a head."""
    rows, width = weights.shape
    halves: NDArray[np.float32] = weights.reshape(num_heads, rows // num_heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
    return halves


def write_config(facts: dict[str, Any], folder: Path, *, tied: bool) -> None:
    from transformers import GenerationConfig, LlamaConfig

    ids = {"bos_token_id": facts["tokenizer.ggml.bos_token_id"], "eos_token_id": facts["tokenizer.ggml.eos_token_id"], "pad_token_id": _pad_id(facts)}
    heads, width = facts["llama.attention.head_count"], facts["llama.embedding_length"]
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        head_dim=facts.get("llama.rope.dimension_count", width // heads),
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=round(facts["llama.attention.layer_norm_rms_epsilon"], 12),  # stored as fp32: 9.999999747e-06
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        dtype="bfloat16",
        **ids,
    )
    config.save_pretrained(folder)
    generation: Any = GenerationConfig
    generation(**ids).save_pretrained(folder)


def _pad_id(facts: dict[str, Any]) -> int:
    """Pad with the token for unknown text, which byte-level BPE never needs: the file's own choice is the EOS, which must stay learnable."""
    return int(facts["tokenizer.ggml.unknown_token_id"])


def write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[_pad_id(facts)],
        "model_max_length": facts["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(folder / "tokenizer_config.json", json.dumps(named, indent=2) + "\n")
    write_atomically(folder / "chat_template.jinja", facts["tokenizer.chat_template"])
