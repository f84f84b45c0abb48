"""What is taken out of a space after a trial that this machine has no room for."""

from __future__ import annotations

from typing import Final

from luthier.core.workflows.study import Parameter, Space, Values

_TAKES_MEMORY: Final = ("method.rank", "training.global_batch_size", "training.micro_batch_tokens")


def narrowed_by(space: Space, values: Values) -> tuple[Space, str]:
    """The space without what is at least as large as in a trial that does not fit, and a sentence that says so.

    Only parameters that take memory are narrowed, and none below its smallest value; the sentence is empty where
    nothing is left to take out.
    """
    taken: list[str] = []
    parameters = []
    for parameter in space.parameters:
        smaller = _below(parameter, values)
        if smaller is not None:
            taken.append(f"{parameter.name} below {values[parameter.name]}")
        parameters.append(smaller or parameter)
    if not taken:
        return space, ""
    return Space(parameters=tuple(parameters)), f"a trial did not fit into memory: from now on {' and '.join(taken)}"


def _below(parameter: Parameter, values: Values) -> Parameter | None:
    limit = values.get(parameter.name)
    if parameter.name not in _TAKES_MEMORY or not isinstance(limit, int | float):
        return None
    if parameter.kind == "choice":
        left = tuple(c for c in parameter.choices if isinstance(c, int | float) and c < limit)
        return parameter.model_copy(update={"choices": left}) if left else None
    assert parameter.low is not None
    return parameter.model_copy(update={"high": float(limit) - 1}) if limit - 1 >= parameter.low else None
