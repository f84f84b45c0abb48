"""Each parameter on a scale from 0 to 1, for pictures that show all of them side by side."""

from __future__ import annotations

import math

from luthier.core.workflows.study import Parameter, Plain, Values


def height_of(parameter: Parameter, values: Values) -> float | None:
    """Where a value lies in its range, from 0 to 1; None where it plays no part or is none of the choices."""
    value = values.get(parameter.name)
    if value is None:
        return None
    if parameter.kind == "choice":
        places = list(parameter.choices)
        return places.index(value) / max(1, len(places) - 1) if value in places else None
    assert parameter.low is not None
    assert parameter.high is not None
    low, high, x = float(parameter.low), float(parameter.high), float(value)
    if parameter.log:
        low, high, x = math.log(low), math.log(high), math.log(x)
    return (x - low) / (high - low) if high > low else 0.5


def ends_of(parameter: Parameter) -> tuple[str, str]:
    """The lower and the upper end of a range, as text."""
    if parameter.kind == "choice":
        return _said(parameter.choices[0]), _said(parameter.choices[-1])
    return f"{parameter.low:.3g}", f"{parameter.high:.3g}"


def short_name(name: str) -> str:
    """The name of a parameter without its section."""
    return "method" if name == "method.name" else name.rpartition(".")[2].replace("_", " ")


def _said(value: Plain) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
