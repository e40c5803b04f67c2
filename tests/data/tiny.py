"""Tiny tokenizers with the chat templates that models really come with, configs and files of rows: made here, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from largeforge.data.config import ChatConfig, PreferenceConfig, RowsConfig, TextConfig

TEXTS = (
    "What is the capital of France? The capital of France is Paris.",
    "tune mistral 7b on my chats with rank 32",
    "You are a helpful assistant. Answer in one word, please.",
    "system user assistant human question answer hello there general",
    "one two three four five six seven eight nine ten",
)
SPECIALS = ("<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

# SmolLM2's way: ChatML with a system message of its own where the row has none; BOS is <|im_start|>.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 3's way: one BOS, trimmed content, headers, no newline behind the end of a turn.
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# ChatML with the author's own markers, which leave the end of the turn out.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 2's way: BOS and EOS around every exchange, no generation prompt.
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Qwen3's way: the last answer gets an empty <think> block, earlier ones lose theirs.
THINKING = (
    "{% for message in messages %}{% set content = message['content'] %}{% set thought = '' %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@lru_cache(maxsize=1)
def _serialized() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer.to_str()


def make_tokenizer(template: str = CHATML, *, bos: str = "<|im_start|>", eos: str = "<|im_end|>", pad: str = "<|pad|>") -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens with a chat template."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_serialized()), bos_token=bos, eos_token=eos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


MIX = {"weights": None, "temperature": 1.0, "caps": None, "exhausted": "stop", "seed": 0}


def make_config(path: Any, **changes: Any) -> ChatConfig:
    """`data=chat` as its YAML would give it, for one path."""
    values: dict[str, Any] = {
        "_target_": "largeforge.data.chat.Chat",
        "path": [str(p) for p in path] if isinstance(path, list) else str(path),
        "format": "auto",
        "split": "train",
        "subset": None,
        "revision": None,
        "streaming": False,
        "mix": MIX,
        "on_bad_row": "error",
        "limit": None,
        "max_length": 256,
        "packing": "auto",
        "validation": 0.0,
        "num_workers": 0,
        "curriculum": "none",
    }
    return ChatConfig(**{**values, **changes})


def make_rows_config(path: Any, choice: str = "rows", **changes: Any) -> Any:
    """`data=rows`, `data=preference` or `data=text` as its YAML would give it, for one path or several; mix_... changes data.mix."""
    files = {"rows": ("raw.Rows", RowsConfig), "preference": ("preference.Preference", PreferenceConfig), "text": ("text.Text", TextConfig)}
    target, cls = files[choice]
    mix = {**MIX, **{name.removeprefix("mix_"): changes.pop(name) for name in list(changes) if name.startswith("mix_")}}
    values: dict[str, Any] = {
        "_target_": f"largeforge.data.{target}",
        "path": [str(p) for p in path] if isinstance(path, list) else str(path),
        "split": "train",
        "subset": None,
        "revision": None,
        "streaming": False,
        "on_bad_row": "error",
        "limit": None,
        "mix": mix,
    }
    if choice == "rows":
        return cls(**{**values, "format": "auto", **changes})
    values |= {"max_length": 256, "packing": "auto", "validation": 0.0, "num_workers": 0, "curriculum": "none"}
    return cls(**{**values, **({"rehearsal": {"path": None, "share": 0.0}} if choice == "text" else {}), **changes})


def exchange(question: str, answer: str) -> dict[str, Any]:
    """One row of the format messages."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
