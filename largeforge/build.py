"""The one way a part comes to be: a typed config whose `_target_` names the class. Never `hydra.utils.instantiate`.

The config check has already refused every target outside `largeforge.<group>` and the packages the user trusts;
here the name is only followed.
"""

from __future__ import annotations

import importlib
from typing import Any

from largeforge.config.typed import PartConfig


def build(config: PartConfig, **live: Any) -> Any:
    """Import the class that `config.target` names and call it: `Class(config, **live)`.

    Args:
        config: the typed choice.
        live: objects that exist only at run time (a model, a tokenizer), by keyword.
    """
    return find(config.target)(config, **live)


def find(target: str) -> Any:
    """Return the class that a dotted name stands for."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)
