"""Showdowns, autos and retrainings in a home as their commands leave them behind, made without training: for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.cost import Estimate
from luthier.core.evaluation import Metric, SystemResult
from luthier.core.workflows.automl import AutomlSpec
from luthier.core.workflows.model_comparison import (
    Contender,
    ModelComparisonResult,
    ModelComparisonSpec,
    Recommendation,
    Standing,
    Tuning,
)
from luthier.core.workflows.pipeline import Pipeline, PipelineKind, Stage
from luthier.platform.home.context import Context

SHOWDOWN_ID: Final = "showdown-20261126-120000-abcdef"
AUTO_ID: Final = "auto-20261126-130000-abcdef"
RETRAIN_ID: Final = "retrain-20261126-140000-abcdef"
HEADLINE: Final = "Tune smollm2-135m-instruct: exact match 0.860 [0.800, 0.910], against 0.410 [0.340, 0.480]."
_MODELS: Final = ("smollm2-135m-instruct", "gemma3-270m")
_RUN_IDS: Final = ("run-20261126-120500-aaaaaa", "run-20261126-121500-bbbbbb")
_AGO_SECONDS: Final = 5000.0


def add_model_comparison(home: Context, *, project_id: str = DEFAULT_PROJECT, is_kept: bool = True) -> Pipeline:
    """A showdown of two models that is done; its page is gone. is_kept: whether its result is there."""
    tuning = [{"run_id": run_id, "reason": "", "seconds": 620.0} for run_id in _RUN_IDS]
    came: list[dict[str, Any]] = [{"seconds": 95.0}, {"seconds": 140.0}]
    for one in tuning:
        came += [one, {"seconds": 60.0}]
    came.append({"page": "/somewhere", "word": "tuned"})
    names = [f"{model}: prompting" for model in _MODELS]
    names += [f"{model}: {part}" for model in _MODELS for part in ("tuning", "tuned")]
    stages = [Stage(name=name, status="done", came=one) for name, one in zip([*names, "comparing"], came, strict=True)]
    asked = _model_comparison_spec(home)
    if is_kept:
        home.assessments.save("showdown", SHOWDOWN_ID, _result(asked), project_id=project_id, subject=_MODELS[0])
    return _add(home, SHOWDOWN_ID, "showdown", asked.model_dump(mode="json"), stages, project_id)


def add_auto(
    home: Context,
    last: Mapping[str, Any],
    *,
    num_done: int = 4,
    goal: str = "Answer with one SQL query.",
    project_id: str = DEFAULT_PROJECT,
) -> Pipeline:
    """An auto whose first stages are done. last: fields of the stage after them."""
    spec = AutomlSpec(
        data=f"{home.home}/rows/orders.jsonl",
        is_folder=False,
        goal=goal,
        models=_MODELS,
        hours=2.0,
        showdown_hours=0.6,
    )
    audit: dict[str, Any] = {"grade": "C", "reasons": ["12 exact duplicates"], "num_rows": 812, "seconds": 2.4}
    sides = {"train": {"num_rows": 640}, "validation": {"num_rows": 80}, "held_out": {"num_rows": 80}}
    came: list[dict[str, Any]] = [
        audit,
        audit | {"grade": "A", "num_rows_before": 812, "num_rows": 800, "actions": {"exact_duplicate": 12}},
        {"folder": f"{home.home}/autos/{AUTO_ID}/split", "sides": sides, "seconds": 1.1},
        {"showdown_id": SHOWDOWN_ID, "word": "tuned", "headline": HEADLINE, "seconds": 1640.0},
        {"study_id": "study-20261126-133000-abcdef", "run_id": _RUN_IDS[0], "seconds": 3100.0},
        {"evaluation_id": "eval-20261126-143000-abcdef", "headline": "Fine-tuning was worth it.", "seconds": 80.0},
        {"page": "report.html", "seconds": 0.4},
    ]
    stages = []
    for place, name in enumerate(spec.stage_names):
        fields = {"status": "done", "came": came[place]} if place < num_done else last if place == num_done else {}
        stages.append(Stage.model_validate({"name": name} | dict(fields)))
    return _add(home, AUTO_ID, "auto", spec.model_dump(mode="json"), stages, project_id)


def add_retrain(home: Context, last: Mapping[str, Any], *, project_id: str = DEFAULT_PROJECT) -> Pipeline:
    """A retraining that has come to its audit. last: fields of that stage."""
    asked = {
        "model": "support",
        "from_traffic": True,
        "panels": [],
        "start": "base",
        "canary": 0.1,
        "gate": None,
        "suite": None,
        "min_rows": 20,
        "run_id": _RUN_IDS[0],
        "judged_against": _RUN_IDS[0],
    }
    rows = {"num_old": 240, "num_new": 48, "num_replaced": 2, "num_old_held_out": 30, "num_new_held_out": 12}
    came = {"rows": rows | {"left_out": {"its prompt is a held-out one's": 3}}}
    stages = [
        Stage(name="rows", status="done", came=came["rows"]),
        Stage.model_validate({"name": "audit"} | dict(last)),
        *(Stage(name=name) for name in ("version", "train", "judge", "gate", "canary")),
    ]
    return _add(home, RETRAIN_ID, "retrain", asked, stages, project_id)


def _add(
    home: Context,
    pipeline_id: str,
    kind: PipelineKind,
    asked: dict[str, Any],
    stages: Sequence[Stage],
    project_id: str,
) -> Pipeline:
    """Write it down, with a begin and an end for each stage that has none yet and was begun."""
    moment, timed = home.access.now() - _AGO_SECONDS, []
    for stage in stages:
        times: dict[str, float] = {}
        if stage.status != "waiting" and stage.began_at is None:
            # Stages follow each other without a gap, as the engine runs them.
            took = stage.came.get("seconds", 12.0)
            times = (
                {"began_at": moment} if stage.status == "running" else {"began_at": moment, "ended_at": moment + took}
            )
            moment += took
        timed.append(stage.model_copy(update=times))
    made = Pipeline(pipeline_id=pipeline_id, kind=kind, asked=asked, stages=tuple(timed))
    return home.pipelines.create(made, project_id)


def _model_comparison_spec(home: Context) -> ModelComparisonSpec:
    folder = home.home / "showdowns" / SHOWDOWN_ID
    return ModelComparisonSpec(
        contenders=tuple(_contender(model) for model in _MODELS),
        data=f"{home.home}/rows/train.jsonl",
        held_out=f"{home.home}/rows/test.jsonl",
        train_file=str(folder / "train.jsonl"),
        judged_file=str(folder / "judged.jsonl"),
        num_rows=640,
        num_rows_in_file=640,
        num_examples=640,
        num_judged=100,
        num_held_out=400,
        num_too_long=0,
        few_shot=4,
        instruction="Answer with one SQL query.",
        metrics=("exact_match",),
        primary="exact_match",
        max_new_tokens=64,
        method="lora",
        seed=0,
        hours=1.0,
        sizing_hours=0.02,
        planned_hours=Estimate(value=0.5, low=0.4, high=0.7),
    )


def _contender(model: str) -> Contender:
    return Contender(
        label=model,
        model=model,
        licence="Apache-2.0",
        num_parameters=135_000_000,
        context_length_tokens=8192,
        vocabulary_size=49152,
        has_chat_template=True,
        weights_bytes=540_000_000,
        learning_rate=2e-4,
        batch_size=16,
        num_steps=40,
        num_tokens=30_000,
        training_hours=Estimate(value=0.2, low=0.15, high=0.3),
        judging_seconds={"zero-shot": 0.5, "few-shot": 0.8},
        loading_seconds=2.0,
    )


def _result(spec: ModelComparisonSpec) -> ModelComparisonResult:
    standings = []
    for number, (kind, value) in enumerate((("zero-shot", 0.41), ("tuned", 0.86))):
        name = _MODELS[0] + (" tuned" if kind == "tuned" else "")
        metric = Metric(value=value, low=value - 0.06, high=value + 0.05, unit="fraction", higher_is_better=True)
        result = SystemResult(
            name=name,
            model=_MODELS[0],
            adapter="/adapter" if number else None,
            num_samples=100,
            metrics={"exact_match": metric},
            samples=(),
            seconds=50.0,
        )
        standings.append(
            Standing.model_validate({"contender": 0, "kind": kind, "result": result, "seconds_per_answer": 0.5})
        )
    answer = Recommendation(word="tuned", system=standings[1].result.name, contender=0, headline=HEADLINE)
    return ModelComparisonResult(
        showdown_id=SHOWDOWN_ID,
        created_at="2026-11-26T12:40:00+00:00",
        spec=spec,
        standings=tuple(standings),
        tunings=tuple(Tuning(contender=n, run_id=run_id, hours=0.17) for n, run_id in enumerate(_RUN_IDS)),
        comparisons=(),
        recommendation=answer,
        hours=0.52,
    )
