"""A case without doubt that can be reckoned by hand, and variations of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.estimate import Estimate
from luthier.core.evaluation import AlternativeWord, SystemKind
from luthier.core.results.roi import Case
from luthier.core.results.roi_result import MeasuredBaseline, MeasuredGains

PLAIN: dict[str, Any] = {
    "name": "By hand",
    "currency": "USD",
    "calls": {"per_month": 10_000, "input_tokens": 1_000, "output_tokens": 100, "value_of_one_more_correct": 0.5},
    "today": {
        "accuracy": 0.6,
        "hosted": {"input_price_per_million_tokens": 2, "output_price_per_million_tokens": 10},
    },
    "tuned": {"gain": 0.1, "saved_prompt_tokens": 500},
    "people": {"rate_per_hour": 50, "preparation_hours": 10, "annotation_hours": 20, "review_hours": 10},
    "training": {"cost": 100, "num_trials": 3},
    "evaluation": {"hours": 4},
    "upkeep": {"retrain_every_months": 6, "work_hours_per_retraining": 2, "review_hours_per_month": 1},
}

MakeCase = Callable[..., Case]


def changed(changes: dict[str, Any]) -> Case:
    """The plain case with values set by dotted key; None takes a key out."""
    document = copy.deepcopy(PLAIN)
    for key, value in changes.items():
        *parents, last = key.split(".")
        level = document
        for parent in parents:
            level = level.setdefault(parent, {})
        if value is None:
            level.pop(last, None)
        else:
            level[last] = value
    return Case.model_validate_json(json.dumps(document), strict=True)


@pytest.fixture
def make_case() -> MakeCase:
    """The plain case; or with changes, by dotted key."""
    return lambda changes=None: changed(changes or {})


@pytest.fixture
def measured() -> MeasuredGains:
    """Exact match on 200 rows: base 0.6, few-shot 0.66, tuned 0.7; four examples of 300 tokens together."""
    return MeasuredGains(
        evaluation_id="eval-20261125-093000-aaaaaa",
        run_id="run-20261125-093000-aaaaaa",
        metric="exact_match",
        metric_title="exact match",
        is_share_of_correct=True,
        num_rows=200,
        today="the base model",
        tuned=Estimate(value=0.1, low=0.04, high=0.16),
        over_few_shot=Estimate(value=0.04, low=-0.01, high=0.09),
        today_value=0.6,
        shot_tokens=300.0,
    )


def baseline(
    name: str, kind: SystemKind, value: float, less: tuple[float, float, float], tuned_is: AlternativeWord
) -> MeasuredBaseline:
    """A baseline of this accuracy; `less` is the tuned model less it, with its interval."""
    low, difference, high = less
    return MeasuredBaseline(
        name=name,
        kind=kind,
        title=f"a {name}",
        value=Estimate(value=value, low=value - 0.06, high=value + 0.06),
        tuned_less=Estimate(value=difference, low=low, high=high),
        tuned_is=tuned_is,
        seconds=0.7,
    )


@pytest.fixture
def beside_baselines(measured: MeasuredGains) -> MeasuredGains:
    """As `measured` without few-shot; beside it a linear classifier of 0.72 and a commonest answer of 0.65."""
    return measured.model_copy(
        update={
            "over_few_shot": None,
            "shot_tokens": None,
            "today_name": "base",
            "today_figure": Estimate(value=0.6, low=0.53, high=0.67),
            "tuned_figure": Estimate(value=0.7, low=0.63, high=0.76),
            "baselines": (
                baseline("commonest answer", "majority", 0.65, (0.0, 0.05, 0.1), "not_distinguishable"),
                baseline("linear classifier", "linear", 0.72, (-0.07, -0.02, 0.03), "not_distinguishable"),
            ),
        }
    )


@pytest.fixture(scope="session")
def make_changed() -> MakeCase:
    """As `make_case`, for properties: it may be called again and again."""
    return changed
