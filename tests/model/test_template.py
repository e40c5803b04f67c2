"""Chat templates: the model's own, chatml on base models, a file, a text; and what ends a turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from largeforge.errors import ModelError
from largeforge.model.template import settle_template

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


def base_tokenizer(*special: str, bos: bool = False, eos: str | None = "</s>") -> PreTrainedTokenizerBase:
    """A byte-level tokenizer of a base model: no template; with `bos` it puts <s> before every text, as Mistral's does."""
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", *special])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos)  # type: ignore[no-untyped-call]


def test_a_base_model_needs_one() -> None:
    with pytest.raises(ModelError, match=r"org/base has no chat template: it is a base model\.\nTry: model\.chat_template=chatml"):
        settle_template(base_tokenizer(), None, name="org/base")


def test_its_own_is_left_alone() -> None:
    tokenizer = base_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert settle_template(tokenizer, None, name="x") == [] and tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_chatml_without_its_tokens() -> None:
    """No token is added: the markers are text, a turn ends in the tokenizer's own EOS, and BOS comes once, from the template."""
    tokenizer = base_tokenizer(bos=True)
    size = len(tokenizer)
    notes = settle_template(tokenizer, "chatml", name="x")
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == "<s><|im_start|>user\nHi</s>\n<|im_start|>assistant\nYes</s>\n"
    assert tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True).endswith("</s>\n<|im_start|>assistant\n")
    ids = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids.count(tokenizer.eos_token_id) == 2
    assert len(tokenizer) == size and "own EOS, </s>" in notes[0]


def test_chatml_with_its_tokens() -> None:
    """A base model whose vocabulary has <|im_end|>, as Qwen's has: that ends a turn and becomes the EOS."""
    tokenizer = base_tokenizer("<|im_start|>", "<|im_end|>")
    notes = settle_template(tokenizer, "chatml", name="x")
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert tokenizer.eos_token == "<|im_end|>" and "now the tokenizer's EOS" in notes[0]


def test_chatml_needs_an_end() -> None:
    with pytest.raises(ModelError, match="neither <\\|im_end\\|> nor an EOS"):
        settle_template(base_tokenizer(eos=None), "chatml", name="x")


def test_a_file_and_a_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}|{% endfor %}", encoding="utf-8")
    tokenizer = base_tokenizer()
    assert str(path) in settle_template(tokenizer, str(path), name="x")[0]
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == "Hi|Yes|"
    settle_template(tokenizer, "{{ messages[-1]['content'] }}!", name="x")
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == "Yes!"


@pytest.mark.parametrize(("declared", "words"), [("absent.jinja", "neither chatml nor a file"), ("{% for x in %}", "no valid Jinja template: line 1")])
def test_what_cannot_be_used(declared: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        settle_template(base_tokenizer(), declared, name="x")
