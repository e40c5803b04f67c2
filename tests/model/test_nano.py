"""nano: the same weights everywhere, its own tokenizer, made once into the cache."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from largeforge.errors import ArtifactError, ModelError
from largeforge.model.nano import TOKENIZER
from tests.tiny_models import config, part


def test_size(nano_cache: Path) -> None:
    """About 3M parameters, and every width a multiple of 128, so that it can be quantized later."""
    model = part("model", "nano").load(trainable=False)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 3_410_176
    shape = config("model", "nano").shape  # type: ignore[attr-defined]
    assert all(width % 128 == 0 for width in (shape.hidden_size, shape.intermediate_size, shape.vocab_size, shape.num_key_value_heads * shape.head_dim))
    assert model.tokenizer is not None and len(model.tokenizer) == shape.vocab_size


def test_same_weights_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two empty caches, two states of the global generator: the same id; the generator is left as it was. Another seed differs."""
    ids = []
    for number in (1, 2):
        monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        before = torch.get_rng_state()
        ids.append(part("model", "nano").load(trainable=False).source.sha256)
        assert torch.equal(torch.get_rng_state(), before)
    other = part("model", "nano", init_seed=1).load(trainable=False)
    assert ids[0] == ids[1] and len(ids[0]) == 64
    assert other.source.sha256 != ids[0]


def test_tokenizer(nano_cache: Path) -> None:
    """Any text comes back, digits stand alone, and the pad token is not the EOS."""
    tokenizer = part("model", "nano").load(trainable=False).tokenizer
    for text in ("tune mistral 7b with rank 32", "Zürich 日本 \t\n  x<|im_end|>", "def f(x):\n    return x**2 - 1e-3"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text
    assert tokenizer.tokenize(" rank 32") == ["Ġrank", "Ġ", "3", "2"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_template(nano_cache: Path) -> None:
    model = part("model", "nano").load(trainable=False)
    text = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert model.template == model.tokenizer.chat_template


def test_tokenizer_is_what_the_script_makes() -> None:
    """The file that ships is what our own text gives, to the byte."""
    path = Path(__file__).parents[2] / "scripts" / "make_nano_tokenizer.py"
    spec = importlib.util.spec_from_file_location("make_nano_tokenizer", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.make().to_str() == TOKENIZER.read_text(encoding="utf-8")


def test_dtypes(nano_cache: Path) -> None:
    """Frozen weights follow dtype, else the precision; what learns is fp32."""
    adapter = part("adapter", "lora", live={"seed": 0})
    source = part("model", "nano")
    frozen = source.load(trainable=False, precision="bf16").network
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16} and not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    adapted = source.load(trainable=True, precision="bf16", adapter=adapter).network
    assert {(p.dtype, p.requires_grad) for p in adapted.parameters()} == {(torch.bfloat16, False), (torch.float32, True)} and adapted.training
    full = source.load(trainable=True, precision="bf16", adapter=part("adapter", "none", live={"seed": 0})).network
    assert {(p.dtype, p.requires_grad) for p in full.parameters()} == {(torch.float32, True)}
    assert {p.dtype for p in part("model", "nano", dtype="fp32").load(trainable=True, precision="bf16", adapter=adapter).network.parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize("choice", ["lora", "none"])
def test_outline_is_the_same_network(cache: Path, choice: str) -> None:
    """On meta: same names, shapes, dtypes and learners as loaded, with the tokenizer, and nothing written before loading."""
    adapter = part("adapter", choice, live={"seed": 0})
    source = part("model", "nano")
    outlined = source.outline(trainable=True, precision="bf16", adapter=adapter)
    assert not cache.exists() and outlined.tokenizer is not None and outlined.template
    assert {p.device.type for p in outlined.network.parameters()} == {"meta"}
    loaded = source.load(trainable=True, precision="bf16", adapter=adapter)

    def facts(network: torch.nn.Module) -> dict[str, tuple[object, ...]]:
        return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in network.named_parameters()}

    assert facts(outlined.network) == facts(loaded.network)
    assert outlined.template == loaded.template and outlined.network.training == loaded.network.training


@pytest.mark.parametrize("key", ["path", "revision"])
def test_nothing_is_ignored(cache: Path, key: str) -> None:
    """A key that means nothing here is refused, when loading and when planning."""
    source = part("model", "nano", **{key: "x"})
    for go in (source.load, source.outline):
        with pytest.raises(ModelError, match=f"model.{key}=x has no meaning for model=nano"):
            go(trainable=False)


def test_altered_cache(cache: Path) -> None:
    """A byte flipped in the cached weights is an error at the next load."""
    source = part("model", "nano")
    weights = Path(source.load(trainable=False).network.name_or_path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not what was written"):
        source.load(trainable=False)
