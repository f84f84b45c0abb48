"""A package from outside adds one of each: recipe, plan, forms, reports and messages know it by its own declaration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.fixtures.plug_ins import installed_package

from luthier.core.errors import NotFoundError, RecipeError
from luthier.core.plan import Plan
from luthier.core.recipe import OptimizerName, Recipe
from luthier.features.planning.streamed_objectives import refused_objective
from luthier.features.run_drafts import fields
from luthier.features.suites.cli import parse_metrics
from luthier.ml.charts.judged_rows import metric_heading
from luthier.ml.data.audit.run import check_names, load_checks
from luthier.ml.evaluation.metrics.registry import bounds_of, load_metrics
from luthier.ml.evaluation.report.charts import measure_charts
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning import memory
from luthier.ml.planning.devices import device_of
from luthier.ml.planning.hardware import measure
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import workload_of
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.optimizers.protocol import load_rule
from luthier.testing.records import make_step

MakePlan = Callable[..., Plan]
ENTRY_POINTS = """
[luthier.metrics]
digits = theirs:Digits

[luthier.optimizers]
sign_sgd = theirs:SIGN_SGD
forgetful = theirs:FORGETFUL
broken = theirs:missing

[luthier.methods]
thin = theirs:Thin
old = theirs:Old

[luthier.objectives]
plain = theirs:Plain
bare = theirs:Bare

