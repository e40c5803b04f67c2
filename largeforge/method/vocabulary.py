"""Whether two models speak the same tokens: what a reference and a teacher must. Knows nothing about losses."""

from __future__ import annotations

from typing import Any

from largeforge.config.places import Library
from largeforge.config.yaml_file import read_yaml
from largeforge.contract import LoadedModel
from largeforge.errors import InputError


def check_vocabulary(model: LoadedModel, other: LoadedModel, *, role: str) -> None:
    """Refuse a second model whose token ids mean something else.

    Args:
        model: what learns.
        other: who is asked.
        role: "reference" or "teacher": the key that the user set.

    Raises:
        InputError: says how many tokens differ, and the nearest choices that would do.
    """
    size, others = (int(one.network.config.vocab_size) for one in (model, other))
    if model.tokenizer is None or other.tokenizer is None:
        if size == others:
            return
        why = f"{others:,} tokens beside {size:,}"
    else:
        own, foreign = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
        differing = [token for token, number in own.items() if foreign.get(token) != number]
        if not differing and len(own) == len(foreign):
            return
        shared = 1 - len(differing) / max(1, len(own))
        why = f"{len(foreign):,} tokens beside {len(own):,}, and {shared:.0%} of the latter have the same id in both"
    near = [name for name in of_vocabulary(size) if name != model.source.name]
    known = f"{role}={near[0]}, whose vocabulary has the same size" if near else f"{role}=<a model of the same family as {model.source.name}>"
    raise InputError(
        f"{role} = {other.source.name} has another vocabulary than model = {model.source.name}: {why}. Their predictions cannot be compared token by token.",
        next_step=known,
    )


def of_vocabulary(size: int) -> list[str]:
    """Choices of the group model whose vocabulary has that many tokens."""
    library = Library()
    found = []
    for choice in library.choices("model"):
        file = library.file_of(f"model/{choice}")
        shape: Any = read_yaml(file).values.get("shape") if file is not None else None
        if isinstance(shape, dict) and shape.get("vocab_size") == size:
            found.append(choice)
    return found
