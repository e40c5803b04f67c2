"""Local folders, artifacts and adapters: what loads, what is refused, and that others can load what we save."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from largeforge.artifact import write_artifact
from largeforge.contract import LoadedModel
from largeforge.errors import ArtifactError, InputError, ModelError
from tests.tiny_models import part, values

IDS = torch.tensor([[5, 300, 17, 2000, 42, 7]])


@pytest.fixture
def folder(nano_cache: Path, tmp_path: Path) -> Path:
    """A plain folder with a model in it, as anybody's save_pretrained leaves it."""
    goal = tmp_path / "plain"
    shutil.copytree(part("model", "nano").place().folder, goal)
    (goal / "manifest.json").unlink()
    return goal


def load(path: Path | str, **changes: Any) -> LoadedModel:
    model: LoadedModel = part("model", "hf", path=str(path), **changes).load(trainable=False, precision="fp32")
    return model


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(input_ids=IDS).logits
    return found


def save_adapter(goal: Path, *, base: str = "nano", **changes: Any) -> LoadedModel:
    """An adapter artifact as the train story leaves it, its B no longer zero, and the model it was made with."""
    source = part("model", base, **changes)
    model: LoadedModel = source.load(trainable=True, precision="bf16", adapter=part("adapter", "lora", live={"seed": 1}))
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    model.network.eval()

    def fill(draft: Path) -> str:
        model.network.save_pretrained(draft)
        assert model.tokenizer is not None
        model.tokenizer.save_pretrained(draft)
        return "adapter"

    write_artifact(goal, fill=fill, parents=[model.source], config={"model": {**values("model", base), **changes}})
    return model


def test_a_plain_folder(folder: Path, nano_cache: Path) -> None:
    """The same logits as the model it is a copy of; its content is its identity."""
    model = load(folder)
    assert torch.equal(logits(model.network), logits(part("model", "nano").load(trainable=False, precision="fp32").network))
    assert model.source.kind == "model" and model.source.name == str(folder) and len(model.source.sha256) == 64
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("\n", "\n\n", 1))
    assert load(folder).source.sha256 != model.source.sha256


def test_shape_that_says_otherwise(folder: Path) -> None:
    """The model's own config counts, and the plan says so."""
    model = load(folder, shape=values("model", "mistral7b")["shape"])
    assert "model_type is llama, shape says mistral" in model.notes[0] and "hidden_size is 256, shape says 4096" in model.notes[0]


def test_adapter_artifact(nano_cache: Path, tmp_path: Path) -> None:
    """Its base is brought along, its weights are fp32, and it says what it said when it was saved."""
    made = save_adapter(tmp_path / "artifact")
    model: LoadedModel = part("model", "hf", path=str(tmp_path / "artifact")).load(trainable=False, precision="bf16")
    assert model.source.kind == "adapter" and model.template == made.template
    assert torch.equal(logits(model.network), logits(made.network))
    assert not any(p.requires_grad for p in model.network.parameters())
    outlined = part("model", "hf", path=str(tmp_path / "artifact")).outline(trainable=False, precision="bf16")
    assert {n: p.shape for n, p in outlined.network.named_parameters()} == {n: p.shape for n, p in model.network.named_parameters()}