[luthier.checks]
shouting = theirs:shouting
"""
CODE = '''
from luthier.ml.evaluation.metrics.protocol import MeanMetric
from luthier.ml.training.methods.protocol import PlainMethod
from luthier.ml.training.methods.rules import MethodRules, low_rank_parameters
from luthier.ml.training.objective_protocol import PlainObjective
from luthier.ml.training.objectives.rules import ObjectiveRules
from luthier.ml.training.optimizers.rules import OptimizerRules, StateBytes


class Digits(MeanMetric):
    """The share of answers with digits."""

    name, title, unit, lower, upper = "digits", "answers with DIGITS", "0 to 10", 0.0, 10.0

    def value(self, output, reference):
        return 10.0 * any(map(str.isdigit, output))


class SignSgd:
    def __init__(self, trained, plan):
        self.trained, self.plan = trained, plan


SIGN_SGD = OptimizerRules(
    "signSGD", "No memory at all.", "theirs:SignSgd",
    {"momentum": 0.5, "rho": 0.04, "every": 3, "is_hot": False, "norm": "max"},
    lambda sizes: StateBytes(sizes.num_parameters),
    learning_rate_factor=(0.5, "half of it"),
)
FORGETFUL = SignSgd


class Thin(PlainMethod):
    rules = MethodRules(
        {"rank": (2, "thin"), "targets": ("q_proj", "queries")}, (1e-3, "fast"), low_rank_parameters, "lora", "Thin",
        "Two ranks are enough.", can_be_compiled=True, not_averaged="its ranks move",
    )


class Old:
    rules = Thin.rules

    def __init__(self, plan):
        self.plan = plan

    def rate_factor(self, name):
        return 3.0


class Plain(PlainObjective):
    rules = ObjectiveRules(
        "their plain loss", {}, ("chat", "prompt_completion"), name="Plain", summary="As it is.", needs_all_rows="",
        takes_adapted_head=True, measures={"focus": "Focus, share of tokens"},
    )


class Bare:
    rules = ObjectiveRules("their bare loss", {}, ("chat", "prompt_completion"))

    def __init__(self, plan, tools):
        self.plan, self.tools = plan, tools

    def weight(self, units):
        return 7.0


def shouting(request):
    """Rows in capitals."""
    return []
'''


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed_package(tmp_path, monkeypatch, ENTRY_POINTS, CODE):
        yield


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"base_model": "m", "data": {"train": "x"}, **sections})


def test_a_metric_brings_its_title_unit_and_range() -> None:
    asked = recipe(evaluation={"metrics": ["digits", "bleu"]}, objective={"name": "grpo", "rewards": ["digits"]})
    assert asked.evaluation is not None
    assert asked.evaluation.metrics == ("digits", "bleu")
    assert metric_heading("digits") == "Answers with DIGITS"
    (metric,) = load_metrics(["digits"])
    assert (metric.unit, bounds_of(metric).upper) == ("0 to 10", 10.0)
    assert parse_metrics("digits,rouge") == ["rouge", "digits"]


def test_an_optimizer_is_planned_by_the_memory_that_it_declares(make_plan: MakePlan, tiny_model: Path) -> None:
    full: dict[str, Any] = {"method": {"name": "full"}}
    theirs = make_plan(full | {"training": {"optimizer": "sign_sgd"}})
    adamw = make_plan(full)
    assert theirs.training.optimizer.momentum == 0.5
    assert theirs.training.learning_rate == adamw.training.learning_rate / 2
    assert theirs.sources["training.learning_rate"].why == "half of it"
    structure, device = read_structure(str(tiny_model)), device_of("cpu", measure())
    works = [workload_of(plan, structure, device) for plan in (theirs, adamw)]
    assert memory.moment_bytes(works[0]) == works[0].num_trainable
    assert memory.moment_bytes(works[1]) == 8 * works[1].num_trainable
    held = [predict_memory(work, device).optimizer_bytes for work in works]
    assert held[1] - held[0] == 7 * works[0].num_trainable
    assert type(load_rule((), theirs.training.optimizer)).__name__ == "SignSgd"
    assert "sign_sgd" in TypeAdapter(OptimizerName).json_schema()["enum"]


def test_an_optimizer_takes_options_of_its_own(make_plan: MakePlan) -> None:
    full: dict[str, Any] = {"method": {"name": "full"}}
    usual = make_plan(full | {"training": {"optimizer": "sign_sgd"}})
    assert usual.training.optimizer.options == {"rho": 0.04, "every": 3, "is_hot": False, "norm": "max"}
    asked = {"name": "sign_sgd", "momentum": 0.9, "options": {"rho": 1, "norm": "mean"}}
    changed = make_plan(full | {"training": {"optimizer": asked}})
    assert changed.training.optimizer.momentum == 0.9
    assert changed.training.optimizer.options == usual.training.optimizer.options | {"rho": 1, "norm": "mean"}
    assert changed.recipe.training is not None
    assert changed.recipe.training.optimizer is not None
    assert changed.recipe.training.optimizer.options == asked["options"]
    assert Plan.model_validate_json(changed.model_dump_json()) == changed
    other = {"name": "sign_sgd", "momentum": 0.9, "options": {"rho": 2, "norm": "mean"}}
    assert make_plan(full | {"training": {"optimizer": other}}).hash != changed.hash
    assert load_rule((), changed.training.optimizer).plan == changed.training.optimizer  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"name": "sign_sgd", "options": {"roh": 0.1}}, r"training\.optimizer\.options\.roh"),
        ({"name": "sign_sgd", "options": {"momentum": 0.1}}, r"training\.optimizer\.options\.momentum"),
        ({"name": "sign_sgd", "options": {"rho": "much"}}, "options.rho: 'much'"),
        ({"name": "sign_sgd", "options": {"every": True}}, "options.every: True"),
        ({"name": "sign_sgd", "options": {"every": 0.5}}, "options.every: 0.5"),
        ({"name": "lion", "options": {"rho": 0.1}}, r"training\.optimizer\.options\.rho"),
    ],
)
def test_options_that_an_optimizer_does_not_take_are_refused(
    make_plan: MakePlan, optimizer: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        make_plan({"method": {"name": "full"}, "training": {"optimizer": optimizer}})


@pytest.mark.parametrize(
    ("name", "words"), [("forgetful", "OptimizerRules, or such an object"), ("broken", "cannot be loaded")]
)
def test_an_optimizer_that_does_not_declare_its_memory_is_refused(make_plan: MakePlan, name: str, words: str) -> None:
    with pytest.raises(NotFoundError, match=words):
        make_plan({"method": {"name": "full"}, "training": {"optimizer": name}})


def test_a_method_is_planned_shown_and_loaded(make_plan: MakePlan) -> None:
    plan = make_plan({"method": {"name": "thin"}})
    assert (plan.method.rank, plan.method.targets) == (2, ("q_proj",))
    assert type(load_method(plan.method)).__name__ == "Thin"
    assert fields.methods()[-1] == fields.SelectOption("thin", "Thin", "Two ranks are enough.")
    assert [field.name for field in fields.method_of("thin")] == ["method.rank", "method.targets"]


def test_a_class_that_builds_on_nothing_has_the_defaults_of_what_it_lacks(make_plan: MakePlan) -> None:
    """As one that was written before its interface grew."""
    method = load_method(make_plan({"method": {"name": "old"}}).method)
    assert (type(method).__name__, method.rate_factor("a"), method.decays("a")) == ("Old", 3.0, True)
    assert (method.state(), method.ranks(), method.may_be_outcome(1)) == ({}, {}, True)
    objective = load_objective(make_plan({"objective": {"name": "bare"}}).objective)
    assert (type(objective).__name__, objective.weight(())) == ("Bare", 7.0)
    assert objective.loss_tells_overfitting
    nothing: Any = None
    assert objective.draw_validation(nothing, ()) == ()


def test_an_objective_is_planned_shown_and_loaded(make_plan: MakePlan) -> None:
    plan = make_plan({"objective": {"name": "plain"}})
    assert type(load_objective(plan.objective)).__name__ == "Plain"
    assert plan.sources["objective.name"].why == "their plain loss"
    assert fields.objectives()[-1] == fields.SelectOption("plain", "Plain", "As it is.")
    assert "plain" in fields.fitting("chat")
    assert "plain" not in fields.fitting("preference")


def test_a_method_says_whether_it_is_compiled_and_averaged(make_plan: MakePlan) -> None:
    assert make_plan({"method": {"name": "thin"}, "training": {"compile": True}}).training.compile
    with pytest.raises(RecipeError, match=r"compile is true with method dora[\s\S]*olora, old, thin"):
        make_plan({"method": {"name": "dora"}, "training": {"compile": True}})
    with pytest.raises(RecipeError, match=r"average ema with method thin[\s\S]*its ranks move"):
        make_plan({"method": {"name": "thin"}, "training": {"average": {"kind": "ema"}}})


def test_an_objective_says_whether_its_rows_are_streamed_and_its_head_adapted(make_plan: MakePlan) -> None:
    assert refused_objective(recipe(objective={"name": "plain"})) is None
    assert refused_objective(recipe(objective={"name": "bare"})) == (
        "objective bare",
        "all rows before the first step",
        "choose one of sft, classify, regress, rank, embed, dpo, ipo, orpo, kto, simpo, plain",
    )
    head: dict[str, Any] = {"method": {"name": "lora", "targets": ["q_proj", "lm_head"]}}
    assert make_plan(head | {"objective": {"name": "plain"}}).method.targets == ("lm_head", "q_proj")
    with pytest.raises(RecipeError, match=r"objective bare with an adapter on lm_head[\s\S]*, plain: other losses"):
        make_plan(head | {"objective": {"name": "bare"}})


def test_a_measure_with_a_title_has_a_chart_in_the_report() -> None:
    steps = [make_step(n).model_copy(update={"measures": {"focus": n / 4, "untitled": 1.0}}) for n in (1, 2)]
    (chart,) = measure_charts(steps, "plain")
    assert (chart.title, chart.caption) == ("Focus, share of tokens", "Training from 0.25 to 0.5.")


def test_a_check_is_run_after_ours() -> None:
    assert check_names()[-1] == "shouting"
    assert load_checks(["shouting"])["shouting"].__doc__ == "Rows in capitals."


def test_a_wrong_name_is_refused_with_theirs_among_the_known_ones() -> None:
    with pytest.raises(ValueError, match="not an optimizer") as error:
        recipe(training={"optimizer": "sign_sdg"})
    assert "sign_sgd" in str(error.value.errors()[0]["ctx"]["expected"])  # type: ignore[attr-defined]
