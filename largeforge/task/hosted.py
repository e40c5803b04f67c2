"""The half of task=serve that runs in processes of its own: the engine is made there, and a model that another program serves is looked at there."""

from __future__ import annotations

from functools import partial
from typing import Any

from largeforge.build import build, find
from largeforge.chat import ChatRequest, Message
from largeforge.contract import LoadedModel, Quant
from largeforge.task.config import ServeConfig

LARGEST_PINNED = 2 * 2**30
"""Bytes of weights that are loaded a second time, beside a server of another program, to compare its answers with."""


def hosted(config: ServeConfig) -> Any:
    """Make the engine, in the process that answers; with the pinned answers of the model itself."""
    made = find("largeforge.serve.hosting.Hosted")
    if config.engine.hosting == "uvicorn":
        return made(engine=build(config.engine))
    quant: Quant = build(config.quant)
    model: LoadedModel = build(config.model).load(trainable=False, quant=quant)
    proven = getattr(config.serve, "prove", False)
    pins = find("largeforge.proof.served.pinned")(model) if proven else []  # before the engine has it, and puts adapters into it
    engine: Any = build(config.engine, model=model, serving=True)
    if proven:
        pins = find("largeforge.proof.served.in_process")(pins, engine)
    engine.start()
    context = int(getattr(model.network.config, "max_position_embeddings", 0))
    longest = max(map(len, engine.tokenizer.get_vocab()), default=0)
    return made(engine=engine, pinned=pins, tokenize=partial(token_ids, engine), context=context, longest_token=longest)


def look_at(config: ServeConfig) -> dict[str, Any]:
    """Where a model lies, its template, what an adapter stands on, and its pinned answers by plain transformers: of a large one the prompts alone."""
    source: Any = build(config.model)
    place = source.place()
    base = source.base_of(place.folder).folder if (place.folder / "adapter_config.json").is_file() else None
    pins: list[dict[str, Any]] = []
    weights = sum(path.stat().st_size for path in (base or place.folder).glob("*.safetensors"))
    if getattr(config.serve, "prove", False) and weights > LARGEST_PINNED:
        pins = find("largeforge.proof.served.pinned_prompts")(*source.identity_of_files()[1:])
    elif getattr(config.serve, "prove", False):
        quant: Quant = build(config.quant)
        model: LoadedModel = source.load(trainable=False, quant=quant)
        pins = find("largeforge.proof.served.pinned")(model)
    return {"model_folder": place.folder, "template": source.template_text(place), "base_folder": base, "pins": pins}


def token_ids(engine: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation as the engine reads it. Raises InputError where its template refuses it."""
    request = ChatRequest(tuple(Message(one["role"], one["content"]) for one in messages))  # type: ignore[arg-type]
    ids: list[int] = find("largeforge.engine.prompt.prompt_ids")(engine.tokenizer, engine.template, request)
    return ids
