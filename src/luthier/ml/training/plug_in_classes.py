"""Classes of plug-ins that were written before their interface grew."""

from __future__ import annotations

from typing import Any


def with_defaults(plug_in: Any, base: type) -> Any:
    """What a plug-in names, with the defaults of a base class for all that it does not define itself.

    Args:
        plug_in: A class; anything else that makes an object stays as it is.
        base: The class with the defaults of its interface.
    """
    if not isinstance(plug_in, type) or issubclass(plug_in, base):
        return plug_in
    # Last in the order of resolution: it only gives what the class and its own bases lack.
    return type(plug_in.__name__, (plug_in, base), {"__module__": plug_in.__module__, "__doc__": plug_in.__doc__})
