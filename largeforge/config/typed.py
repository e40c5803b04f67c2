"""The base classes and field types of every typed config; knows nothing about Hydra or where values come from.

A choice `conf/G/x.yaml` has one class derived from `PartConfig`: `_target_: largeforge.G.<file>.<Class>` is typed by
`largeforge.G.config.<Class>Config`. Types and ranges live in these classes, every default lives in the YAML.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def whole_number(value: Any) -> Any:
    """Refuse what pydantic's lax mode would take for an integer: true, "3", 3.0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def real_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a number")
    return value


def truth(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


Int = Annotated[int, BeforeValidator(whole_number)]
PositiveInt = Annotated[int, BeforeValidator(whole_number), Field(ge=1)]
NonNegativeInt = Annotated[int, BeforeValidator(whole_number), Field(ge=0)]
Float = Annotated[float, BeforeValidator(real_number), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, BeforeValidator(real_number), Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, BeforeValidator(real_number), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(real_number), Field(ge=0, le=1, allow_inf_nan=False)]
Bool = Annotated[bool, BeforeValidator(truth)]


class Typed(BaseModel):
    """A node of the config: unknown keys are refused, values cannot change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class PartConfig(Typed):
    """A choice of a group: the class that it builds, and that class's own keys."""

    target: str = Field(alias="_target_", description="The class that this choice builds.")
