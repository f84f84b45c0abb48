"""What trackers are given: names, times, parameters, and the verdict with its intervals."""

from __future__ import annotations

import json
from math import nan

from luthier.core.data_sources import SourceRecipe
from luthier.core.events import GpuSample, MachineSampled, RunStarted, ValidationDone
from luthier.core.recipe import DataRecipe, Recipe
from luthier.ml.tracking.figures import Clock, parameters_of, points_of, summary_of, texts_of, values_of
from luthier.testing.records import RUN_ID, make_evaluation, make_plan, make_result, make_step

SAMPLE = MachineSampled(
    step=2, at=1000.0, run_cores=1.5, machine_cores=3.0, num_cores=4, run_memory_bytes=3 << 20,
    machine_memory_bytes=8 << 20, memory_bytes=16 << 20, gpus=(GpuSample(name="GPU 0", utilisation=0.5),),
)  # fmt: skip


def test_steps_have_the_usual_names() -> None:
    step = make_step(3).model_copy(update={"measures": {"token_accuracy": 0.5, "broken": nan}})
    assert values_of(step) == {
        "train/loss": 1.0,
        "train/learning_rate": 1e-4,
        "train/grad_norm": 0.5,
        "train/epoch": 0.6,
        "train/global_step": 3,
        "train/num_tokens": 100,
        "train/num_trained_tokens": 40,
        "train/step_seconds": 0.25,
        "train/tokens_per_second": 400.0,
        "train/token_accuracy": 0.5,
    }


def test_rows_of_unknown_number_have_no_epochs() -> None:
    step = make_step(3)
    found = values_of(step.model_copy(update={"epoch": None}))
    assert values_of(step) == found | {"train/epoch": 0.6}


def test_validations_and_the_machine_do_too() -> None:
    validation = ValidationDone(
        step=3, loss=0.5, num_trained_tokens=9, is_best=True, seconds=2.0, measures={"token_accuracy": 0.75}
    )
    assert values_of(validation) == {
        "eval/loss": 0.5, "eval/token_accuracy": 0.75, "eval/runtime": 2.0, "train/global_step": 3
    }  # fmt: skip
    found = values_of(SAMPLE)
    assert found["system/cpu_utilization_percentage"] == 75.0
    assert found["system/run_memory_megabytes"] == 3.0
    assert found["system/gpu_0_utilization_percentage"] == 50.0


def test_times_are_those_of_training_not_of_delivery() -> None:
    events = [RunStarted(from_step=0, num_steps=4), make_step(1), make_step(2), SAMPLE, make_step(3)]
    clock = Clock(None, fallback=5.0)
    assert [(one.step, one.at) for one in points_of(events, clock)] == [
        (1, 999.75),
        (2, 1000.0),
        (2, 1000.0),
        (3, 1000.25),
    ]
    assert [one.at for one in points_of([make_step(4)], Clock(clock.last, 5.0))] == [1000.5]
    assert [one.at for one in points_of([make_step(1)], Clock(None, 5.0))] == [5.25]


def test_parameters_are_those_of_recipe_and_plan_without_folders() -> None:
    recipe = Recipe(
        base_model="/home/me/models/tiny", data=DataRecipe(train="/home/me/rows.jsonl", map={"prompt": "q"})
    )
    plan = make_plan().model_copy(update={"recipe": recipe})
    found = parameters_of(RUN_ID, plan)
    assert found["plan_hash"] == plan.hash
    assert found["training.learning_rate"] == 2e-4
    assert (found["recipe.base_model"], found["recipe.data.train"]) == ("tiny", "rows.jsonl")
    assert found["recipe.data.columns.prompt"] == "q"
    assert found["data.train.sha256"] == "2" * 64
    assert not [value for value in found.values() if "/home/me" in str(value)]


def test_parameters_of_sources_have_neither_folders_nor_signatures() -> None:
    sources = (
        SourceRecipe(path="/home/me/faq.jsonl", weight=2.0),
        SourceRecipe(path="https://rows.example/more.jsonl?X-Amz-Signature=secret", weight=1.0),
    )
    recipe = Recipe(base_model="tiny", data=DataRecipe(train=sources, held_out="https://rows.example/t.csv?sig=secret"))
    found = parameters_of(RUN_ID, make_plan().model_copy(update={"recipe": recipe}))
    listed = json.loads(str(found["recipe.data.train"]))
    assert [one["path"] for one in listed] == ["faq.jsonl", "https://rows.example/more.jsonl"]
    assert found["recipe.data.held_out"] == "https://rows.example/t.csv"
    assert not [value for value in found.values() if "/home/me" in str(value) or "secret" in str(value)]


def test_the_verdict_comes_with_its_intervals() -> None:
    evaluation = make_evaluation()
    found = summary_of(make_result(), evaluation)
    assert found["result/train_loss"] == 1.0625
    (one, *_) = evaluation.comparisons
    name = f"verdict/{one.metric}/{one.candidate} minus {one.baseline}"
    assert [found[name + end] for end in ("", "_low", "_high")] == [one.difference, one.low, one.high]
    system = evaluation.systems[-1]
    metric = system.metrics["exact_match"]
    assert found[f"held_out/{system.name}/exact_match_low"] == metric.low
    texts = texts_of(evaluation, ["validation rises"])
    assert evaluation.verdict is not None
    assert texts["verdict_headline"] == evaluation.verdict.headline
    assert texts["warnings"] == "validation rises"
    assert texts_of(None, []) == {}
