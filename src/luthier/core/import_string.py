"""Something by its name, imported when it is needed: how a lower layer reaches what is registered with it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_string(name: str) -> Any:
    """The object that `module:attribute` names.

    Args:
        name: a dotted module and, after a colon, a name in it, such as `luthier.features.runs.store:RunStore`.

    Raises:
        ModuleNotFoundError: there is no such module.
        AttributeError: the module has no such name.
    """
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
