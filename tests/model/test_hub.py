"""Models of the Hub, against a hub of this machine: what is fetched, and every way it can fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from largeforge.errors import ModelError
from tests.model.tiny_hub import COMMIT, hub
from tests.tiny_models import part


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub, and nobody's token."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


@pytest.fixture
def here(nano_cache: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub that has nano as org/nano, besides files that nobody here reads."""
    folder = tmp_path / "served"
    shutil.copytree(part("model", "nano").place().folder, folder)
    (folder / "manifest.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")
    with hub(folder) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        yield folder


def test_fetch(here: Path, hub_cache: Path) -> None:
    """Proves SYS-I-002: a model comes by its id; the commit is recorded; a second load needs no hub; only safetensors are fetched."""
    source = part("model", "hf", path="org/nano")
    model = source.load(trainable=True, adapter=part("adapter", "lora"))
    assert (model.source.name, model.source.revision, len(model.source.sha256)) == ("org/nano", COMMIT, 64)
    assert not list(hub_cache.rglob("*.bin"))
    # what an adapter will name as its base
    carried = model.network.peft_config["default"]
    assert (carried.base_model_name_or_path, carried.revision) == ("org/nano", COMMIT)
    outlined = source.outline(trainable=False)
    assert outlined.tokenizer is not None and outlined.template == model.template


def test_out_of_reach(hub_cache: Path, nano_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-I-002 (no hub): nothing listens there; the error names the address and two ways on."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"org/nano is not in the cache, and the Hub at http://127\.0\.0\.1:9 is not in reach") as caught:
        part("model", "hf", path="org/nano").load(trainable=False)
    assert "model.path=" in caught.value.next_step and "model=smollm2" in caught.value.next_step


def test_offline(hub_cache: Path, nano_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids to fetch it"):
        part("model", "hf", path="org/nano").load(trainable=False)


@pytest.mark.parametrize(
    ("name", "revision", "words", "mend"),
    [
        ("org/gated", None, r"org/gated is gated: .* answered 403", "accept it at https://huggingface.co/org/gated"),
        ("org/gated-anonymous", None, r"is gated: .* answered 401", "HF_TOKEN"),
        ("org/absent", None, r"org/absent is not on the Hub, or it is private", "spelling of model.path"),
        ("org/nano", "v9", r"org/nano has no revision v9", "model.revision=main"),
        ("org/broken", None, r"is not in reach \(Got: HfHubHTTPError: Server error '500", "check the network"),
    ],
)
def test_refused(here: Path, name: str, revision: str | None, words: str, mend: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        part("model", "hf", path=name, revision=revision).load(trainable=False)
    assert mend in caught.value.next_step


def test_a_repository_that_lacks_a_file(here: Path) -> None:
    (here / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no model.safetensors"):
        part("model", "hf", path="org/nano").load(trainable=False)
