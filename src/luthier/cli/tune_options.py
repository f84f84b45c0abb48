"""Options of `luthier tune` as they are typed, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from luthier.core.study import GoalName, SamplerName

_SAMPLERS: Final = ("tpe", "cmaes", "random")
_GOALS: Final = ("quality", "latency", "size", "cost")


def sampler(text: str) -> SamplerName:
    """Who suggests. Raises RequestError."""
    return cast("SamplerName", _one_of(text, _SAMPLERS, "--sampler"))


def goals(text: str) -> tuple[GoalName, ...]:
    """What is sought: names, comma-separated. Raises RequestError."""
    return tuple(cast("GoalName", _one_of(name.strip(), _GOALS, "--objective")) for name in text.split(","))


def _one_of(text: str, known: tuple[str, ...], option: str) -> str:
    from luthier.core.errors import RequestError

    if text not in known:
        raise RequestError(f"{option} {text}", expected=f"of {', '.join(known)}", do="correct the name")
    return text
