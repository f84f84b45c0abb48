"""Options of `luthier tune` as they are typed, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luthier.core.workflows.study import GoalName, SamplerName

HoursOption = Annotated[
    float | None,
    typer.Option("--budget-hours", metavar="H", help="Time limit of the whole search, final run included."),
]
UsdOption = Annotated[
    float | None,
    typer.Option("--budget-usd", metavar="USD", help="Cost limit of the whole search, at this machine's price."),
]
TrialsOption = Annotated[
    int | None, typer.Option("--trials", min=1, metavar="N", help="Maximum number of trials [default: 40].")
]
SpaceOption = Annotated[
    Path | None, typer.Option("--space", metavar="FILE", help="Your own search space instead of the default.")
]
SamplerOption = Annotated[
    str | None, typer.Option("--sampler", metavar="tpe|cmaes|random", help="How trials are suggested [default: tpe].")
]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="GOALS",
        help="quality, or several of quality, latency, size and cost for a Pareto front [default: quality].",
    ),
]
WarmStartOption = Annotated[
    bool, typer.Option("--warm-start", help="Start from the results of earlier studies on similar data.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, help="The same seed gives the same search [default: 0].")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=64, metavar="N", help="Number of trials to train in parallel [default: 1]."),
]
ResumeOption = Annotated[
    str | None, typer.Option("--resume", metavar="STUDY", help="Resume a search that was paused or killed.")
]

_SAMPLERS: Final = ("tpe", "cmaes", "random")
_GOALS: Final = ("quality", "latency", "size", "cost")


def refuse_mixed(recipe: Path | None, resume: str | None, kept: Mapping[str, object]) -> None:
    """Raise RequestError where not exactly one of a recipe and a study is given, or more of a study is changed.

    Args:
        recipe: The recipe; None where none was given.
        resume: The id of the study; None where none was given.
        kept: Options that a study keeps as it began, by name; None where one was not given.
    """
    from luthier.core.errors import RequestError

    if (recipe is None) == (resume is None):
        raise RequestError(
            "both a recipe and --resume" if recipe else "neither a recipe nor --resume",
            expected="a recipe with a budget, or --resume STUDY",
            do="write for example: luthier tune recipe.yaml --budget-hours 2",
        )
    given = [f"--{name.replace('_', '-')}" for name, value in kept.items() if value is not None]
    if resume is not None and given:
        raise RequestError(
            f"{', '.join(given)} with --resume",
            expected="a study as it began: only its budget can be changed",
            do=f"leave {'it' if len(given) == 1 else 'them'} out, or begin another study",
        )


def sampler(text: str) -> SamplerName:
    """Who suggests.

    Raises:
        RequestError: There is no such sampler.
    """
    return cast("SamplerName", _one_of(text, _SAMPLERS, "--sampler"))


def goals(text: str) -> tuple[GoalName, ...]:
    """What is sought: names, comma-separated.

    Raises:
        RequestError: There is no such objective.
    """
    return tuple(cast("GoalName", _one_of(name.strip(), _GOALS, "--objective")) for name in text.split(","))


def _one_of(text: str, known: tuple[str, ...], option: str) -> str:
    from luthier.core.errors import RequestError

    if text not in known:
        raise RequestError(f"{option} {text}", expected=f"of {', '.join(known)}", do="correct the name")
    return text
