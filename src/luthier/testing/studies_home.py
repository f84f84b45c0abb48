"""A study in a home as a search leaves it behind, made without training: for tests of what shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.recipe import Recipe
from luthier.core.workflows.study import Parameter, Result, Space, Study, StudySpec, Trial, TrialState, Values
from luthier.platform.home.context import Context

STUDY_ID: Final = "study-20261126-120000-abcdef"
_RUNGS: Final = (1 / 9, 1 / 3, 1.0)
_STEPS: Final = (20, 60, 180)
_RATES: Final = (3e-4, 2e-3, 8e-4, 5e-3, 1e-4, 1.5e-3, 9e-3, 1.2e-3, 2.5e-3)
_REACHED: Final = (2, 1, 0, 0, 0, 2, 0, 1, 0)
"""The highest rung of each trial after the first: one in three goes on."""


def add_study(home: Context, changed: Mapping[str, Any] | None = None) -> Study:
    """A study that is searched: the recipe as it came, nine trials, one that failed and one that trains.

    Args:
        home: The home.
        changed: Fields of the study that get other values.
    """
    document = {
        "base_model": "smollm2-135m-instruct",
        "data": {"train": f"{home.home}/rows/train.jsonl", "validation": 0.1},
        "method": {"name": "lora", "rank": 4},
    }
    space = Space(
        parameters=(
            Parameter(name="training.learning_rate", kind="float", low=1e-4, high=1e-2, log=True),
            Parameter(name="method.rank", kind="choice", choices=(4, 8, 16, 32)),
            Parameter(name="training.schedule", kind="choice", choices=("cosine", "linear", "constant")),
            Parameter(name="training.weight_decay", kind="choice", choices=(0.0, 0.01, 0.1)),
            Parameter(name="training.epochs", kind="choice", choices=(1.0, 2.0, 4.0)),
        )
    )
    spec = StudySpec(
        recipe=Recipe.model_validate(document), space=space, hours=2.0, most_trials=20, rungs=_RUNGS, workers=2
    )
    study = Study(
        study_id=STUDY_ID,
        created_at="2026-11-26T12:00:00+00:00",
        status="searching",
        spec=spec,
        usd_per_hour=1.5,
        overhead_hours=0.012,
    ).model_copy(update=dict(changed or {}))
    home.studies.create(study, DEFAULT_PROJECT)
    for trial in _trials():
        home.studies.put_trial(STUDY_ID, trial)
    return study


def trial_of(number: int, values: Values, reached: int, loss: float, *, state: TrialState, reason: str = "") -> Trial:
    """A trial that has got to a rung, -1 for none, with `loss` on the last one."""
    results = tuple(
        Result(
            rung=rung,
            step=_STEPS[rung],
            share=_STEPS[rung] / _STEPS[-1],
            # Loss falls by a third from rung to rung.
            loss=loss * 1.5 ** (2 - rung),
            study_hours=0.03 + 0.09 * number + 0.15 * rung,
        )
        for rung in range(reached + 1)
    )
    run_id = f"run-20261126-1200{number:02d}-abcdef"
    hours = 0.02 * 3 ** max(0, reached)
    return Trial(number=number, values=values, run_id=run_id, state=state, results=results, hours=hours, reason=reason)


def _trials() -> list[Trial]:
    found = [trial_of(0, {}, 2, 1.25, state="done")]
    for place, (rate, reached) in enumerate(zip(_RATES, _REACHED, strict=True)):
        values: Values = {
            "training.learning_rate": rate,
            "method.rank": (4, 8, 16, 32)[place % 4],
            "training.schedule": ("cosine", "linear", "constant")[place % 3],
            "training.weight_decay": (0.0, 0.01, 0.1)[place // 3],
            "training.epochs": (1.0, 2.0, 4.0)[(place + 1) % 3],
        }
        loss = 1.125 + 0.0625 * (place % 5)
        found.append(trial_of(place + 1, values, reached, loss, state="done" if reached == 2 else "paused"))
    lost: Values = {"training.learning_rate": 0.01, "method.rank": 32}
    found.append(trial_of(10, lost, -1, 0.0, state="failed", reason="its loss is no number after step 4"))
    found.append(trial_of(11, lost | {"method.rank": 8}, -1, 0.0, state="running"))
    return found
