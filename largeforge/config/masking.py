"""Secrets never show: a typed config as plain values with its secrets masked, and wherever else they were copied to."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from largeforge.config.typed import Typed

MASK = "**********"


def plain(config: Typed, *, secrets: set[str] | None = None) -> dict[str, Any]:
    """Return a typed config as plain values, secrets masked; the secrets themselves are added to `secrets`."""
    found: dict[str, Any] = {}
    for name, info in type(config).model_fields.items():
        found[info.alias or name] = _plain(getattr(config, name), secrets)
    return found


def _plain(value: Any, secrets: set[str] | None) -> Any:
    if isinstance(value, Typed):
        return plain(value, secrets=secrets)
    if isinstance(value, SecretStr):
        if secrets is not None and value.get_secret_value():
            secrets.add(value.get_secret_value())
        return MASK
    if isinstance(value, (list, tuple)):
        return [_plain(item, secrets) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, secrets) for key, item in value.items()}
    return value


def hide(value: Any, secrets: set[str]) -> Any:
    """Mask secrets wherever they were copied to, in plain values of any depth."""
    if isinstance(value, dict):
        return {key: hide(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(hide(item, secrets) for item in value)
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
    return value
