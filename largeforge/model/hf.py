"""hf: any causal LM that transformers loads: a local folder, an artifact of a run, a peft adapter, a Hub id.

An adapter brings its base: the one it names, wherever that stands. How a folder is fetched or made is other files' business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from largeforge.artifact import is_artifact, read_artifact
from largeforge.build import build
from largeforge.errors import ModelError
from largeforge.model import hub
from largeforge.model.base import Place, Source, name_base, read_network, read_tokenizer
from largeforge.model.config import HFConfig, ModelConfig, NanoConfig, SmolLM2Config
from largeforge.model.folder import TOKENIZER_FILES, check_folder, folder_reference, is_adapter, read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_MADE_HERE: dict[str, type[ModelConfig]] = {"largeforge.model.nano.Nano": NanoConfig, "largeforge.model.smollm2.SmolLM2": SmolLM2Config}


class HF(Source):
    """A folder, an artifact, a peft adapter or a Hub id."""

    config: HFConfig

    def place(self) -> Place:
        folder, revision = self._folder(fetch=True), self.config.revision or ""
        assert folder is not None
        if is_artifact(folder):
            read_artifact(folder, kind=("model", "adapter"))
        check_folder(folder)
        local = self._is_local()
        if not local:
            revision = folder.name  # snapshots are named by their commit
        reference = folder_reference(folder, name=self.config.path, revision=revision)
        return Place(folder, str(folder.resolve()) if local else self.config.path, reference)

    @property
    def name(self) -> str:
        return self.config.path

    def known_folder(self) -> Path | None:
        return self._folder(fetch=False)

    def network(self, place: Place, *, dtype: torch.dtype, trainable: bool, arguments: dict[str, Any]) -> PreTrainedModel:
        """Read the weights; for an adapter those of its base first, then the adapter's, in fp32."""
        if not is_adapter(place.folder):
            return super().network(place, dtype=dtype, trainable=trainable, arguments=arguments)
        from peft import PeftModel

        base = self.base_of(place.folder)
        check_folder(base.folder)
        network = read_network(base.folder, dtype=dtype, attention=self.config.attention, arguments=arguments)
        name_base(network, base)
        try:
            adapted: Any = PeftModel.from_pretrained(network, str(place.folder), is_trainable=trainable)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as fault:
            raise ModelError(
                f"The adapter in {place.folder} does not fit {base.name}: {fault}", next_step="give the adapter's own base in its adapter_config.json"
            ) from fault
        return adapted  # type: ignore[no-any-return]

    def carried(self, network: PreTrainedModel, folder: Path | None) -> PreTrainedModel:
        if folder is None or not is_adapter(folder):
            return network
        from peft import PeftConfig, get_peft_model

        adapted: Any = get_peft_model(network, PeftConfig.from_pretrained(str(folder)))
        return adapted  # type: ignore[no-any-return]

    def tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        if is_adapter(folder) and not _has_tokenizer(folder):
            return read_tokenizer(self.base_of(folder).folder)
        return read_tokenizer(folder)

    def network_config(self, folder: Path | None) -> PretrainedConfig:
        if folder is not None and is_adapter(folder):
            return super().network_config(self._known_base(folder))
        return super().network_config(folder)

    def base_of(self, folder: Path) -> Place:
        """Return where an adapter's base stands, brought to this machine if need be, and check that it is the one trained on."""
        artifact = read_artifact(folder) if is_artifact(folder) else None
        made_by = artifact.config.get("model", {}) if artifact is not None else {}
        trained_on = next((parent for parent in artifact.parents if parent.kind == "model"), None) if artifact is not None else None
        if made_by.get("_target_") in _MADE_HERE:
            place: Place = build(_MADE_HERE[made_by["_target_"]].model_validate(made_by), progress=self.progress).place()
        else:
            place = self._named_base(folder)
        if trained_on is not None and trained_on.sha256 and trained_on.sha256 != place.source.sha256:
            raise ModelError(
                f"{folder} was trained on {trained_on.name} with sha256 {trained_on.sha256[:12]}; what stands at {place.name} has {place.source.sha256[:12]}.",
                next_step="bring back the base it was trained on, or train the adapter again",
            )
        return place

    def _named_base(self, folder: Path) -> Place:
        found = read_json(folder / "adapter_config.json")
        name, revision = found.get("base_model_name_or_path"), found.get("revision")
        if not name:
            raise ModelError(f"{folder / 'adapter_config.json'} names no base model.", next_step="write its folder or Hub id there, as base_model_name_or_path")
        base = Path(name).expanduser()
        if base.is_dir():
            return Place(base, str(base), folder_reference(base, name=str(base)))
        if not hub.HUB_ID.fullmatch(name):
            raise ModelError(
                f"The base of the adapter {folder} is {name}, and there is no such folder.",
                next_step="bring it back, or write its new place into adapter_config.json",
            )
        snapshot = hub.fetch(name, revision)
        return Place(snapshot, name, folder_reference(snapshot, name=name, revision=snapshot.name))

    def _known_base(self, folder: Path) -> Path | None:
        found = read_json(folder / "adapter_config.json")
        name = str(found.get("base_model_name_or_path") or "")
        if name and Path(name).is_dir():
            return Path(name)
        return hub.cached(name, found.get("revision")) if hub.HUB_ID.fullmatch(name) else None

    def _folder(self, *, fetch: bool) -> Path | None:
        if self._is_local():
            if self.config.revision is not None:
                raise ModelError(
                    f"model.revision={self.config.revision} is of the Hub, and model.path={self.config.path} is a folder.", next_step="leave model.revision out"
                )
            return Path(self.config.path).expanduser()
        if not hub.HUB_ID.fullmatch(self.config.path):
            raise ModelError(
                f"model.path={self.config.path} is no folder, and no Hub id (org/name).",
                next_step="check the path; an artifact is outputs/<task>/<date>/<time>/artifact",
            )
        return hub.fetch(self.config.path, self.config.revision) if fetch else hub.cached(self.config.path, self.config.revision)

    def _is_local(self) -> bool:
        return Path(self.config.path).expanduser().is_dir()


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
