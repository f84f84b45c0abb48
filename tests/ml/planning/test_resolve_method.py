"""What a recipe's method comes to, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

from luthier.core import registry
from luthier.core.errors import NotFoundError, RecipeError
from luthier.core.estimate import Estimate
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.results.cost import Device
from luthier.core.text.target_modules import target_summary
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning import resolve_method
from luthier.ml.planning.predict import hours_by_part
from luthier.ml.planning.workload import workload_of
from luthier.ml.training.methods.rules import RULES, MethodRules, low_rank_parameters, rules_of

MakePlan = Callable[..., Plan]
SMALL = {"targets": ["q_proj", "down_proj"]}


def asked(**method: Any) -> dict[str, Any]:
    return {"method": method}


_MAY_BE_SILENT = ("layers", "modules_to_save", "initial_rank", "final_steps")


@pytest.mark.parametrize("name", RULES)
def test_a_name_alone_is_enough(make_plan: MakePlan, name: str) -> None:
    plan = make_plan(asked(name=name))
    assert plan.method.name == name
    assert plan.method.num_trainable_parameters > 0
    sources = {row["name"]: row for row in plan.values()}
    assert sources["method.name"]["source"] == "asked"
    assert all(row["why"] for row in sources.values())
    named = {f"method.{setting}" for setting in RULES[name].settings if setting not in _MAY_BE_SILENT}
    assert named - set(sources) == set()


@pytest.mark.parametrize("name", RULES)
def test_settings_that_a_method_does_not_take_are_refused_by_name(make_plan: MakePlan, name: str) -> None:
    every: dict[str, Any] = {
        "rank": 4, "alpha": 8, "dropout": 0.1, "targets": "q_proj", "layers": {"first": 1}, "learning_rate_ratio": 4,
        "num_svd_iterations": 2, "initial_rank": 16, "target_rank": 2, "warmup_steps": 1, "final_steps": 1,
        "reallocate_every_steps": 1, "orthogonality_weight": 0.1, "sensitivity_smoothing": 0.5,
        "uncertainty_smoothing": 0.5, "quantisation": "int8", "num_virtual_tokens": 4, "options": {"x": 1},
    }  # fmt: skip
    for setting, value in every.items():
        if setting in RULES[name].settings:
            assert make_plan(asked(name=name, **{setting: value})).method.name == name
        else:
            with pytest.raises(RecipeError, match=rf"method {name} with method\.{setting}\n.*expected: settings that"):
                make_plan(asked(name=name, **{setting: value}))


def test_a_quantised_base_with_full_tuning_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match=r"method full with method\.quantisation[\s\S]*cannot be quantised"):
        make_plan(asked(name="full", quantisation="int8"))


def test_adaloras_ranks_and_schedule(make_plan: MakePlan) -> None:
    plan = make_plan({**asked(name="adalora", target_rank=8, **SMALL), "training": {"max_steps": 200}})
    m = plan.method
    assert (m.rank, m.target_rank, m.alpha) == (12, 8, 24.0)
    assert (m.warmup_steps, m.last_reallocation_step, m.reallocate_every_steps) == (20, 120, 2)
    # by hand: two layers of q (32 x 32) and down (64 -> 32), rank 12, and 12 singular values each
    assert m.num_trainable_parameters == 2 * (12 * (32 + 32) + 12 + 12 * (64 + 32) + 12)
    assert plan.training.learning_rate == 6.6e-3
    rows = {row["name"]: row for row in plan.values()}
    assert rows["method.rank"]["value"] == 12
    assert "one and a half times" in rows["method.rank"]["why"]
    assert "80 steps before the end" in rows["method.last_reallocation_step"]["why"]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50])
def test_adaloras_defaults_fit_into_any_run(make_plan: MakePlan, num_steps: int) -> None:
    m = make_plan({**asked(name="adalora"), "training": {"max_steps": num_steps}}).method
    assert 0 <= (m.warmup_steps or 0) < (m.last_reallocation_step or 0) <= num_steps


@pytest.mark.parametrize("given", [{"warmup_steps": 10}, {"final_steps": 10}, {"warmup_steps": 6, "final_steps": 4}])
def test_a_schedule_longer_than_the_run_is_refused(make_plan: MakePlan, given: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=r"adalora with method\.warmup_steps .* in a run of 10 steps[\s\S]*less than"):
        make_plan({**asked(name="adalora", **given), "training": {"max_steps": 10}})


def test_an_initial_rank_below_the_target_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match=r"initial_rank is 4, method\.target_rank 8"):
        make_plan(asked(name="adalora", initial_rank=4, target_rank=8))


@pytest.mark.parametrize("method", [{"name": "dora", "rank": 17}, {"name": "adalora", "initial_rank": 17}])
def test_a_rank_above_the_matrix_is_refused(make_plan: MakePlan, method: dict[str, Any]) -> None:
    setting = "rank" if method["name"] == "dora" else "initial_rank"
    with pytest.raises(RecipeError, match=rf"method\.{setting} is 17, but \S*k_proj is 16 x 32"):
        make_plan({"method": {"target_rank": 2} | method if setting == "initial_rank" else method})


def test_the_initial_rank_is_at_most_that_of_the_smallest_matrix(make_plan: MakePlan) -> None:
    assert make_plan(asked(name="adalora", target_rank=14)).method.rank == 16
    with pytest.raises(RecipeError, match=r"method\.target_rank is 17, but \S*k_proj is 16 x 32"):
        make_plan(asked(name="adalora", target_rank=17))


def test_where_layers_are_asked_for_the_places_say_so(make_plan: MakePlan) -> None:
    plan = make_plan(asked(name="lora", targets=["q_proj", "v_proj"], layers={"last": 1}))
    assert target_summary(plan.method) == "q_proj, v_proj of layer 1"
    assert target_summary(make_plan(asked(name="lora", **SMALL)).method) == "down_proj, q_proj"
    rows = {row["name"]: row for row in plan.values()}
    assert rows["method.targets"]["why"] == "within the last 1 layers"


def test_places_name_runs_of_layers(make_plan: MakePlan) -> None:
    base = make_plan(asked(name="lora", **SMALL)).method
    names = tuple(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1, 2, 7, 9, 10))
    assert target_summary(base.model_copy(update={"targets": names})) == "q_proj of layers 0 to 2, 7, 9 to 10"


@pytest.mark.parametrize(
    ("wanted", "installed", "kind", "source"),
    [
        (None, True, "nf4", "derived"),
        (None, False, "int8", "derived"),
        ("auto", False, "int8", "derived"),
        ("int8", True, "int8", "asked"),
        ("nf4", True, "nf4", "asked"),
        ("bfloat16", False, "bfloat16", "asked"),
    ],
)
def test_how_the_base_is_held(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, installed: bool, kind: str, source: str
) -> None:
    monkeypatch.setattr(resolve_method, "find_spec", lambda _: object() if installed else None)
    found = resolve_method.choose_quantisation(wanted, "cpu")
    assert found[:2] == (kind, source)
    assert found[2]


def test_nf4_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_method, "find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"nf4, but bitsandbytes is not installed[\s\S]*int8 needs no library"):
        resolve_method.choose_quantisation("nf4", "cpu")


class Foreign:
    rules: ClassVar[MethodRules] = MethodRules(
        {"rank": (4, "small"), "targets": ("q_proj", "queries"), "options": (None, "")},
        (1e-3, "fast"),
        low_rank_parameters,
        "lora",
        "Theirs",
        "Of another package.",
    )


def test_a_method_of_another_package_is_planned_by_its_own_rules(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("theirs", f"{__name__}:Foreign", "luthier.methods")
    monkeypatch.setattr(EntryPoint, "load", lambda _: Foreign)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "luthier.methods" else [])
    plan = make_plan(asked(name="theirs", options={"strength": 0.5}))
    assert (plan.method.name, plan.method.rank, plan.method.options) == ("theirs", 4, {"strength": 0.5})
    assert plan.training.learning_rate == 1e-3
    with pytest.raises(RecipeError, match=r"method theirs with method\.alpha"):
        make_plan(asked(name="theirs", alpha=1))
    monkeypatch.setattr(EntryPoint, "load", lambda _: object)
    with pytest.raises(NotFoundError, match=r"'theirs' .* has rules=None"):
        rules_of("theirs")


@pytest.mark.parametrize(("over_rank", "alpha"), [(1.0, 4.0), (2.0, 8.0), (0.5, 2.0)])
def test_what_alpha_follows_is_declared_and_not_read_out_of_its_reason(
    over_rank: float, alpha: float, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled:
        rules: ClassVar[MethodRules] = replace(
            Foreign.rules,
            settings={**Foreign.rules.settings, "alpha": (None, "the rank, by the scale of this method")},
            alpha_over_rank=over_rank,
        )

    entry = EntryPoint("theirs", f"{__name__}:Scaled", "luthier.methods")
    monkeypatch.setattr(EntryPoint, "load", lambda _: Scaled)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "luthier.methods" else [])
    assert make_plan(asked(name="theirs")).method.alpha == alpha


def test_an_unknown_method_names_all_there_are() -> None:
    with pytest.raises(ValueError, match="not a method") as error:
        Recipe.model_validate({"base_model": "tiny", "data": {"train": "x"}, "method": {"name": "adalorra"}})
    assert "olora, adalora" in str(error.value.errors()[0]["ctx"]["expected"])  # type: ignore[attr-defined]
    with pytest.raises(NotFoundError, match="method 'adalorra'"):
        rules_of("adalorra")


def test_the_rows_that_eva_computes_before_the_first_step_are_planned(
    make_plan: MakePlan, structure: Structure, device: Device
) -> None:
    plan = make_plan({"method": {"name": "eva"}})
    rows = plan.data.train
    num = min(64, rows.num_examples)
    work = workload_of(plan, structure, device)
    assert work.num_reference_tokens == pytest.approx(num * rows.num_tokens / rows.num_examples)
    assert hours_by_part(work, device, Estimate(value=1.0, low=0.5, high=2.0))["reference"].value > 0
    assert workload_of(make_plan(), structure, device).num_reference_tokens == 0
