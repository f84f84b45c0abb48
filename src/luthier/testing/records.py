"""Small, whole specs for tests that store, list or show them: nothing was trained for them."""

from __future__ import annotations

from datetime import date

from luthier.core.cost import Device, Estimate, MemoryPrediction, Prediction, Quote, Room
from luthier.core.dataset import DatasetProfile
from luthier.core.evaluation import Comparison, Evaluation, Metric, Sample, SystemResult, Verdict
from luthier.core.events import StepDone
from luthier.core.plan import (
    DataPlan,
    EvaluationPlan,
    MethodPlan,
    ModelPlan,
    ObjectivePlan,
    Plan,
    TrainingPlan,
    ValueSource,
)
from luthier.core.recipe import DataRecipe, Recipe
from luthier.core.records.export import Export, ExportSource, Interval, ParityReport
from luthier.core.run import RunRecord, RunStatus, TrainResult

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
        nll_increase_nats=Interval(value=0.001, low=-0.002, high=0.004),
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
