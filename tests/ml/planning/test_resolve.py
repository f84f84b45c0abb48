"""A plan is complete, says where each value comes from, and refuses what cannot go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.core.errors import RecipeError
from luthier.core.plan import Plan
from luthier.ml.planning.learning_rates import default_rate
from luthier.ml.training.objectives.rules import RULES

MakePlan = Callable[..., Plan]


def test_every_value_has_a_source(make_plan: MakePlan) -> None:
    plan = make_plan()
    named = {row["name"] for row in plan.values()}
    for section in ("training", "evaluation"):
        for field in nonempty(type(getattr(plan, section)).model_fields):
            if field not in ("num_steps_per_epoch",):
                assert f"{section}.{field}" in named, f"{section}.{field} has no source"
    for field in ("name", "rank", "alpha", "dropout", "targets", "num_trainable_parameters"):
        assert f"method.{field}" in named
    assert all(nonempty(row["why"] for row in plan.values()))


def test_what_was_asked_is_marked_as_asked(make_plan: MakePlan) -> None:
    plan = make_plan({"training": {"epochs": 3, "learning_rate": 1e-3}, "method": {"name": "lora", "rank": 8}})
    rows = {row["name"]: row for row in plan.values()}
    assert (rows["training.learning_rate"]["value"], rows["training.learning_rate"]["source"]) == (1e-3, "asked")
    assert (rows["method.rank"]["value"], rows["method.rank"]["source"]) == (8, "asked")
    assert (rows["method.alpha"]["value"], rows["method.alpha"]["source"]) == (16.0, "default")
    assert rows["training.precision"]["source"] == "measured"


def test_steps_from_epochs_and_batch(make_plan: MakePlan) -> None:
    plan = make_plan({"training": {"epochs": 2.5, "global_batch_size": 16}})
    assert plan.training.num_steps_per_epoch == 7  # 100 examples in batches of 16
    assert plan.training.num_steps == 18  # 17.5, rounded up


def test_few_steps_are_of_eight_rows_where_that_was_measured(make_plan: MakePlan) -> None:
    """100 examples: 14 steps of 16 rows in two epochs."""

    def size(**recipe: Any) -> int:
        return make_plan(recipe).training.global_batch_size

    plan = make_plan()
    assert (plan.training.global_batch_size, plan.training.num_steps) == (8, 26)
    assert "fewer than 100 steps" in plan.sources["training.global_batch_size"].why
    assert size(training={"epochs": 14}) == 8
    assert size(training={"epochs": 15}) == 16  # 105 steps
    assert size(training={"global_batch_size": 32}) == 32
    # Other methods were not measured, and a number of steps would go over half of the rows.
    assert size(method={"name": "full"}) == 16
    assert size(training={"max_steps": 5}) == 16


def test_steps_of_eight_rows_are_taken_where_the_processes_can_share_them(make_plan: MakePlan) -> None:
    sizes = {num: make_plan(num_processes=num).training.global_batch_size for num in (1, 2, 4, 8, 16)}
    assert sizes == {1: 8, 2: 8, 4: 8, 8: 8, 16: 16}
    asked = make_plan({"training": {"global_batch_size": 8}}, num_processes=16)
    assert asked.training.global_batch_size == 8, "as it was requested: the launcher refuses it"


def test_the_rate_of_a_short_run_is_half_as_much_again_where_that_was_measured(make_plan: MakePlan) -> None:
    """100 examples: 13 steps of 8 rows an epoch."""

    def rate(**recipe: Any) -> float:
        return make_plan(recipe).training.learning_rate

    usual = default_rate("lora", "sft", 64)[0]
    assert rate() == pytest.approx(1.5 * usual)
    assert "times 1.5: short runs" in make_plan().sources["training.learning_rate"].why
    assert rate(training={"max_steps": 5}) == pytest.approx(1.5 * usual), "5 steps of 16"
    assert rate(training={"epochs": 14}) == pytest.approx(1.5 * usual), "182 steps of 8"
    assert rate(training={"epochs": 15}) == usual, "105 steps of 16"
    assert rate(training={"learning_rate": 7e-4}) == 7e-4
    # Smaller steps, other methods, objectives and optimizers were not measured.
    assert rate(training={"global_batch_size": 4}) == usual
    assert rate(training={"optimizer": "lion"}) == default_rate("lora", "sft", 64, "lion")[0]
    assert rate(method={"name": "full"}) == default_rate("full", "sft", 64)[0]
    assert rate(objective={"name": "grpo", "rewards": [{"metric": "rouge_l"}]}) == default_rate("lora", "grpo", 64)[0]


def test_max_steps_decides_where_it_is_the_shorter(make_plan: MakePlan) -> None:
    assert make_plan({"training": {"max_steps": 5}}).training.num_steps == 5
    assert make_plan({"training": {"max_steps": 5, "epochs": 1}}).training.num_steps == 5
    assert make_plan({"training": {"max_steps": 500, "epochs": 1}}).training.num_steps == 7


def test_the_warm_up_is_a_number_of_steps_or_a_share_of_them(make_plan: MakePlan) -> None:
    def warmup(**training: Any) -> int:
        return make_plan({"training": {"max_steps": 100} | training}).training.num_warmup_steps

    assert warmup(warmup_steps=7) == 7
    assert warmup(warmup_steps=0) == 0
    assert warmup(warmup_steps=100) == 100
    assert warmup() == 3
    assert warmup(warmup_fraction=0.071) == 8
    assert warmup(warmup_fraction=0.07) == 7, "0.07 x 100 is 7.000000000000001"
    source = make_plan({"training": {"max_steps": 100, "warmup_steps": 7}}).sources["training.num_warmup_steps"]
    assert (source.source, source.why) == ("asked", "training.warmup_steps in the recipe")
    short = make_plan({"training": {"max_steps": 5, "warmup_steps": 7}})
    assert short.training.num_warmup_steps == 5
    assert "to the last step" in short.sources["training.num_warmup_steps"].why


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"warmup_steps": 7, "warmup_fraction": 0.07}, r"warmup_steps 7 with training\.warmup_fraction 0\.07"),
        ({"schedule": "constant", "min_lr_ratio": 0.1}, r"min_lr_ratio 0\.1 with training\.lr_schedule constant"),
    ],
)
def test_rates_that_cannot_be_are_refused(make_plan: MakePlan, training: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_plan({"training": {"max_steps": 100} | training})


def test_a_schedule_may_end_above_zero_and_one_that_does_not_has_the_hash_of_before(make_plan: MakePlan) -> None:
    plain, asked = make_plan(), make_plan({"training": {"min_lr_ratio": 0.1}})
    assert (plain.training.min_lr_ratio, asked.training.min_lr_ratio) == (0.0, 0.1)
    assert plain.hash != asked.hash
    document = plain.model_dump(mode="json")
    del document["training"]["min_lr_ratio"]
    assert Plan.model_validate(document).hash == plain.hash
    constant = make_plan({"training": {"schedule": "constant"}})
    assert "constant" in constant.sources["training.min_lr_ratio"].why


def test_without_validation_nothing_is_validated(make_plan: MakePlan) -> None:
    training = make_plan(validation=False).training
    assert (training.validate_every_steps, training.early_stopping_patience) == (0, 0)


@pytest.mark.parametrize("asked", [{"validate_every_steps": 5}, {"early_stopping_patience": 2}])
def test_validation_settings_without_rows_are_refused(make_plan: MakePlan, asked: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="names no validation rows"):
        make_plan({"training": asked}, validation=False)


def test_full_with_adapter_settings_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match=r"method full with method\.rank, method\.dropout"):
        make_plan({"method": {"name": "full", "rank": 8, "dropout": 0.1}})


def test_full_trains_everything_at_a_lower_rate(make_plan: MakePlan) -> None:
    plan = make_plan({"method": {"name": "full"}})
    assert plan.method.num_trainable_parameters == plan.base_model.num_parameters
    assert plan.training.learning_rate == 1.3e-4


def test_a_length_beyond_the_context_is_refused(make_plan: MakePlan) -> None:
    with pytest.raises(RecipeError, match=r"max_length_tokens 513.*context of 512"):
        make_plan({"training": {"max_length_tokens": 513}})


def test_a_row_longer_than_the_usual_micro_batch_gets_room(make_plan: MakePlan) -> None:
    assert make_plan(max_tokens=5000).training.micro_batch_tokens == 5000


def test_steps_of_embeddings_that_are_cut_anyway_are_cut_smaller(make_plan: MakePlan) -> None:
    """Rows of 30 tokens, two a unit: 32 units are 1,920 tokens, and with padding more than a usual micro-batch."""

    def found(size: int, name: str = "embed", **training: int) -> tuple[int, str]:
        document = {"objective": {"name": name}, "training": {"global_batch_size": size, **training}}
        plan = make_plan(document)
        return plan.training.micro_batch_tokens, plan.sources["training.micro_batch_tokens"].source

    assert found(32) == (1024, "derived")
    assert found(16) == (2048, "default")
    assert found(32, micro_batch_tokens=4096) == (4096, "asked")
    assert found(64, "sft") == (2048, "default")
    # A hard negative is a third text: what is just below the bound with two is above it with three.
    document = {"objective": {"name": "embed"}, "training": {"global_batch_size": 25}}
    sizes = [make_plan(document, num_tokens=texts * 30 * 100).training.micro_batch_tokens for texts in (2, 3)]
    assert sizes == [2048, 1024]


def test_plain_text_is_judged_by_likelihood_alone(make_plan: MakePlan) -> None:
    plan = make_plan(shape="text")
    assert plan.evaluation.metrics == ("perplexity", "bits_per_byte")
    assert plan.evaluation.few_shot == 0


def test_asked_precision_wins_over_the_measured(make_plan: MakePlan) -> None:
    assert make_plan({"training": {"precision": "float32"}}).training.precision == "float32"
    assert make_plan({"training": {"precision": "auto"}}).training.precision == "bfloat16"


def test_hash_names_what_is_trained(make_plan: MakePlan) -> None:
    assert make_plan().hash == make_plan().hash
    assert make_plan().hash != make_plan({"training": {"seed": 1}}).hash
    asked = make_plan({"method": {"name": "lora", "rank": 16}})
    assert asked.hash == make_plan().hash, "asking for the default is the same run"


def test_hash_does_not_depend_on_where_files_lie(make_plan: MakePlan) -> None:
    assert make_plan(file="/here/train.jsonl").hash == make_plan(file="/there/rows.jsonl").hash
    assert make_plan(sha256="d" * 64).hash != make_plan().hash


def test_what_regularises_is_in_the_hash_only_where_it_is_on(make_plan: MakePlan) -> None:
    plain = make_plan()
    document = plain.model_dump(mode="json")
    del document["training"]["neftune_alpha"], document["training"]["average"], document["objective"]["label_smoothing"]
    assert Plan.model_validate(document).hash == plain.hash, "a plan of before there was any"
    asked: tuple[dict[str, Any], ...] = (
        {"objective": {"name": "sft", "label_smoothing": 0.1}},
        {"training": {"neftune_alpha": 5}},
        {"training": {"average": {"kind": "ema"}}},
        {"training": {"average": {"kind": "ema", "decay": 0.7}}},
    )
    assert len({plain.hash, *(make_plan(document).hash for document in asked)}) == 5


def test_a_plan_survives_json(make_plan: MakePlan) -> None:
    plan = make_plan()
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert again.hash == plan.hash


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    epochs=st.floats(0.01, 20),
    batch=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    num_examples=st.integers(1, 5000),
)
def test_numbers_hang_together(
    make_plan: MakePlan, epochs: float, batch: int, warmup: float, num_examples: int
) -> None:
    asked: dict[str, Any] = {"training": {"epochs": epochs, "global_batch_size": batch, "warmup_fraction": warmup}}
    t = make_plan(asked, num_examples=num_examples).training
    assert t.num_steps >= 1
    assert 0 <= t.num_warmup_steps <= t.num_steps
    assert (t.num_steps - 1) < epochs * t.num_steps_per_epoch <= t.num_steps + 1e-6
    assert 1 <= t.validate_every_steps <= t.num_steps


def test_a_loss_that_does_not_know_of_it_is_refused_with_an_adapter_on_the_head(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"method": {"name": "lora", "targets": ["q_proj", "lm_head"]}}
    assert make_plan(asked).method.targets == ("lm_head", "q_proj")
    monkeypatch.setitem(RULES, "sft", replace(RULES["sft"], takes_adapted_head=False))
    with pytest.raises(RecipeError, match=r"objective sft with an adapter on lm_head[\s\S]*leave lm_head out"):
        make_plan(asked)
    assert make_plan({"method": {"name": "lora", "targets": ["q_proj", "embed_tokens"]}})


def test_sample_prompts_are_off_unless_asked_for_and_change_no_hash(make_plan: Callable[..., Plan]) -> None:
    plain, asked = make_plan(), make_plan({"evaluation": {"sample_prompts": 5}})
    assert (plain.evaluation.sample_prompts, asked.evaluation.sample_prompts) == (0, 5)
    assert asked.sources["evaluation.sample_prompts"].source == "asked"
    assert plain.hash == asked.hash, "a run is the same with and without them"
    for wrong in ({"validation": False}, {"shape": "text"}):
        with pytest.raises(RecipeError, match=r"evaluation\.sample_prompts is 5"):
            make_plan({"evaluation": {"sample_prompts": 5}}, **wrong)
