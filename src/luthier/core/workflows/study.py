"""The terms of a search: a study, its space, its trials, and the rungs on which they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from luthier.core.aliases import new_key, with_new_keys
from luthier.core.frozen_model import FrozenModel
from luthier.core.recipe import Recipe

Plain = bool | int | float | str
Values = dict[str, Plain]
SamplerName = Literal["tpe", "cmaes", "random", "nsga2"]
GoalName = Literal["quality", "latency", "size", "cost"]
"""quality: the loss on the validation rows. latency: weights that are read for each token where the adapter is served
next to others, as a multiple of the base model's. size: bytes of what is trained. cost: hours of a whole training. All
are better when they are smaller; all but quality are known before a trial begins."""
TrialState = Literal["waiting", "running", "paused", "stopped", "done", "failed"]
"""stopped: it was not trained on, since its curve cannot become the best; its results count."""
TrialKind = Literal["search", "confirm", "final"]
StudyStatus = Literal["searching", "confirming", "final", "done", "paused", "failed"]
ALPHA_OVER_RANK: Final = "method.alpha_over_rank"
"""A parameter that is no key of a recipe: alpha as a multiple of the rank, since the two are only good together."""
DATA_FRACTION: Final = "data.fraction"
"""Another: the share of the training rows that is used, the first in the order of a stable hash (`data.subset`). Where
the recipe itself trains on a subset, it is a share of that."""


class Parameter(FrozenModel):
    """One thing that is searched.

    kind float and int: from `low` to `high`, on a logarithmic scale where `log`. kind choice: one of `choices`,
    where None means what the plan takes by itself.

    Attributes:
        name: a key of the recipe, dotted, or `ALPHA_OVER_RANK`.
        kind: float and int: from `low` to `high`; choice: one of `choices`.
        low: the least value.
        high: the greatest value.
        log: whether the scale is logarithmic.
        choices: the values; None among them means what the plan takes by itself.
        when: parameters and values of theirs without which this one plays no part.
        why: where the range comes from.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Plain, ...] = ()
    when: dict[str, tuple[Plain, ...]] = Field(default_factory=dict)
    why: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> Parameter:
        if self.kind == "choice":
            if not self.choices or self.low is not None or self.high is not None or self.log:
                raise ValueError("choices, and neither low, high nor log")
        # The ends may be equal: a parameter that is fixed still appears in the tables of the study.
        elif self.choices or self.low is None or self.high is None or self.low > self.high:
            raise ValueError("low and high, low not above high, and no choices")
        elif self.log and self.low <= 0:
            raise ValueError("low above 0 on a logarithmic scale")
        return self

    @property
    def is_fixed(self) -> bool:
        """Whether there is but one value."""
        return len(set(self.choices)) == 1 if self.kind == "choice" else self.low == self.high


class Space(FrozenModel):
    """All that is searched, parameters after those that their conditions name."""

    parameters: tuple[Parameter, ...]

    @model_validator(mode="after")
    def _conditions_come_first(self) -> Space:
        seen: set[str] = set()
        for parameter in self.parameters:
            if parameter.name in seen:
                raise ValueError(f"{parameter.name} once")
            # Samplers go through the parameters once, from first to last: a condition must be decided by then.
            if unknown := set(parameter.when) - seen:
                raise ValueError(f"{parameter.name} after {', '.join(sorted(unknown))}, which it depends on")
            seen.add(parameter.name)
        return self

    @property
    def has_one_point(self) -> bool:
        """Whether there is nothing to search."""
        return all(parameter.is_fixed for parameter in self.parameters)


class Result(FrozenModel):
    """The result of a trial at a rung: the lowest loss on the validation rows up to `step`, as the objective has it.

    Attributes:
        rung: its number, from 0 on.
        step: the last step of the trial that it covers.
        share: of all of its steps, how many were done.
        loss: the lowest loss on the validation rows up to `step`, as the objective defines it.
        study_hours: what the whole study had spent by then.
        hours: what the trial itself had spent by then; 0 where it was not stored.
        curve: (share, loss) of every validation since the rung before.
    """

    rung: int
    step: int
    share: float
    loss: float
    study_hours: float = 0.0
    hours: float = 0.0
    curve: tuple[tuple[float, float], ...] = ()