def test_adapter_whose_base_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine the base of smollm2's and nano's adapters is made again; another base than it was trained on is refused."""
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "here"))
    made = save_adapter(tmp_path / "artifact")
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "there"))
    shutil.rmtree(tmp_path / "here")
    model: LoadedModel = part("model", "hf", path=str(tmp_path / "artifact")).load(trainable=False, precision="bf16")
    assert torch.equal(logits(model.network), logits(made.network))
    manifest = tmp_path / "artifact" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"init_seed": 0', '"init_seed": 7'))
    with pytest.raises(ModelError, match="was trained on nano with sha256"):
        part("model", "hf", path=str(tmp_path / "artifact")).load(trainable=False)


def test_plain_peft_adapter(folder: Path, tmp_path: Path) -> None:
    """A folder of peft's own, without tokenizer: those of its base serve. A base that is nowhere is told."""
    base = load(folder)
    adapted = part("adapter", "lora", live={"seed": 1}).apply(base.network)
    goal = tmp_path / "adapter"
    adapted.save_pretrained(goal)
    model = load(goal)
    assert torch.equal(logits(model.network), logits(adapted.eval())) and model.tokenizer is not None
    config = json.loads((goal / "adapter_config.json").read_text())
    (goal / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere/at/all"}))
    with pytest.raises(ModelError, match=r"is /nowhere/at/all, and there is no such folder"):
        load(goal)


def test_training_goes_on(nano_cache: Path, tmp_path: Path) -> None:
    """LoRA of the same form goes on; adapter=none merges and trains all; another form is refused with the mend."""
    made = save_adapter(tmp_path / "artifact")
    source = part("model", "hf", path=str(tmp_path / "artifact"), dtype="fp32")
    goes_on = source.load(trainable=True, adapter=part("adapter", "lora"))
    learning = {name: p for name, p in goes_on.network.named_parameters() if p.requires_grad}
    assert learning.keys() == {name for name, p in made.network.named_parameters() if p.requires_grad}
    assert all(p.dtype is torch.float32 for p in learning.values())
    merged = source.load(trainable=True, adapter=part("adapter", "none"))
    assert all(p.requires_grad for p in merged.network.parameters()) and not hasattr(merged.network, "peft_config")
    torch.testing.assert_close(logits(merged.network.eval()), logits(goes_on.network.eval()), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match=r"r=16 \(asked: 8\)\.\nTry: adapter\.r=16"):
        source.load(trainable=True, adapter=part("adapter", "lora", r=8))


PLAIN = """
import sys, torch
assert not any(name.startswith("largeforge") for name in sys.modules)
sys.modules["largeforge"] = None  # as where it is not installed
from transformers import AutoTokenizer
if sys.argv[1] == "adapter":
    from peft import AutoPeftModelForCausalLM as Auto
else:
    from transformers import AutoModelForCausalLM as Auto
network = Auto.from_pretrained(sys.argv[2], dtype=torch.bfloat16).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hello 12"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
with torch.no_grad():
    torch.save((ids, network(input_ids=ids).logits), sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_others_load_what_we_save(kind: str, nano_cache: Path, tmp_path: Path) -> None:
    """network.save_pretrained and tokenizer.save_pretrained give a folder that plain transformers or peft loads, template included."""
    if kind == "adapter":
        model = save_adapter(tmp_path / "artifact")
    else:
        model = part("model", "nano").load(trainable=False, precision="bf16")
        model.network.save_pretrained(tmp_path / "artifact")
        assert model.tokenizer is not None
        model.tokenizer.save_pretrained(tmp_path / "artifact")
    command = [sys.executable, "-c", PLAIN, kind, str(tmp_path / "artifact"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids, theirs = torch.load(tmp_path / "out.pt")
    assert model.tokenizer is not None
    ours = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hello 12"}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert torch.equal(ids, ours["input_ids"])
    with torch.no_grad():
        assert torch.equal(theirs, model.network(input_ids=ids).logits)


def test_two_shards(folder: Path) -> None:
    """Sharded weights load; a shard that the index names and nobody has is told by name."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names shards that are missing: b\.safetensors"):
        load(folder)


def test_what_is_missing(folder: Path) -> None:
    """Each file that is missing is named, with what to do."""
    for name, words in [
        ("tokenizer.json", "holds no tokenizer"),
        ("model.safetensors", "holds no model.safetensors"),
        ("config.json", r"config\.json is missing"),
    ]:
        (folder / name).unlink()
        with pytest.raises(ModelError, match=words) as caught:
            load(folder)
        assert caught.value.next_step
    with pytest.raises(ModelError, match="is no folder, and no Hub id"):
        load(folder / "absent")
    with pytest.raises(ModelError, match="model.revision=v1 is of the Hub"):
        load(folder, revision="v1")


def test_other_formats_are_not_opened(folder: Path) -> None:
    """pytorch_model.bin runs code when it is opened: it is named, not read."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which are not read"):
        load(folder)


@pytest.mark.parametrize("harm", ["cut", "header", "empty"])
def test_corrupt_safetensors(folder: Path, harm: str) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes({"cut": content[:-1000], "header": b"\xff" * 64 + content[64:], "empty": b""}[harm])
    with pytest.raises(ModelError, match=r"model\.safetensors is corrupt"):
        load(folder)


def test_weights_that_do_not_belong(folder: Path) -> None:
    """A weight that is missing or of another shape is never drawn at random in silence."""
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lacks weights .*{name}"):
        load(folder)
    save_file({**weights, name: weights[name][:-1].contiguous()}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no_such_architecture"}', "{}"])
def test_config_that_is_no_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError):
        load(folder)


def test_a_byte_flipped(nano_cache: Path, tmp_path: Path) -> None:
    """In any file of an artifact, weights too, and also after it was read once."""
    save_adapter(tmp_path / "artifact")
    load(tmp_path / "artifact")
    for name in json.loads((tmp_path / "artifact" / "manifest.json").read_text())["files"]:
        path = tmp_path / "artifact" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match="is not what was written"):
            load(tmp_path / "artifact")
        path.write_bytes(content)


def test_an_artifact_of_data(tmp_path: Path, nano_cache: Path) -> None:
    write_artifact(tmp_path / "data", fill=lambda draft: "data", parents=[], config={})
    with pytest.raises(ArtifactError, match="of kind data; needed: model or adapter"):
        load(tmp_path / "data")
