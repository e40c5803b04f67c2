"""From an architecture's shape to the config transformers builds it from; reads no file and fetches nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from largeforge.errors import ModelError
from largeforge.model.config import Shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PLAIN = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings")


def network_config(shape: Shape, **more: Any) -> PretrainedConfig:
    """Return the transformers config of `shape`; `more` are fields that only some models need (token ids, epsilon).

    Raises:
        ModelError: transformers has no such architecture, or it cannot have such widths.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if shape.model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"model.shape.model_type={shape.model_type} is no architecture that transformers has.",
            next_step="model.shape.model_type=llama, mistral, qwen3 ... as in the model's config.json",
        )
    values = shape.model_dump(exclude={"model_type", "rope_theta"})
    rope = {"rope_theta": shape.rope_theta, "rope_type": "default"}
    kind: Any = CONFIG_MAPPING[shape.model_type]
    try:
        config: PretrainedConfig = kind(**values, rope_parameters=rope, **more)
    except (ValueError, TypeError, StrictDataclassError) as fault:
        raise impossible(fault.__cause__ or fault) from fault
    return config


def impossible(fault: BaseException) -> ModelError:
    """Return the error for an architecture that cannot be built."""
    return ModelError(f"model.shape cannot be built: {fault}", next_step="widths and heads as in the config.json of a model of this architecture")


def differences(shape: Shape, config: PretrainedConfig) -> list[str]:
    """Tell where a model's own config says otherwise than the shape its YAML carries."""
    told = {key: getattr(config, key, None) for key in _PLAIN}
    found = [f"{key} is {theirs}, shape says {getattr(shape, key)}" for key, theirs in told.items() if theirs is not None and theirs != getattr(shape, key)]
    if config.model_type != shape.model_type:
        found.insert(0, f"model_type is {config.model_type}, shape says {shape.model_type}")
    return found