class Trial(FrozenModel):
    """One recipe that is tried.

    Attributes:
        number: from 0 on, in the order in which they were begun; 0 is the recipe as it came.
        kind: search, confirmation or the final run.
        of: for kind `confirm`, the trial that is repeated with another seed.
        repetition: for kind `confirm`, which repetition of that trial it is, from 0 on; None for those of versions
            up to 0.1, whose seed follows from `number`.
        values: parameters by name.
        run_id: its run.
        state: how far it is.
        results: by rung, the last one the newest.
        predicted_hours: of all its steps, before it began.
        hours: of the machine, spent so far, discarded work included: where N trials train in parallel, each has
            an N-th of it.
        reason: why it failed, or was stopped.
        goals: its values for the goals of the study other than quality.
    """

    number: int
    kind: TrialKind = "search"
    of: int | None = None
    repetition: int | None = None
    values: Values
    run_id: str
    state: TrialState = "waiting"
    results: tuple[Result, ...] = ()
    predicted_hours: float | None = None
    hours: float = 0.0
    reason: str = ""
    goals: dict[GoalName, float] = Field(default_factory=dict)

    @property
    def rung(self) -> int:
        """The highest rung that it has reached; -1 for none."""
        return self.results[-1].rung if self.results else -1

    @property
    def loss(self) -> float | None:
        """The loss on its highest rung."""
        return self.results[-1].loss if self.results else None

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(share, loss) of every validation up to its highest rung; empty where they were not kept."""
        return tuple(point for result in self.results for point in result.curve)


class StartPoint(FrozenModel):
    """A recipe to try before any is suggested.

    Attributes:
        values: parameters by name.
        why: where it comes from.
    """

    values: Values
    why: str


class StudySpec(FrozenModel):
    """The request.

    Attributes:
        recipe: with absolute paths.
        space: what is searched.
        hours: for the whole study.
        usd: likewise, None without a cap.
        most_trials: trials at most.
        sampler: what suggests values.
        seed: of all draws.
        rungs: the shares of a whole training after which trials are compared, the last one 1.
        reduction: one of this many continues.
        num_confirmed: how many of the best are repeated, with `num_seeds` further seeds each.
        num_seeds: further seeds of each of these.
        workers: how many trials train in parallel, each with its share of the machine's threads.
        goals: what is sought, quality among them.
        own_values: what the original recipe sets, if it is searched.
        start: what is tried first after it.
        stops_hopeless: whether a trial is stopped whose curve cannot become the best.
    """

    recipe: Recipe
    space: Space
    hours: float
    usd: float | None = None
    most_trials: int
    sampler: SamplerName = "tpe"
    seed: int = 0
    rungs: tuple[float, ...]
    reduction: int = 3
    num_confirmed: int = 2
    num_seeds: int = 1
    workers: int = Field(default=1, ge=1)
    goals: tuple[GoalName, ...] = ("quality",)
    own_values: Values = Field(default_factory=dict)
    start: tuple[StartPoint, ...] = ()
    stops_hopeless: bool = False

    @model_validator(mode="after")
    def _goals_are_whole(self) -> StudySpec:
        if "quality" not in self.goals or len(set(self.goals)) < len(self.goals):
            raise ValueError("goals, each once, quality among them")
        return self

    @model_validator(mode="after")
    def _rungs_rise(self) -> StudySpec:
        if list(self.rungs) != sorted(set(self.rungs)) or not self.rungs or self.rungs[-1] != 1 or self.rungs[0] <= 0:
            raise ValueError("rungs that rise from above 0 to 1")
        return self


class Study(FrozenModel):
    """A search and how far it is.

    Attributes:
        study_id: its id.
        created_at: UTC, ISO 8601.
        status: how far it is.
        spec: the request.
        usd_per_hour: of this machine; None where it is not known.
        winner: the number of the best trial, once it is named.
        final_run_id: the run on all rows with the winner's recipe.
        hours: spent so far.
        overhead_hours: spent on neither training nor judging.
        notes: what had to be narrowed or left out, a sentence each.
        report_path: its report; None before.
        needs_hours: a budget with which the final run should finish, where the one that it had was not enough.
        is_searched: whether the search has ended within its budget; what comes after it must not make it begin more.
    """

    study_id: str
    created_at: str
    status: StudyStatus
    spec: StudySpec
    usd_per_hour: float | None = None
    winner: int | None = None
    final_run_id: str | None = None
    hours: float = 0.0
    overhead_hours: float = 0.0
    notes: tuple[str, ...] = ()
    report_path: str | None = None
    needs_hours: float | None = None
    is_searched: bool = False

    @property
    def way_on(self) -> str:
        """The command that continues with it."""
        # Rounded up: a budget that is rounded down may be spent already.
        more = "" if self.needs_hours is None else f" --budget-hours {ceil(self.needs_hours * 100) / 100:.10g}"
        return f"luthier tune --resume {self.study_id}{more}"


def hours_spent(study: Study, trials: Sequence[Trial]) -> float:
    """What a study has spent up to now: as stored with its final run, before that what its trials have taken."""
    return study.hours or sum(trial.hours for trial in trials) + study.overhead_hours


def _share_of(part: tuple[float, float], share: Any) -> list[Any]:
    """The beginning of a part of the rows. What is no share is left for the check of the recipe to name."""
    start, end = part
    is_share = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1
    return [start, min(end, start + share * (end - start)) if is_share else share]


def recipe_with(recipe: Recipe, values: Values) -> dict[str, Any]:
    """The recipe as a document, with these values in it; the inner mappings that it lacks are made."""
    # exclude_none: what the recipe leaves open stays open, so that the plan of the trial decides it.
    document = with_new_keys(recipe.model_dump(mode="json", exclude_none=True))
    for name, value in values.items():
        if name == ALPHA_OVER_RANK:
            continue
        if name == DATA_FRACTION:
            document["data"]["subset"] = _share_of(recipe.data.part or (0.0, 1.0), value)
            continue
        *sections, key = new_key(name).split(".")
        level = document
        for section in sections:
            # What is no mapping is replaced, and the check of the recipe names the key.
            if not isinstance(level.get(section), dict):
                level[section] = {}
            level = level[section]
        level[key] = value
    given, training = {new_key(name): value for name, value in values.items()}, document.get("training", {})
    # What a value takes the place of, or leaves nothing to do for: the recipe would be refused with both.
    if "training.warmup_fraction" in given:
        training.pop("warmup_steps", None)
    for name, other in (("global_batch_size", "global_batch_tokens"), ("global_batch_tokens", "global_batch_size")):
        if f"training.{name}" in given:
            training.pop(other, None)
    if given.get("training.lr_schedule") == "constant":
        training.pop("min_lr_ratio", None)
    # After the loop: the rank may be one of the values.
    if (ratio := values.get(ALPHA_OVER_RANK)) is not None:
        method = document.setdefault("method", {})
        if "rank" in method:
            method["alpha"] = float(ratio) * method["rank"]
    return document
