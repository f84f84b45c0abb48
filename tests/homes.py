"""Homes with models, studies and workflows in them, as commands leave them behind; nothing was trained for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Metric, SystemResult
from luthier.core.recipe import Recipe
from luthier.core.records.export import ServerExport
from luthier.core.workflows.pipeline import (
    AutomlSpec,
    Contender,
    ModelComparisonResult,
    ModelComparisonSpec,
    Pipeline,
    PipelineKind,
    Recommendation,
    Stage,
    Standing,
    Tuning,
)
from luthier.core.workflows.study import Parameter, Result, Space, Study, StudySpec, Trial, TrialState, Values
from luthier.features.datasets import service as dataset_versions
from luthier.features.deployments import service as deployments
from luthier.features.models.store import TunedModel
from luthier.platform.audit_log.service import AuditEvent
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import make_evaluation, make_export, make_plan, make_record, make_result

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202eabc'
ME = Caller()


@dataclass(frozen=True, slots=True)
class Made:
    """Ids of what is there.

    Attributes:
        runs: two runs, the older one first.
        dataset_id: the dataset that both were trained on.
        tuned: the name of the newer run's model.
        export_id: an export of that run.
    """

    runs: tuple[str, str]
    dataset_id: str
    tuned: str
    export_id: str


def fill(home: Context, *, name: str = "answers") -> Made:
    """Put two runs over the same version of a dataset into a home. name: of the dataset."""
    file = dataset_versions.keep_rows(home, ME, [b'{"prompt": "a", "completion": "b"}\n'], "train.jsonl")
    dataset, version = dataset_versions.create_dataset(home, ME, name, file)
    runs = (add_run(home, "a", version.sha256), add_run(home, "b", version.sha256))
    evaluation = make_evaluation("eval-20261125-093000-bbbbbb", run_id=runs[1])
    home.evaluations.save(evaluation)
    home.runs.update(runs[1], evaluation_id=evaluation.evaluation_id)
    tuned = "ft:tiny:default:mine:1a2b"
    # step None is the outcome of the run, the other one the model after an epoch.
    for model_id, step in ((tuned, None), (f"{tuned}:ckpt-step-5", 5)):
        folder = str(home.settings.run_folder(runs[1]) / "model")
        home.tuned_models.add(
            TunedModel(
                model_id=model_id,
                project_id="default",
                job_id="ftjob-1",
                run_id=runs[1],
                base_model="tiny",
                adapter_path=folder,
                step=step,
                checkpoint_id=None if step is None else "ftckpt_1",
            )
        )
    export_id = add_export(home, runs[1])
    deployments.deploy(home, ME, "support", runs[0])
    return Made(runs, dataset.dataset_id, tuned, export_id)


def add_run(home: Context, letter: str, train_sha256: str) -> str:
    """A run that has made a whole model, in which nothing can be loaded."""
    run_id = f"run-20261125-09300{ord(letter) % 10}-{letter * 6}"
    folder = home.settings.run_folder(run_id) / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    result = make_result().model_copy(update={"adapter_path": str(folder)})
    record = make_record(run_id, status="succeeded", result=result)
    home.runs.create(record, make_plan(train_sha256=train_sha256))
    return run_id


def add_export(home: Context, source: str, letter: str = "a", *, is_made: bool = True) -> str:
    """An export with its job; where it is made, of one file."""
    export_id = f"exp-20261125-093000-{letter * 6}"
    asked = {"export_id": export_id, "source": source, "to": "merged", "quantise": None}
    job = Job(job_id=f"job-{letter}", kind="export", document={"export": asked}, run_id="")
    audit_event = AuditEvent(actor="local", action="export.started", subject=export_id, project_id="default")
    home.exports.add(ServerExport(export_id=export_id, project_id="default", job_id=job.job_id, source=source), job)
    home.audit_log.append(audit_event)
    if is_made:
        folder = home.settings.exports_folder / export_id
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "README.md").write_text(f"# Card {HOSTILE}", encoding="utf-8")
        made = make_export(source, folder=str(folder))
        files = {"README.md": "6" * 64, "model.safetensors": "5" * 64}
        home.exports.finish(export_id, made.model_copy(update={"files": files, "warnings": (HOSTILE,)}))
        taken = home.jobs.claim("w")
        assert taken is not None
        home.jobs.finish(taken.job_id, taken.attempt, "succeeded")
    return export_id


STUDY_ID: Final = "study-20261126-120000-abcdef"
_RUNGS: Final = (1 / 9, 1 / 3, 1.0)
_STEPS: Final = (20, 60, 180)
_RATES: Final = (3e-4, 2e-3, 8e-4, 5e-3, 1e-4, 1.5e-3, 9e-3, 1.2e-3, 2.5e-3)
_REACHED: Final = (2, 1, 0, 0, 0, 2, 0, 1, 0)
"""The highest rung of each trial after the first: one in three goes on."""


def add_study(home: Context, changed: Mapping[str, Any] | None = None) -> Study:
    """A study that is searched: the recipe as it came, nine trials, one that failed and one that trains.

    Args:
        home: The home.
        changed: Fields of the study that get other values.
    """
    document = {
        "base_model": "smollm2-135m-instruct",
        "data": {"train": f"{home.home}/rows/train.jsonl", "validation": 0.1},
        "method": {"name": "lora", "rank": 4},
    }
    space = Space(
        parameters=(
            Parameter(name="training.learning_rate", kind="float", low=1e-4, high=1e-2, log=True),
            Parameter(name="method.rank", kind="choice", choices=(4, 8, 16, 32)),
            Parameter(name="training.schedule", kind="choice", choices=("cosine", "linear", "constant")),
            Parameter(name="training.weight_decay", kind="choice", choices=(0.0, 0.01, 0.1)),
            Parameter(name="training.epochs", kind="choice", choices=(1.0, 2.0, 4.0)),
        )
    )
    spec = StudySpec(
        recipe=Recipe.model_validate(document), space=space, hours=2.0, most_trials=20, rungs=_RUNGS, workers=2
    )
    study = Study(
        study_id=STUDY_ID,
        created_at="2026-11-26T12:00:00+00:00",
        status="searching",
        spec=spec,
        usd_per_hour=1.5,
        overhead_hours=0.012,
    ).model_copy(update=dict(changed or {}))
    home.studies.create(study, DEFAULT_PROJECT)
    for trial in _trials():
        home.studies.put_trial(STUDY_ID, trial)
    return study


def trial_of(number: int, values: Values, reached: int, loss: float, *, state: TrialState, reason: str = "") -> Trial:
    """A trial that has got to a rung, -1 for none, with `loss` on the last one."""
    results = tuple(
        Result(
            rung=rung,
            step=_STEPS[rung],
            share=_STEPS[rung] / _STEPS[-1],
            # Loss falls by a third from rung to rung.
            loss=loss * 1.5 ** (2 - rung),
            study_hours=0.03 + 0.09 * number + 0.15 * rung,
        )
        for rung in range(reached + 1)
    )
    run_id = f"run-20261126-1200{number:02d}-abcdef"
    hours = 0.02 * 3 ** max(0, reached)
    return Trial(number=number, values=values, run_id=run_id, state=state, results=results, hours=hours, reason=reason)


def _trials() -> list[Trial]:
    found = [trial_of(0, {}, 2, 1.25, state="done")]
    for place, (rate, reached) in enumerate(zip(_RATES, _REACHED, strict=True)):
        values: Values = {
            "training.learning_rate": rate,
            "method.rank": (4, 8, 16, 32)[place % 4],
            "training.schedule": ("cosine", "linear", "constant")[place % 3],
            "training.weight_decay": (0.0, 0.01, 0.1)[place // 3],
            "training.epochs": (1.0, 2.0, 4.0)[(place + 1) % 3],
        }
        loss = 1.125 + 0.0625 * (place % 5)
        found.append(trial_of(place + 1, values, reached, loss, state="done" if reached == 2 else "paused"))
    lost: Values = {"training.learning_rate": 0.01, "method.rank": 32}
    found.append(trial_of(10, lost, -1, 0.0, state="failed", reason="its loss is no number after step 4"))
    found.append(trial_of(11, lost | {"method.rank": 8}, -1, 0.0, state="running"))
    return found


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
    for place, name in enumerate(("audit", "repair", "split", "showdown", "tune", "judge", "report")):
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
