"""What may be searched by the loss on validation rows, and what would compare two measures."""

from __future__ import annotations

from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.plan import Plan
from luthier.core.workflows.study import Parameter, Space
from luthier.ml.search.comparable import refuse_incomparable, why_incomparable
from luthier.ml.training.objectives.rules import RULES
from luthier.testing.records import make_plan, make_profile


def with_objective(name: str, **settings: Any) -> Plan:
    plan = make_plan()
    return plan.model_copy(update={"objective": plan.objective.model_copy(update={"name": name} | settings)})


def space(name: str, *choices: Any) -> Space:
    return Space(parameters=(Parameter(name=name, kind="choice", choices=choices),))


@pytest.mark.parametrize(
    ("objective", "settings", "name", "choices"),
    [
        ("dpo", {"beta": 0.1}, "objective.beta", (0.05, 0.1, 0.5)),
        ("dpo", {"beta": 0.1}, "objective.beta", (0.3,)),  # trial 0 has the recipe's
        ("dpo", {"beta": 0.1, "label_smoothing": 0.0}, "objective.label_smoothing", (0.0, 0.1)),
        ("simpo", {"beta": 2.0, "gamma": 1.0}, "objective.gamma", (0.5, 1.0)),
        ("kto", {"beta": 0.1, "desirable_weight": 1.0}, "objective.desirable_weight", (1.0, 1.3)),
        ("distillation", {"temperature": 1.0}, "objective.temperature", (1.0, 2.0)),
        ("embed", {"temperature": 0.05}, "objective.temperature", (0.02, 0.05)),
        ("sft", {"loss_weighting": "token"}, "objective.loss_weighting", ("token", "sample")),
        ("dpo", {"beta": 0.1}, "objective.name", ("dpo", "ipo")),
        ("dpo", {"loss_type": "sigmoid"}, "objective.loss_type", ("sigmoid", "hinge")),
    ],
)
def test_what_changes_the_measure_is_refused(
    objective: str, settings: dict[str, Any], name: str, choices: tuple[Any, ...]
) -> None:
    with pytest.raises(RequestError, match=f"{name} among what is searched"):
        refuse_incomparable(space(name, *choices), with_objective(objective, **settings))


def test_a_range_is_refused_as_well() -> None:
    beta = Parameter(name="objective.beta", kind="float", low=0.05, high=0.5, log=True)
    with pytest.raises(RequestError, match=r"objective\.beta among"):
        refuse_incomparable(Space(parameters=(beta,)), with_objective("dpo", beta=0.1))


@pytest.mark.parametrize(
    ("objective", "settings", "name", "choices"),
    [
        ("sft", {"loss_weighting": "token"}, "objective.loss_weighting", ("token", "dft")),
        ("sft", {"label_smoothing": 0.0}, "objective.label_smoothing", (0.0, 0.1)),
        ("classify", {}, "objective.class_weights", ("none", "balanced")),
        ("dpo", {"beta": 0.1}, "objective.beta", (0.1,)),
        ("dpo", {"beta": 0.1}, "training.learning_rate", (1e-4, 1e-3)),
    ],
)
def test_what_leaves_the_measure_alone_is_searched(
    objective: str, settings: dict[str, Any], name: str, choices: tuple[Any, ...]
) -> None:
    refuse_incomparable(space(name, *choices), with_objective(objective, **settings))


def test_plans_are_compared_by_measure_and_rows() -> None:
    own = with_objective("dpo", beta=0.1)
    assert why_incomparable(own, own) == ""
    assert "objective.beta is 0.3, not 0.1" in why_incomparable(with_objective("dpo", beta=0.3), own)
    assert "objective.name is ipo, not dpo" in why_incomparable(with_objective("ipo", beta=0.1), own)
    rows, fewer = make_profile(), make_profile().model_copy(update={"num_trained_tokens": 399})
    whole, cut = (
        own.model_copy(update={"data": own.data.model_copy(update={"validation": one})}) for one in (rows, fewer)
    )
    assert why_incomparable(whole, whole) == ""
    assert "its validation rows are others" in why_incomparable(cut, whole)


def test_settings_that_objectives_declare_are_settings_of_theirs() -> None:
    for name, rules in nonempty(RULES.items()):
        others = {"teacher"} if rules.needs_teacher else set()
        assert set(rules.loss_settings) <= set(rules.settings) | others, name


def test_a_dpo_of_before_there_were_other_losses_is_one_of_today() -> None:
    today = with_objective("dpo", loss_type="sigmoid")
    assert why_incomparable(with_objective("dpo"), today) == ""
    assert "loss_type is hinge, not sigmoid" in why_incomparable(with_objective("dpo", loss_type="hinge"), today)
    assert with_objective("dpo").hash == today.hash != with_objective("dpo", loss_type="hinge").hash
