"""Which optimizer, with which settings; and what it is refused for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.errors import RecipeError
from luthier.core.plan import OptimizerPlan, Plan
from luthier.core.recipe import OptimizerRecipe
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.resolve_optimizer import resolve_optimizer

MakePlan = Callable[..., Plan]


def resolved(asked: Any, method: str = "full", device: str = "cpu", batch_size: int = 16) -> OptimizerPlan:
    return resolve_optimizer(OptimizerRecipe.model_validate(asked), method, device, batch_size, Provenance())


def test_a_name_alone_takes_the_defaults() -> None:
    wanted = OptimizerPlan(name="muon", momentum=0.95, num_iterations=5, adamw_rate_factor=0.2)
    assert resolved("muon") == wanted
    assert resolved({"name": "adamw_8bit", "beta2": 0.95}) == OptimizerPlan(name="adamw_8bit", beta2=0.95)


def test_silence_is_adamw_and_an_older_plan_keeps_its_hash(make_plan: MakePlan) -> None:
    silent, asked = make_plan(), make_plan({"training": {"optimizer": "adamw"}})
    assert silent.training.optimizer == OptimizerPlan()
    assert silent.sources["training.optimizer"].source == "default"
    assert asked.sources["training.optimizer"].source == "asked"
    document = silent.model_dump(mode="json")
    del document["training"]["optimizer"]  # as a plan of before there was a choice
    assert asked.hash == silent.hash == Plan.model_validate(document).hash


def test_another_optimizer_is_another_run(make_plan: MakePlan) -> None:
    hashes = {
        make_plan({"training": {"optimizer": asked}}).hash
        for asked in ("adamw", "adamw_8bit", "adafactor", {"name": "adamw", "beta2": 0.95})
    }
    assert len(hashes) == 4


def test_values_show_what_the_rule_uses(make_plan: MakePlan) -> None:
    values = {row["name"]: row["value"] for row in make_plan({"training": {"optimizer": "adamw_8bit"}}).values()}
    assert values["training.optimizer"] == {"name": "adamw_8bit", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"name": "adamw", "momentum": 0.9}, r"adamw with training\.optimizer\.momentum[\s\S]*takes: beta1, beta2"),
        ({"name": "adafactor", "beta1": 0.9, "beta2": 0.9}, r"takes: none[\s\S]*remove them"),
    ],
)
def test_settings_that_a_rule_does_not_take_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolved(asked)


def test_muon_is_for_full_tuning(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match=r"muon with method lora[\s\S]*method\.name: full"):
        make_plan({"training": {"optimizer": "muon"}})
    assert make_plan({"method": {"name": "full"}, "training": {"optimizer": "muon"}}).training.optimizer.momentum


def test_muon_learns_at_five_times_the_rate_unless_asked_otherwise(make_plan: MakePlan) -> None:
    full = {"method": {"name": "full"}}
    muon = make_plan(full | {"training": {"optimizer": "muon"}})
    assert muon.training.learning_rate == 5 * make_plan(full).training.learning_rate
    assert "5 times AdamW's" in muon.sources["training.learning_rate"].why
    asked = make_plan(full | {"training": {"optimizer": "muon", "learning_rate": 3e-4}})
    assert asked.training.learning_rate == 3e-4


def test_what_adamw_updates_beside_muon_has_the_rate_that_it_has_alone(make_plan: MakePlan) -> None:
    full = {"method": {"name": "full"}}
    training = make_plan(full | {"training": {"optimizer": "muon"}}).training
    assert training.optimizer.adamw_rate_factor is not None
    alone = make_plan(full).training.learning_rate
    assert training.learning_rate * training.optimizer.adamw_rate_factor == pytest.approx(alone)
    asked = {"name": "muon", "adamw_rate_factor": 1}
    one_rate = make_plan(full | {"training": {"optimizer": asked}})
    values = {row["name"]: row["value"] for row in one_rate.values()}
    assert values["training.optimizer"]["adamw_rate_factor"] == 1
    with pytest.raises(RecipeError, match=r"adamw_rate_factor[\s\S]*remove it"):
        resolved({"name": "lion", "adamw_rate_factor": 0.5})


def test_a_muon_plan_of_before_the_second_rate_keeps_its_hash_and_its_one_rate(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan({"method": {"name": "full"}, "training": {"optimizer": "muon"}})
    document = plan.model_dump(mode="json")
    del document["training"]["optimizer"]["adamw_rate_factor"]
    before = Plan.model_validate(document)
    assert before.training.optimizer.adamw_rate_factor is None
    hashed: list[Any] = []
    monkeypatch.setattr("luthier.core.plan.sha256_document", lambda given: hashed.append(given) or str(len(hashed)))
    assert before.hash != plan.hash
    of_then = {"name", "beta1", "beta2", "epsilon", "momentum", "num_iterations"}
    assert hashed[0]["training"]["optimizer"].keys() == of_then
    assert hashed[1]["training"]["optimizer"].keys() == of_then | {"adamw_rate_factor"}


def test_paging_needs_a_device_to_page_from() -> None:
    with pytest.raises(RecipeError, match=r"paged_adamw_8bit on a CPU[\s\S]*adamw_8bit, which is the same"):
        resolved("paged_adamw_8bit")
    assert resolved("paged_adamw_8bit", device="cuda").name == "paged_adamw_8bit"


@pytest.mark.parametrize(("batch_size", "wanted"), [(1, 0.99993747), (4, 0.99974991), (16, 0.999), (64, 0.996005996)])
def test_beta2_by_tokens_halves_after_the_same_number_of_rows(batch_size: int, wanted: float) -> None:
    """Half-life in rows: batch size times ln(1/2) / ln(beta2)."""
    found = resolved({"name": "adamw", "beta2": "auto"}, batch_size=batch_size).beta2
    assert found == pytest.approx(wanted, abs=1e-8)
    half_life = batch_size * math.log(0.5) / math.log(found)
    assert half_life == pytest.approx(16 * math.log(0.5) / math.log(0.999), rel=1e-3)


def test_a_plan_with_beta2_by_tokens_says_how_it_was_found(make_plan: MakePlan) -> None:
    plan = make_plan({"training": {"global_batch_size": 2, "optimizer": {"name": "adamw_8bit", "beta2": "auto"}}})
    assert plan.training.optimizer.beta2 == pytest.approx(0.999 ** (1 / 8), abs=1e-8)
    assert "2 rows a step" in plan.sources["training.optimizer"].why
    usual = make_plan({"training": {"global_batch_size": 16, "optimizer": {"name": "adamw", "beta2": "auto"}}})
    assert usual.training.optimizer == OptimizerPlan()


@pytest.mark.parametrize(("name", "words"), [("lion", "lion[\\s\\S]*second moment"), ("adafactor", "takes: none")])
def test_beta2_by_tokens_needs_a_second_moment(name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolved({"name": name, "beta2": "auto"})


SCHEDULE_FREE = {"training": {"optimizer": "schedule_free_adamw"}}


def test_schedule_free_has_a_constant_rate_unless_asked_otherwise(make_plan: MakePlan) -> None:
    plan = make_plan(SCHEDULE_FREE)
    assert plan.training.schedule == "constant"
    assert "takes the place" in plan.sources["training.schedule"].why
    assert plan.training.num_warmup_steps > 0
    assert plan.training.learning_rate == make_plan({"training": {"optimizer": "lion"}}).training.learning_rate * 5
    asked = make_plan({"training": SCHEDULE_FREE["training"] | {"schedule": "cosine", "min_lr_ratio": 0.1}})
    assert (asked.training.schedule, asked.training.min_lr_ratio) == ("cosine", 0.1)
    assert make_plan().training.schedule == "cosine"


@pytest.mark.parametrize(
    ("method", "training", "words"),
    [
        ("lora", {"average": {"kind": "ema"}}, r"average ema with optimizer schedule_free[\s\S]*one average"),
        ("adalora", {}, r"schedule_free_adamw with method adalora[\s\S]*switched off"),
        ("lora", {"min_lr_ratio": 0.1}, r"min_lr_ratio 0\.1 with training\.lr_schedule constant"),
        ("lora", {"optimizer": {"name": "schedule_free_adamw", "beta1": 0.0}}, r"beta1 0 with[\s\S]*above 0"),
    ],
)
def test_what_schedule_free_cannot_be_combined_with_is_refused(
    make_plan: MakePlan, method: str, training: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        make_plan({"method": {"name": method}, "training": SCHEDULE_FREE["training"] | training})


def test_the_average_of_schedule_free_is_named_as_the_one_that_counts(make_plan: MakePlan) -> None:
    why = make_plan(SCHEDULE_FREE).sources["training.average"].why
    assert "schedule_free_adamw keeps its own average of the weights" in why
