"""The bases of specs and of bodies of requests: a key that they do not know is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A value object: cannot be changed after it is made; unknown keys and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ClosedModel(BaseModel):
    """What a request holds: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class StrictModel(BaseModel):
    """What a request holds: unknown keys are refused, and no value is converted, such as "1" to 1."""

    model_config = ConfigDict(extra="forbid", strict=True)
