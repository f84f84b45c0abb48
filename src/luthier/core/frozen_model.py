"""The bases of specs and of bodies of requests: a key that they do not know is an error."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class FrozenModel(BaseModel):
    """A value object: cannot be changed after it is made; unknown keys and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class SparseModel(FrozenModel):
    """A value object whose documents leave out later fields that have their defaults.

    Documents that were stored before a field existed, and their digests, stay as they are when they are written again.

    Attributes:
        later_fields: those that are left out.
    """

    later_fields: ClassVar[tuple[str, ...]] = ()
    _later_defaults: ClassVar[tuple[tuple[str, Any], ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Look the defaults up once: turns of conversations are written by the million."""
        super().__pydantic_init_subclass__(**kwargs)
        cls._later_defaults = tuple(
            (name, cls.model_fields[name].get_default(call_default_factory=True)) for name in cls.later_fields
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The fields of the model: by its serializer alone, a schema of what is written would be any object."""
        return handler({key: value for key, value in core_schema.items() if key != "serialization"})

    @model_serializer(mode="wrap")
    def _without_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = write(self)
        values = self.__dict__  # attributes of a model take twice as long
        for name, default in self._later_defaults:
            if values[name] == default:
                document.pop(name, None)  # it may be excluded already
        return document


class ClosedModel(BaseModel):
    """What a request holds: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class StrictModel(BaseModel):
    """What a request holds: unknown keys are refused, and no value is converted, such as "1" to 1."""

    model_config = ConfigDict(extra="forbid", strict=True)
