"""An objective takes its own settings and the rows it can learn from, and no others."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.dataset import Shape
from luthier.core.errors import RecipeError
from luthier.core.plan import ObjectivePlan
from luthier.core.recipe import ObjectiveRecipe, PairLoss, Reward
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.learning_rates import of_objective
from luthier.ml.planning.resolve_objective import resolve_objective
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.methods.rules import rules_of as rules_of_method
from luthier.ml.training.objectives.rules import RULES, rules_of


def test_silence_means_supervised_fine_tuning() -> None:
    sources = Provenance()
    assert resolve_objective(None, "chat", sources).name == "sft"
    assert sources.found["objective.name"].source == "default"


def test_what_was_asked_is_noted_as_asked() -> None:
    sources = Provenance()
    resolve_objective(ObjectiveRecipe(name="sft"), "text", sources)
    assert sources.found["objective.name"].source == "asked"


def test_an_unknown_objective_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="not an objective") as caught:
        ObjectiveRecipe(name="sfft")
    assert "sft" in str(caught.value.errors()[0]["ctx"]["expected"])  # type: ignore[attr-defined]
    assert not isinstance(caught.value, RecipeError)


def test_every_objective_has_rules_and_each_setting_a_place_in_plan_and_recipe() -> None:
    assert [name for name, rules in RULES.items() if not rules.title] == []
    settings = [(name, setting, *told) for name, rules in RULES.items() for setting, told in rules.settings.items()]
    for name, setting, default, why in nonempty(settings):
        assert why
        assert setting in ObjectiveRecipe.model_fields
        assert setting in ObjectivePlan.model_fields
        assert ObjectiveRecipe.model_validate({"name": name, setting: default})


def test_a_silent_recipe_gets_each_default_with_its_reason() -> None:
    sources = Provenance()
    plan = resolve_objective(ObjectiveRecipe(name="simpo", beta=2.5), "preference", sources)
    assert (plan.beta, plan.gamma, plan.label_smoothing, plan.nll_over) == (2.5, 1.0, 0.0, None)
    assert (sources.found["objective.beta"].source, sources.found["objective.gamma"].source) == ("asked", "default")
    assert sources.found["objective.gamma"].why


@pytest.mark.parametrize(
    ("name", "shape", "do"),
    [
        ("sft", "preference", "completion=chosen"),
        ("sft", "unpaired", "bad answers would be learned too"),
        ("dpo", "chat", "give it such rows"),
        ("orpo", "unpaired", "give it such rows"),
        ("kto", "text", "give it such rows"),
    ],
)
def test_rows_that_an_objective_cannot_learn_from_are_refused(name: str, shape: Shape, do: str) -> None:
    with pytest.raises(RecipeError, match=f"objective {name} with {shape} rows") as caught:
        resolve_objective(ObjectiveRecipe(name=name), shape, Provenance())
    assert do in caught.value.do


def test_a_setting_of_another_objective_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"objective\.gamma") as caught:
        resolve_objective(ObjectiveRecipe(name="dpo", gamma=1.0), "preference", Provenance())
    assert "beta, label_smoothing" in caught.value.expected


def test_a_loss_of_dpo_brings_its_own_defaults() -> None:
    sources = Provenance()
    plain = resolve_objective(ObjectiveRecipe(name="dpo", label_smoothing=0.1), "preference", sources)
    assert (plain.loss_type, plain.beta, plain.label_smoothing) == ("sigmoid", 0.1, 0.1)
    found = {
        kind: resolve_objective(ObjectiveRecipe(name="dpo", loss_type=kind), "preference", sources)
        for kind in ("robust", "exo_pair", "sigmoid_norm", "hinge")
    }
    assert {kind: (plan.beta, plan.label_smoothing) for kind, plan in found.items()} == {
        "robust": (0.1, 0.1), "exo_pair": (0.1, 0.001), "sigmoid_norm": (5.0, 0.0), "hinge": (0.1, 0.0),
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "smoothing"), [("hinge", 0.1), ("bco_pair", 0.2), ("robust", 0.0), ("exo_pair", 0.0)])
def test_label_smoothing_that_a_loss_of_dpo_does_not_take_is_refused(kind: PairLoss, smoothing: float) -> None:
    asked = ObjectiveRecipe(name="dpo", loss_type=kind, label_smoothing=smoothing)
    with pytest.raises(RecipeError, match=rf"loss_type {kind} with objective\.label_smoothing"):
        resolve_objective(asked, "preference", Provenance())


def test_a_loss_type_is_a_setting_of_dpo_alone() -> None:
    with pytest.raises(RecipeError, match=r"objective ipo with objective\.loss_type"):
        resolve_objective(ObjectiveRecipe(name="ipo", loss_type="hinge"), "preference", Provenance())


@pytest.mark.parametrize("value", [-0.1, 0.5, 1.0])
def test_label_smoothing_of_a_half_or_more_says_nothing(value: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        ObjectiveRecipe(name="dpo", label_smoothing=value)


def test_preferences_are_learned_slower_than_answers_by_every_method() -> None:
    assert of_objective("sft", (2e-4, "usual")) == (2e-4, "usual")
    assert of_objective("dpo", (2e-4, "usual"))[0] == 2e-5
    for method in nonempty(METHODS):
        usual = rules_of_method(method).learning_rate
        assert of_objective("simpo", usual)[0] < of_objective("dpo", usual)[0] < of_objective("orpo", usual)[0]
        assert of_objective("orpo", usual)[0] < usual[0]
    assert rules_of("kto").rows_per_unit == 1


def test_label_smoothing_is_off_by_default_and_taken_as_asked() -> None:
    assert resolve_objective(None, "chat", Provenance()).label_smoothing == 0.0
    asked = ObjectiveRecipe(name="sft", label_smoothing=0.1)
    assert resolve_objective(asked, "chat", Provenance()).label_smoothing == 0.1


def test_answers_of_rows_are_weighed_by_token_or_by_row() -> None:
    sources = Provenance()
    assert resolve_objective(None, "chat", sources).loss_weighting == "token"
    assert "every learned token counts the same" in sources.found["objective.loss_weighting"].why
    asked = ObjectiveRecipe(name="sft", loss_weighting="sample")
    assert resolve_objective(asked, "chat", Provenance()).loss_weighting == "sample"
    with pytest.raises(RecipeError, match="loss_weighting fixed"):
        resolve_objective(ObjectiveRecipe(name="sft", loss_weighting="fixed"), "chat", Provenance())
    for weighting in ("sample", "dft"):
        with pytest.raises(RecipeError, match="label_smoothing"):
            resolve_objective(
                ObjectiveRecipe(name="sft", loss_weighting=weighting, label_smoothing=0.1), "chat", Provenance()
            )
    drawn = ObjectiveRecipe(name="grpo", loss_weighting="dft", rewards=(Reward(metric="token_f1"),))
    with pytest.raises(RecipeError, match=r"grpo with objective\.loss_weighting dft"):
        resolve_objective(drawn, "chat", Provenance())


def test_rewards_that_weigh_nothing_are_refused() -> None:
    parts = (Reward(metric="token_f1", weight=0.0), Reward(metric="exact_match", weight=0.0))
    with pytest.raises(RecipeError, match="every answer is worth the same"):
        resolve_objective(ObjectiveRecipe(name="grpo", rewards=parts), "chat", Provenance())
    shown = (parts[0], Reward(metric="exact_match", weight=-1.0))
    assert resolve_objective(ObjectiveRecipe(name="grpo", rewards=shown), "chat", Provenance()).rewards == shown


def test_clipping_needs_several_updates_and_has_the_lower_end_as_default_of_the_upper() -> None:
    rewards = (Reward(metric="token_f1"),)

    def found(**more: float) -> ObjectivePlan:
        return resolve_objective(ObjectiveRecipe(name="grpo", rewards=rewards, **more), "chat", Provenance())

    plain = found()
    assert (plain.num_iterations, plain.clip_ratio_low, plain.clip_ratio_high) == (1, None, None)
    ends = [
        (p.clip_ratio_low, p.clip_ratio_high)
        for p in (
            found(num_iterations=4),
            found(num_iterations=4, clip_ratio_low=0.1),
            found(num_iterations=4, clip_ratio_high=0.28),
        )
    ]
    assert ends == [(0.2, 0.2), (0.1, 0.1), (0.2, 0.28)]
    for name in ("clip_ratio_low", "clip_ratio_high"):
        for num in (None, 1):
            with pytest.raises(RecipeError, match=rf"objective\.{name} 0\.1 with objective\.num_iterations 1"):
                found(num_iterations=num, **{name: 0.1})  # type: ignore[arg-type]
    assert found(num_iterations=4).max_step_tokens(90.0, 10.0, 2.0) == 4 * plain.max_step_tokens(90.0, 10.0, 2.0)
