"""What judging a run takes: by hand, in how it grows, and against what the metrics and the engine say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.ml.planning.conftest import profile
from tests.ml.planning.shapes import judging

from luthier.core.evaluation_plan import Bar
from luthier.core.plan import Plan
from luthier.core.results.cost import Device, MachineLoad
from luthier.ml.evaluation import kl_to_base
from luthier.ml.inference import batch_generate, likelihood
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning import inference_cost as plan_judging
from luthier.ml.planning.inference_cost import judging_of
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import hours_by_part, predict
from luthier.ml.planning.speed import judging_seconds, step_seconds
from luthier.ml.planning.workload import Workload

Make = Callable[..., Workload]


def test_the_bounds_are_those_of_the_engine() -> None:
    assert plan_judging.LOGIT_ROWS == likelihood.MAX_LOGIT_ROWS
    assert plan_judging.ROWS_AT_ONCE == batch_generate.MAX_GENERATE_ROWS
    assert plan_judging.CACHE_TOKENS == batch_generate.DEFAULT_BATCH_TOKENS


def test_what_a_plan_judges_is_read_off_its_rows_and_metrics(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan({"evaluation": {"metrics": ["rouge", "perplexity"], "few_shot": 3, "max_samples": 30}})
    assert judging_of(plan, base_parameters=1000) is None  # no held-out rows
    held_out = profile("held_out", 50)
    data = plan.data.model_copy(update={"held_out": held_out})
    found = judging_of(plan.model_copy(update={"data": data}), base_parameters=1000)
    assert found is not None
    assert (found.num_rows, found.systems) == (30, (False, False, True))
    assert (found.prompt_tokens, found.reference_tokens, found.shot_tokens) == (20.0, 10.0, 90.0)
    assert found.longest_tokens == 60 + 90 + plan.evaluation.max_new_tokens
    assert (found.writes, found.scores) == (True, True)
    alone = plan.evaluation.model_copy(update={"few_shot": 0, "metrics": ("perplexity",)})
    scored = judging_of(plan.model_copy(update={"data": data, "evaluation": alone}), base_parameters=1000)
    assert scored is not None
    assert (scored.systems, scored.writes) == ((False, True), False)
    # 30 rows of 30 tokens, twice, and twice more for the distance of tuned model and base
    assert scored.measures_kl
    assert scored.num_scored_tokens == 3600


def test_the_base_of_an_adapter_is_loaded_once(
    make_plan: Callable[..., Plan], structure: Structure, make_workload: Make, device: Device
) -> None:
    plan = make_plan({"evaluation": {"metrics": ["perplexity"], "few_shot": 0}})
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"held_out": profile("held_out", 50)})})
    whole = plan.model_copy(update={"method": plan.method.model_copy(update={"name": "full"})})
    beside = plan.evaluation.model_copy(update={"reference_run": "run-20260101-120000-abcdef"})
    found = [
        judging_of(one, base_parameters=1000) for one in (plan, plan.model_copy(update={"evaluation": beside}), whole)
    ]
    # whole weights: the base, these, and the base again for the distance between the two
    assert [one.num_loadings for one in found if one is not None] == [1, 2, 3]
    work = make_workload(structure)
    once, again = (replace(work, judging=judging(num_rows=320, num_loadings=num)) for num in (1, 2))
    seconds = [judging_seconds(one, device, step_seconds(one, device)).value for one in (once, again)]
    assert seconds[0] < seconds[1]


def test_scoring_labels_is_part_of_what_judging_reads(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan({"evaluation": {"metrics": ["label_accuracy"], "few_shot": 0, "max_samples": 30}})
    splits = {"held_out": profile("held_out", 50), "validation": profile("validation", 40)}

    def read(**evaluation: object) -> tuple[int, float]:
        data = plan.data.model_copy(update=splits)
        asked = plan.evaluation.model_copy(update=evaluation)
        found = judging_of(plan.model_copy(update={"data": data, "evaluation": asked}), base_parameters=1000)
        assert found is not None
        return found.num_labelled, found.num_scored_tokens

    _, without = read()
    # 30 rows with each of 3 labels, by base and tuned model; a row and its answer have 30 tokens.
    assert read(num_scored_labels=3) == (180, without + 180 * 30)
    bar = Bar(metric="label_accuracy", value=0.9)
    # The tuned model also scores the 40 validation rows that choose its threshold.
    assert read(num_scored_labels=3, good_enough=bar) == (300, without + 300 * 30)
    assert read(num_scored_labels=3, good_enough=bar.model_copy(update={"metric": "macro_f1"}))[0] == 180


def test_a_reference_run_is_one_more_system(
    make_plan: Callable[..., Plan], structure: Structure, make_workload: Make, device: Device
) -> None:
    plan = make_plan({"evaluation": {"metrics": ["rouge"], "few_shot": 0}})
    data = plan.data.model_copy(update={"held_out": profile("held_out", 50)})
    asked = plan.evaluation.model_copy(update={"reference_run": "run-20260101-120000-abcdef"})
    found = judging_of(plan.model_copy(update={"data": data, "evaluation": asked}), base_parameters=1000)
    assert found is not None
    assert (found.systems, found.num_other_runs) == ((False, True, True), 1)
    work = make_workload(structure)
    with_it, without = (replace(work, judging=one) for one in (found, replace(found, num_other_runs=0)))
    seconds = [judging_seconds(one, device, step_seconds(one, device)).value for one in (with_it, without)]
    assert seconds[0] > seconds[1], "its model is loaded as well"


def test_both_models_logits_take_no_more_than_one_scored() -> None:
    assert 2 * kl_to_base.CHUNK_TOKENS == plan_judging.LOGIT_ROWS


def test_time_grows_with_rows_systems_and_the_length_of_answers(
    structure: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(structure)

    def seconds(**changes: object) -> float:
        judged = replace(work, judging=judging(num_rows=320, **changes))
        return judging_seconds(judged, device, step_seconds(judged, device)).value

    base = seconds()
    assert seconds(systems=(False, True)) < base < seconds(systems=(False, False, False, True))
    assert seconds(new_tokens=80) > base
    assert seconds(writes=False) < base
    assert seconds(measures_kl=True) > base
    assert seconds(scores=False) < seconds(scores=False, measures_kl=True)
    assert seconds(scores=False) < base
    assert seconds(teacher_share=4.0) > base
    assert seconds(systems=(False, False, False)) < base  # no adapter to add its products
    assert judging_seconds(work, device, step_seconds(work, device)).value == 0


def test_a_reflection_model_counts_by_its_own_size(structure: Structure, make_workload: Make, device: Device) -> None:
    work = make_workload(structure)

    def judged(share: float | None) -> Workload:
        # Few answers, so that the reflection model decides the memory.
        return replace(work, judging=judging(num_rows=4, search_tokens=50_000, reflection_share=share))

    seconds = {
        share: judging_seconds(judged(share), device, step_seconds(work, device)).value
        for share in (None, 0.0, 1.0, 8.0)
    }
    # Behind a server it takes no time here, and the base has its part of the tokens alone.
    assert seconds[0.0] < seconds[None]
    assert seconds[0.0] < seconds[1.0] < seconds[8.0]
    # Beyond the part of the base it grows with its parameters; the base is loaded again whatever the size.
    own, of_eight = seconds[1.0] - seconds[0.0], seconds[8.0] - seconds[0.0]
    assert 4 * own < of_eight < 8 * own
    memory = {share: predict_memory(judged(share), device).total_bytes.value for share in (None, 0.0, 1.0, 800.0)}
    assert memory[None] == memory[0.0] <= memory[1.0] < memory[800.0]
    assert memory[800.0] > 800 * memory_of_weights(work)


def memory_of_weights(work: Workload) -> float:
    return work.structure.num_parameters * work.element_bytes


def test_a_plan_knows_the_size_of_its_reflection_model(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan({"evaluation": {"metrics": ["rouge"]}})
    data = plan.data.model_copy(update={"held_out": profile("held_out", 50)})

    def share(**evaluation: object) -> float | None:
        asked = plan.evaluation.model_copy(update=evaluation)
        found = judging_of(plan.model_copy(update={"data": data, "evaluation": asked}), base_parameters=1000)
        assert found is not None
        return found.reflection_share

    search = {"optimised_prompt_tokens": 5_000, "reflection_model": "a-model"}
    assert share(**search, reflection_parameters=3000) == 3.0
    assert share(**search) == 0.0  # behind a server
    assert share(optimised_prompt_tokens=5_000) is None


def test_the_interval_reaches_from_short_answers_to_the_longest(
    structure: Structure, make_workload: Make, device: Device
) -> None:
    work = replace(make_workload(structure), judging=judging())
    found = judging_seconds(work, device, step_seconds(work, device))
    assert 0 < found.low < found.value < found.high
    longer = replace(work, judging=judging(new_tokens=400, longest_tokens=460))
    other = judging_seconds(longer, device, step_seconds(longer, device))
    assert other.low == pytest.approx(found.low, rel=0.01)
    assert other.high > 2 * found.high


def test_judging_is_part_of_time_and_price_and_load_of_the_upper_end(
    structure: Structure, make_workload: Make, device: Device
) -> None:
    work = replace(make_workload(structure), judging=judging())
    step = step_seconds(work, device)
    parts = hours_by_part(work, device, step)
    made = predict(work, device)
    assert made.hours.value == pytest.approx(sum(part.value for part in parts.values()))
    assert parts["judging"].value > 0
    assert predict(replace(work, judging=None), device).hours.value < made.hours.value
    busy = predict(work, device, load=MachineLoad(busy_cores=1.0, num_cores=2, slowdown=3.0))
    for name in ("value", "low"):
        assert getattr(busy.hours, name) == pytest.approx(getattr(made.hours, name))
    assert busy.step_seconds.high == pytest.approx(3 * made.step_seconds.high)
    assert busy.hours.high > 2.5 * made.hours.high
    assert any("1.0 of 2 cores" in note for note in busy.notes)
    assert not any("cores now" in note for note in made.notes)
