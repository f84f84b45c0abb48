"""Of KTO: a warning where good and bad answers count very differently, with the weights that would mend it."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any, cast

import pytest

from luthier.core.dataset import TokenisedExample
from luthier.core.events import Event, WarningRaised
from luthier.features.training.preparation import warn_of_the_kinds
from luthier.testing.records import make_plan


def warned(num_good: int, num_bad: int, **weights: float) -> list[str]:
    plan = make_plan()
    objective = plan.objective.model_copy(update={"name": "kto"} | weights)
    rows = [
        TokenisedExample(str(i), array("i", [1, 2]), b"\0\1", is_wanted=i < num_good) for i in range(num_good + num_bad)
    ]
    train = SimpleNamespace(tokenised=rows, stream=None)
    prepared = SimpleNamespace(plan=plan.model_copy(update={"objective": objective}), train=train)
    events: list[Event] = []
    warn_of_the_kinds(cast(Any, prepared), events.append)
    return [event.message for event in events if isinstance(event, WarningRaised)]


EACH = {"desirable_weight": 1.0, "undesirable_weight": 1.0}


def test_many_good_answers_name_the_weight_of_bad_ones() -> None:
    (message,) = warned(90, 10, **EACH)
    assert "90 good and 10 bad answers" in message
    assert "objective.undesirable_weight 6.75 to 9" in message
    assert warned(90, 10, desirable_weight=1.0, undesirable_weight=6.75) == []
    assert warned(90, 10, desirable_weight=1.0, undesirable_weight=9.0) == []


def test_many_bad_answers_name_the_weight_of_good_ones() -> None:
    (message,) = warned(10, 90, **EACH)
    assert "objective.desirable_weight 9 to 12" in message
    assert warned(10, 90, desirable_weight=9.0, undesirable_weight=1.0) == []


@pytest.mark.parametrize(("num_good", "num_bad"), [(50, 50), (60, 40), (66, 34), (40, 60)])
def test_nearly_as_many_are_fine(num_good: int, num_bad: int) -> None:
    assert warned(num_good, num_bad, **EACH) == []


def test_other_objectives_have_no_such_weights() -> None:
    assert warned(90, 10) == []
