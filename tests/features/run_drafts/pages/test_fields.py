"""The fields of the form, the recipe and the rules of the planner say the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest
from tests.vacuous import nonempty

from luthier.core.aliases import stored_key
from luthier.features.run_drafts import fields as recipe_fields
from luthier.features.run_drafts.fields import CHOSEN, SECTIONS, SPLITS, YAML_ONLY, Field, leaf_keys, leaf_types
from luthier.features.run_drafts.form import draft_of, read_form
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.objectives.rules import RULES as OBJECTIVES
from luthier.ml.training.objectives.rules import rules_of as objective_rules


def everything() -> list[Field]:
    """All fields, those of each method and objective on their own."""
    own = (*recipe_fields.method_fields().values(), *recipe_fields.objective_fields().values())
    return [field for section in (*SECTIONS.values(), *own) for field in section]


def test_each_key_of_a_recipe_has_a_field_or_a_reason_for_none() -> None:
    shown = [*recipe_fields.all_fields(), *CHOSEN, *SPLITS]
    assert len(set(shown)) == len(shown), "a key has one field"
    assert set(shown) & set(YAML_ONLY) == set()
    assert sorted([*shown, *YAML_ONLY]) == sorted(leaf_keys()), "describe it in fields.py, or give the reason there"
    assert all(nonempty(YAML_ONLY.values()))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_field_for_all_that_it_takes(name: str) -> None:
    keys = [key for setting in METHODS[name].settings for key in leaf_keys(f"method.{setting}")]
    assert [field.name for field in recipe_fields.method_fields()[name]] == [k for k in keys if k not in YAML_ONLY]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_a_field_for_all_that_it_takes_and_learns_from_its_shapes(name: str) -> None:
    rules = objective_rules(name)
    fields = [stored_key(field.name) for field in recipe_fields.objective_fields()[name]]
    assert fields == [key for setting in rules.settings if (key := f"objective.{setting}") not in YAML_ONLY]
    assert all(name in recipe_fields.fitting(shape) for shape in nonempty(rules.shapes))


@pytest.mark.parametrize(
    ("objective", "key", "label"),
    [
        ("sft", "objective.loss_weighting", "Equal weight for"),
        ("grpo", "objective.loss_weighting", "Equal weight for"),
        ("orpo", "objective.nll_over", "Learned with the preference"),
        ("distillation", "objective.divergence", "Divergence from the teacher"),
    ],
)
def test_what_matters_for_an_objective_is_shown_at_once(objective: str, key: str, label: str) -> None:
    found = {field.name: field for field in recipe_fields.objective_of(objective)}[key]
    assert (found.label, found.kind, found.is_usual) == (label, "choice", True)


def test_the_choices_of_a_field_are_those_that_the_recipe_takes() -> None:
    for field in nonempty(one for one in everything() if one.kind == "choice"):
        names = [option.name for option in field.options]
        types = leaf_types(field.name)
        taken = {str(value) for one in types if get_origin(one) is Literal for value in get_args(one)}
        taken |= {"true", "false"} if bool in types else set()
        assert len(set(names)) == len(names) > 0
        assert all(nonempty(option.title for option in field.options))
        # The weighting is chosen among fewer: not every objective takes every weighting.
        assert set(names) <= taken if field.name == "objective.loss_weighting" else set(names) == taken, field.name


def test_each_is_explained_once_and_its_sliders_have_ends() -> None:
    assert sorted(choice.name for choice in recipe_fields.methods()) == sorted(METHODS)
    assert sorted(choice.name for choice in recipe_fields.objectives()) == sorted(OBJECTIVES)
    for field in nonempty(everything()):
        assert field.label[:1].isupper(), field.name
        assert field.high >= field.low
        assert field.scale == "linear" or field.low > 0
        assert field.high == 0 or field.kind == "number"
    temperature = {one.name: one for one in recipe_fields.objective_of("embed")}["objective.temperature"]
    assert temperature.low < OBJECTIVES["embed"].settings["temperature"][0] < temperature.high


RECIPES = [
    {"training": {"optimizer": "muon", "micro_batch_workers": "auto", "learning_rate": 2e-4}},
    {"data": {"train": "f", "canaries": 8, "replay": {"file": "g", "held_out": 0.2}, "group_by": "12"}},
    {"evaluation": {"good_enough": 0.9, "metrics": ["rouge"], "few_shot_nearest": "auto", "instruction": False}},
    {"evaluation": {"good_enough": {"metric": "bleu", "value": 1}, "optimised_prompt": {"budget_tokens": 0}}},
    {"method": {"name": "lora", "targets": "re:a{1,2}, b", "layers": {"first": 2}}, "objective": {"name": "sft"}},
    {"method": {"name": "lora", "targets": ["re:a{1,2}", "b"]}, "objective": {"name": "sft", "router_aux_loss": 0.1}},
    {"objective": {"name": "grpo", "rewards": [{"metric": "bleu"}], "normalize_advantages": False}},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_the_fields_show_comes_back_as_it_was(recipe: dict[str, object]) -> None:
    draft = draft_of(recipe, {})
    form = {name: field.shown(draft.at(name)) for name, field in recipe_fields.all_fields().items()}
    form |= {name: str(draft.at(name) or "") for name in CHOSEN}
    for name in SPLITS:
        value = draft.at(name)
        is_share = isinstance(value, float)
        form |= {name: "share" if is_share else value or "", f"{name}-percent": f"{value * 100:g}" if is_share else ""}
    assert read_form({"text": draft.text, "side": "fields", **form}, {}).keys == recipe


def test_a_share_that_no_float_holds_is_shown_as_wrong() -> None:
    form = {"data.held_out": "share", "data.held_out-percent": "1" * 400}
    draft = read_form({"text": "base_model: x\ndata: {train: y}\n", **form}, {})
    assert "expected text or a finite number" in draft.problem("data.held_out")


def test_another_optimizer_or_objective_drops_what_it_would_refuse() -> None:
    text = "training: {optimizer: {name: muon, momentum: 0.9}}\nobjective: {name: sft, loss_weighting: dft}\n"
    form = {"training.optimizer.name": "adamw", "objective.name": "grpo", "objective.loss_weighting": "dft"}
    keys = read_form({"text": text, "side": "fields", **form}, {}).keys
    assert keys is not None
    assert keys["training"] == {"optimizer": {"name": "adamw"}}
    assert "loss_weighting" not in keys["objective"]
    one_value = {"text": "evaluation: {good_enough: 0.9}\ndata: {train: f, canaries: 8}", "side": "fields"}
    one_value |= {"evaluation.good_enough.metric": "bleu", "data.canaries.num": ""}
    keys = read_form(one_value, {}).keys
    assert keys == {"evaluation": {"good_enough": {"value": 0.9, "metric": "bleu"}}, "data": {"train": "f"}}


def test_an_objective_of_a_package_keeps_its_teacher_and_its_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = replace(OBJECTIVES["distillation"], implementation="", settings={"rewards": (None, "what is graded")})
    monkeypatch.setitem(OBJECTIVES, "theirs", theirs)
    text = "objective: {name: theirs, teacher: large, rewards: [{metric: bleu, weight: 1.0}]}\n"
    draft = read_form({"text": text, "side": "fields", "objective.name": "theirs"}, {})
    assert draft.keys == {
        "objective": {"name": "theirs", "teacher": "large", "rewards": [{"metric": "bleu", "weight": 1.0}]}
    }
    assert draft.objective is theirs
    keys = read_form({"text": text, "side": "fields", "objective.name": "sft"}, {}).keys
    assert keys == {"objective": {"name": "sft"}}
