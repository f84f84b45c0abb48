"""Small, whole specs and finished runs for tests that store, list or show them: nothing was trained for them.

Among them are runs of many steps, with curves as a training has them, for tests of live pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING

from luthier.core.dataset import DatasetProfile
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Comparison, Evaluation, Metric, Sample, SystemResult, Verdict
from luthier.core.evaluation_plan import EvaluationPlan
from luthier.core.events import BillUpdated, CheckpointSaved, Event, RunStarted, StepDone, ValidationDone
from luthier.core.plan import (
    DataPlan,
    MethodPlan,
    ModelPlan,
    ObjectivePlan,
    Plan,
    TrainingPlan,
    ValueSource,
)
from luthier.core.recipe import DataRecipe, Recipe
from luthier.core.records.export import Export, ExportSource, ParityReport
from luthier.core.results.cost import Device, MemoryPrediction, Prediction, Quote, Room
from luthier.core.run import Bill, RunRecord, RunStatus, TrainResult

if TYPE_CHECKING:
    from luthier.platform.home.context import Context

RUN_ID = "run-20261125-093000-aaaaaa"
_TIME = "2026-11-25T09:30:00+00:00"


def make_record(run_id: str = RUN_ID, *, status: RunStatus = "planned", result: TrainResult | None = None) -> RunRecord:
    """A run of ten steps; none of them done, or all where a result is given."""
    return RunRecord(
        run_id=run_id,
        status=status,
        base_model="tiny",
        method="lora",
        plan_hash="0" * 64,
        created_at=_TIME,
        updated_at=_TIME,
        step=10 if result else 0,
        num_steps=10,
        result=result,
    )


def make_result(*, train_loss: float = 1.0625) -> TrainResult:
    """What came out of ten steps."""
    return TrainResult(
        status="succeeded",
        stopped_because="all steps done",
        num_steps=10,
        num_tokens=1000,
        num_trained_tokens=400,
        num_examples=40,
        num_trainable_parameters=1024,
        trainable_fraction=0.01,
        train_loss=train_loss,
        best_validation_loss=None,
        best_step=10,
        seconds=2.5,
        tokens_per_second=400.0,
        examples_per_second=16.0,
        seconds_per_step=0.25,
        peak_memory_bytes=1 << 20,
        adapter_path="/adapter",
        adapter_sha256="1" * 64,
        warnings=("validation rises",),
    )


def make_step(step: int, loss: float = 1.0) -> StepDone:
    """One step of a run."""
    return StepDone(
        step=step,
        epoch=step / 5,
        loss=loss,
        learning_rate=1e-4,
        gradient_norm=0.5,
        num_tokens=100,
        num_trained_tokens=40,
        seconds=0.25,
    )


def make_profile(sha256: str = "2" * 64) -> DatasetProfile:
    """Forty training rows."""
    return DatasetProfile(
        split="train",
        file="train.jsonl",
        sha256=sha256,
        shape="chat",
        shape_reason="every row has messages",
        num_rows=40,
        num_examples=40,
        num_dropped=0,
        num_tokens=1000,
        num_trained_tokens=400,
        max_tokens=50,
        mean_tokens=25.0,
    )


def make_plan(*, learning_rate: float = 2e-4, train_sha256: str = "2" * 64, model_sha256: str = "3" * 64) -> Plan:
    """A plan of ten steps with three of its sources."""
    model = ModelPlan(
        name="tiny",
        path="/models/tiny",
        sha256=model_sha256,
        num_parameters=100_000,
        num_embedding_parameters=12_288,
        context_length_tokens=512,
        template="chat",
        template_sha256="4" * 64,
    )
    training = TrainingPlan(
        num_steps=10,
        num_steps_per_epoch=5,
        num_warmup_steps=1,
        epochs=2.0,
        global_batch_size=8,
        micro_batch_tokens=2048,
        learning_rate=learning_rate,
        schedule="cosine",
        weight_decay=0.0,
        clip_gradient_norm=1.0,
        max_length_tokens=512,
        overlong="error",
        order="by_length",
        precision="float32",
        attention="by_length",
        device="cpu",
        validate_every_steps=5,
        checkpoint_every_steps=5,
        keep_checkpoints=2,
        early_stopping_patience=0,
        num_threads=1,
        seed=0,
    )
    return Plan(
        recipe=Recipe(base_model="tiny", data=DataRecipe(train="train.jsonl")),
        base_model=model,
        data=DataPlan(train=make_profile(train_sha256)),
        method=MethodPlan(
            name="lora", rank=8, alpha=16.0, dropout=0.1, targets=("q_proj",), num_trainable_parameters=1024
        ),
        objective=ObjectivePlan(name="sft"),
        training=training,
        evaluation=EvaluationPlan(metrics=("perplexity",), few_shot=0, max_new_tokens=16, max_samples=10),
        sources={
            "training.learning_rate": ValueSource(source="asked", why="the recipe says so"),
            "training.epochs": ValueSource(source="default", why="enough for most"),
            "training.precision": ValueSource(source="measured", why="bfloat16 was faster"),
        },
    )


def make_evaluation(
    evaluation_id: str = "eval-20261125-093000-aaaaaa",
    *,
    run_id: str | None = None,
    held_out_sha256: str = "0" * 64,
    value: float = 0.5,
) -> Evaluation:
    """Two systems judged on one row, with a verdict."""
    sample = Sample(
        row_id="t.jsonl:1",
        prompt="p",
        reference="r",
        output="o",
        num_new_tokens=1,
        finish_reason="stop",
        scores={"x": 1},
    )
    metric = Metric(value=value, low=0.25, high=0.75, unit="fraction", higher_is_better=True)
    systems = tuple(
        SystemResult(
            name=name, model="tiny", num_samples=1, metrics={"exact_match": metric}, samples=(sample,), seconds=1.0
        )
        for name in ("base", "tuned")
    )
    comparison = Comparison(
        baseline="base",
        candidate="tuned",
        metric="exact_match",
        difference=0.1,
        low=-0.1,
        high=0.3,
        p_value=0.2,
        verdict="not distinguishable",
        rows_needed=400,
    )
    verdict = Verdict(
        word="not distinguishable",
        metric="exact_match",
        headline="Cannot tell.",
        details=("one row",),
        caveats=("few rows",),
    )
    return Evaluation(
        evaluation_id=evaluation_id,
        created_at=_TIME,
        run_id=run_id,
        held_out_file="t.jsonl",
        held_out_sha256=held_out_sha256,
        num_rows=1,
        systems=systems,
        comparisons=(comparison,),
        verdict=verdict,
        seconds=2.0,
    )


def make_quote(*, num_steps: int = 10, step_seconds: float = 2.0, is_calibrated: bool = False) -> Quote:
    """What a run was predicted to take: steps of two seconds, ends a third below and half above, 0.60 USD an hour."""

    def spread(value: float) -> Estimate:
        # Symmetric on a logarithmic scale, as forecasts of time are.
        return Estimate(value=value, low=value / 1.5, high=value * 1.5)

    hours = spread(num_steps * step_seconds / 3600)
    price = Estimate(value=0.6, low=0.3, high=0.9)
    nothing = Estimate(value=0.0, low=0.0, high=0.0)
    prediction = Prediction(
        device=Device(
            name="cpu",
            title="a processor, 2 threads",
            num_devices=1,
            memory_bytes=8 << 30,
            bfloat16_tflops=0.4,
            float32_tflops=0.1,
            memory_gb_per_second=20.0,
            link_gb_per_second=0.0,
            power_watts=16.0,
            is_cpu=True,
            source="measured",
        ),
        step_seconds=spread(step_seconds),
        num_steps=num_steps,
        hours=hours,
        peak_memory=MemoryPrediction(
            weights_bytes=5e8,
            adapters_bytes=1e7,
            gradients_bytes=2e7,
            optimizer_bytes=4e7,
            activations_bytes=8e8,
            logits_bytes=1e8,
            generation_bytes=0.0,
            runtime_bytes=6e8,
            total_bytes=spread(2.07e9),
        ),
        fits=True,
        usd=hours.by(price),
        energy_kwh=spread(0.001),
        calibrated=is_calibrated,
        flops_per_step=1e12,
        tokens_per_second=spread(100.0),
        notes=("made up",),
    )
    return Quote(
        prediction=prediction,
        hours_by_part={"steps": hours, "validations": nothing, "checkpoints": nothing},
        market="on_demand",
        usd_per_hour=price,
        price_basis="assumption",
        price_source="a price of nobody",
        price_as_of=date(2026, 11, 25),
        electricity_usd=spread(0.0002),
        people=(),
        num_rows=40,
        num_tokens=2000,
        room=Room(micro_batch_rows=100, length_tokens=50, longest_row_tokens=4000),
    )


def make_export(run_id: str = RUN_ID, *, folder: str = "/exports/x", passed: bool = True) -> Export:
    """A merged model, proved on three prompts."""
    parity = ParityReport(
        format="merged",
        precision="float16",
        runtime="transformers",
        runtime_version="5.0",
        num_prompts=3,
        num_prompts_same_tokens=3,
        num_texts_equal=2,
        max_difference_nats=0.01,
        mean_difference_nats=0.001,
        bound_nats=0.05,
        nll_increase_nats=Estimate(value=0.001, low=-0.002, high=0.004),
        source_perplexity=8.0,
        export_perplexity=8.01,
        passed=passed,
    )
    return Export(
        source=ExportSource(
            name=run_id,
            run_id=run_id,
            base_name="tiny",
            base_path="/models/tiny",
            base_sha256="3" * 64,
            precision="float32",
        ),
        format="merged",
        precision="float16",
        folder=folder,
        num_bytes=1024,
        files={"model.safetensors": "5" * 64},
        parity=parity,
        seconds=2.0,
        warnings=("made up",),
    )


def add_run(context: Context, letter: str, *, status: RunStatus = "succeeded", project_id: str | None = None) -> str:
    """Put a run into a home, with the folder of a whole model in which nothing can be loaded; returns its id.

    Args:
        context: The home.
        letter: A hexadecimal digit that distinguishes it from others.
        status: The status of the run.
        project_id: Whose it is; None for `default`.
    """
    run_id = f"run-20261125-093000-{letter * 6}"
    folder = context.settings.run_folder(run_id) / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    result = make_result().model_copy(update={"status": status, "adapter_path": str(folder)})
    context.runs.create(make_record(run_id, status=status, result=result), make_plan(), project_id)
    return run_id


def events_of(first: int, last: int, num_steps: int, *, validate_every_steps: int = 500) -> Iterator[Event]:
    """Events of a run from step `first` to `last` of `num_steps`; the same each time."""
    if first <= 1:
        yield RunStarted(from_step=0, num_steps=num_steps)
    for step in range(first, last + 1):
        # A hash by sine, as shaders use it: looks random, and is the same for a step whatever range is made.
        noise = math.sin(step * 12.9898) * 43758.5453 % 1 - 0.5
        share = step / num_steps
        yield StepDone(
            step=step,
            epoch=3 * share,
            loss=0.6 + 2.2 / (1 + 12 * share) + 0.25 * noise,
            learning_rate=2e-4 * min(1.0, 20 * share) * (0.5 + 0.5 * math.cos(math.pi * share)),
            gradient_norm=0.4 + 0.8 / (1 + 30 * share) + 0.2 * abs(noise),
            num_tokens=2000 + round(300 * noise),
            num_trained_tokens=800,
            seconds=0.5 + 0.05 * noise,
            measures={"token_accuracy": 0.85 - 0.5 / (1 + 9 * share) + 0.05 * noise},
        )
        if step % validate_every_steps == 0:
            loss = 0.75 + 2.1 / (1 + 12 * share) + 0.3 * max(0.0, share - 0.7) ** 2
            yield ValidationDone(
                step=step, loss=loss, num_trained_tokens=4000, is_best=share <= 0.7, seconds=2.0, measures={}
            )
            yield CheckpointSaved(step=step, path=f"/checkpoints/step-{step}", num_bytes=4_200_000)
        if step % max(1, num_steps // 20) == 0:
            yield BillUpdated(step=step, bill=bill_at(step, num_steps))


def bill_at(step: int, num_steps: int) -> Bill:
    """What a run has cost after a step: half a second and 2,000 tokens each, 0.60 USD an hour."""

    def spread(value: float) -> Estimate:
        return Estimate(value=value, low=value * 0.8, high=value * 1.3)

    hours, final = step * 0.5 / 3600, num_steps * 0.5 / 3600
    return Bill(
        hours=hours,
        tokens=2000 * step,
        usd=spread(0.6 * hours),
        energy_kwh=spread(0.02 * hours),
        interrupted_hours=0.0,
        final_hours=spread(final),
        final_usd=spread(0.6 * final),
        final_energy_kwh=spread(0.02 * final),
    )


def tell(context: Context, run_id: str, events: Iterable[Event]) -> None:
    """Write events of a run all at once, none of them written before, and the run's progress."""
    from sqlalchemy import insert, update

    from luthier.platform.db.tables import events as event_rows
    from luthier.platform.db.tables import runs

    all_events = list(events)
    rows = [
        {
            "run_id": run_id,
            "kind": event.kind,
            "step": event.from_step if isinstance(event, RunStarted) else event.step,
            "code": "",
            "document": event.model_dump_json(),
        }
        for event in all_events
    ]
    last = max((event.step for event in all_events if isinstance(event, StepDone)), default=0)
    # One transaction for all: event by event, thousands of steps would take minutes.
    with context.database.write() as connection:
        connection.execute(insert(event_rows), rows)
        connection.execute(update(runs).where(runs.c.run_id == run_id).values(step=last, status="running"))
