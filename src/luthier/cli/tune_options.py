"""Options of `luthier tune` as they are typed, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.core.study import GoalName, SamplerName

_SAMPLERS: Final = ("tpe", "cmaes", "random")
_GOALS: Final = ("quality", "latency", "size", "cost")


def refuse_mixed(recipe: Path | None, resume: str | None, **others: object) -> None:
    """Raise RequestError where not exactly one of a recipe and a study is given, or more of a study is changed.

    others: options that a study keeps as it began, by name; None and what is empty were not given.
    """
    from luthier.core.errors import RequestError

    if (recipe is None) == (resume is None):
        raise RequestError(
            "both a recipe and --resume" if recipe else "neither a recipe nor --resume",
            expected="a recipe with a budget, or --resume STUDY",
            do="write for example: luthier tune recipe.yaml --budget-hours 2",
        )
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None and value != ()]
    if resume is not None and given:
        raise RequestError(
            f"{', '.join(given)} with --resume",
            expected="a study as it began: only its budget can be changed",
            do=f"leave {'it' if len(given) == 1 else 'them'} out, or begin another study",
        )


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
