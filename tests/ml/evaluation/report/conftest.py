"""Made-up but realistic documents of one run: a small model learns to write the summary line of a Python function."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from luthier.core.dataset import DatasetProfile
from luthier.core.evaluation import Comparison, Evaluation, Metric, Sample, SystemResult, Verdict
from luthier.core.evaluation_plan import EvaluationPlan, EvaluationRecipe
from luthier.core.events import CheckpointSaved, Event, RunEnded, RunStarted, StepDone, ValidationDone, WarningRaised
from luthier.core.plan import (
    DataPlan,
    MethodPlan,
    ModelPlan,
    ObjectivePlan,
    Plan,
    TrainingPlan,
    ValueSource,
)
from luthier.core.recipe import DataRecipe, MethodRecipe, Recipe, TrainingRecipe
from luthier.core.run import RunRecord, TrainResult
from luthier.ml.evaluation.report import ReportData

NUM_STEPS = 180
DIGEST = "3f1c0de5a9b87c6d5e4f30219a8b7c6d5e4f3021aabbccddeeff001122334455"
VERSIONS = {"python": "3.11.7", "luthier": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0", "machine": "2 cores"}
SYSTEMS = ("smollm2-135m-instruct", "smollm2-135m-instruct, 4 examples", "tuned")
MEANS = {
    "rouge_l": (0.118, 0.204, 0.347),
    "bleu": (1.9, 4.6, 14.2),
    "exact_match": (0.0, 0.01, 0.065),
    "perplexity": (18.4, 14.9, 6.21),
}
UNITS = {"rouge_l": "F1, 0 to 1", "bleu": "0 to 100", "exact_match": "fraction", "perplexity": "per token"}
FUNCTIONS = (
    ("shutil.copyfileobj", "Copy data from file-like object fsrc to file-like object fdst."),
    ("email.utils.parseaddr", "Parse addr into its constituent realname and email address parts."),
    ("calendar.monthrange", "Return weekday of first day of month and number of days in that month."),
    ("ast.literal_eval", "Evaluate an expression node or a string containing only a Python literal."),
    ("inspect.getmodule", "Return the module an object was defined in, or None if not found."),
    ("tarfile.is_tarfile", "Return True if name points to a tar archive that we are able to handle."),
    ("heapq.nsmallest", "Find the n smallest elements in a dataset."),
    ("textwrap.dedent", "Remove any common leading whitespace from every line in text."),
)


class Documents(ReportData):
    """Everything that a report is made from."""

    def but(self, **changes: Any) -> Documents:
        """A copy with some documents exchanged."""
        return replace(self, **changes)


def profile(split: Any, num_rows: int, **more: Any) -> DatasetProfile:
    values: dict[str, Any] = {
        "split": split,
        "file": f"/data/python docs/{split}.jsonl",
        "sha256": DIGEST,
        "shape": "chat",
        "shape_reason": "every row has `messages`",
        "num_rows": num_rows,
        "num_examples": num_rows,
        "num_dropped": 0,
        "num_tokens": num_rows * 187,
        "num_trained_tokens": num_rows * 15,
        "max_tokens": 611,
        "mean_tokens": 187.0,
    }
    return DatasetProfile(**{**values, **more})


def make_plan(*, held_out: bool = True, validation: bool = True, **train: Any) -> Plan:
    recipe = Recipe(
        base_model="smollm2-135m-instruct",
        data=DataRecipe(
            train="train.jsonl",
            validation="validation.jsonl" if validation else None,
            held_out="held_out.jsonl" if held_out else None,
        ),
        method=MethodRecipe(name="lora", rank=16, alpha=32.0),
        training=TrainingRecipe(epochs=3.0, learning_rate=5e-4),
        evaluation=EvaluationRecipe(metrics=("rouge", "bleu", "exact_match", "perplexity"), few_shot=4),
    )
    reasons = {
        "base_model.name": ("asked", "in the recipe"),
        "method.name": ("asked", "in the recipe"),
        "method.rank": ("asked", "in the recipe"),
        "method.dropout": ("default", "guards small data sets against memorisation; 0 to 0.3 is usual"),
        "method.targets": ("default", "adapters on every matrix learn more at the same rank than on attention alone"),
        "training.epochs": ("asked", "in the recipe"),
        "training.num_steps": ("derived", "3 epochs of 60 steps"),
        "training.global_batch_size": ("default", "steady gradients and still many steps on a few hundred rows"),
        "training.learning_rate": ("asked", "in the recipe"),
        "training.schedule": ("default", "falls slowly, then fast, then slowly: the last steps settle"),
        "training.precision": ("measured", "bfloat16 ran at 931 GFLOP/s, float32 at 221 GFLOP/s"),
        "training.device": ("measured", "AMD EPYC, 2 cores"),
        "training.seed": ("default", "any number; the same seed gives the same run"),
        "evaluation.metrics": ("asked", "in the recipe"),
    }
    return Plan(
        recipe=recipe,
        base_model=ModelPlan(
            name="smollm2-135m-instruct",
            path="/models/smollm2",
            sha256=DIGEST,
            num_parameters=134_515_008,
            num_embedding_parameters=28_311_552,
            context_length_tokens=8192,
            template="chat",
            template_sha256=DIGEST,
        ),
        data=DataPlan(
            train=profile("train", 960, **train),
            validation=profile("validation", 120) if validation else None,
            held_out=profile("held_out", 200) if held_out else None,
        ),
        method=MethodPlan(
            name="lora",
            rank=16,
            alpha=32.0,
            dropout=0.1,
            targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            num_trainable_parameters=4_884_480,
        ),
        objective=ObjectivePlan(name="sft"),
        training=TrainingPlan(
            num_steps=NUM_STEPS,
            num_steps_per_epoch=60,
            num_warmup_steps=6,
            epochs=3.0,
            global_batch_size=16,
            micro_batch_tokens=2048,
            learning_rate=5e-4,
            schedule="cosine",
            weight_decay=0.0,
            clip_gradient_norm=1.0,
            max_length_tokens=8192,
            overlong="error",
            order="by_length",
            precision="bfloat16",
            attention="by_length",
            device="cpu",
            validate_every_steps=18,
            checkpoint_every_steps=50,
            keep_checkpoints=2,
            early_stopping_patience=3,
            num_threads=2,
            seed=0,
        ),
        evaluation=EvaluationPlan(
            metrics=("rouge", "bleu", "exact_match", "perplexity"), few_shot=4, max_new_tokens=64, max_samples=200
        ),
        sources={name: ValueSource(source=source, why=why) for name, (source, why) in reasons.items()},  # type: ignore[arg-type]
    )


def make_events(num_steps: int = NUM_STEPS, *, warnings: bool = True, ended: bool = True) -> tuple[Event, ...]:
    chance = random.Random(5)
    events: list[Event] = [RunStarted(from_step=0, num_steps=NUM_STEPS)]
    best = math.inf
    for step in range(1, num_steps + 1):
        at = step / NUM_STEPS
        rate = 5e-4 * (step / 6 if step <= 6 else 0.5 * (1 + math.cos(math.pi * (step - 6) / (NUM_STEPS - 6))))
        events.append(
            StepDone(
                step=step,
                epoch=step / 60,
                loss=1.35 + 1.8 * math.exp(-5 * at) - 0.35 * at + chance.gauss(0, 0.11),
                learning_rate=rate,
                gradient_norm=abs(0.9 + 1.6 * math.exp(-9 * at) + chance.gauss(0, 0.15)),
                num_tokens=16 * 187 + chance.randrange(-900, 900),
                num_trained_tokens=240,
                seconds=3.3 + chance.uniform(-0.4, 0.5),
            )
        )
        if step % 18 == 0:
            loss = 1.62 + 1.25 * math.exp(-5 * at) + 0.28 * max(0.0, at - 0.62)
            events.append(
                ValidationDone(
                    step=step,
                    loss=loss,
                    measures={"token_accuracy": 0.6},
                    num_trained_tokens=1800,
                    is_best=loss < best,
                    seconds=4.0,
                )
            )
            best = min(best, loss)
        if step % 50 == 0:
            events.append(CheckpointSaved(step=step, path=f"checkpoints/{step}", num_bytes=78_000_000))
    if warnings and num_steps == NUM_STEPS:
        message = (
            "Validation loss rises (1.680 -> 1.735) while training loss still falls: it memorises its rows.\n"
            "The step with the lowest validation loss, 126, was kept. Fewer epochs or more rows would help."
        )
        events.append(WarningRaised(step=162, code="overfitting", message=message))
    if ended:
        events.append(RunEnded(step=num_steps, status="succeeded", reason="all steps done"))
    return tuple(events)


def make_record(**changes: Any) -> RunRecord:
    result = TrainResult(
        status="succeeded",
        stopped_because="all steps done",
        num_steps=NUM_STEPS,
        num_tokens=538_560,
        num_trained_tokens=43_200,
        num_examples=2880,
        num_trainable_parameters=4_884_480,
        trainable_fraction=0.0363,
        train_loss=1.437,
        best_validation_loss=1.680,
        best_step=126,
        seconds=641.0,
        tokens_per_second=840.2,
        examples_per_second=4.5,
        seconds_per_step=3.37,
        peak_memory_bytes=2_640_000_000,
        adapter_path="/runs/adapter",
        adapter_sha256=DIGEST[::-1],
        warnings=(),
    )
    values: dict[str, Any] = {
        "run_id": "run-20261125-093000-1f2e3d",
        "status": "succeeded",
        "base_model": "smollm2-135m-instruct",
        "method": "lora",
        "plan_hash": DIGEST,
        "created_at": "2026-11-25T09:30:00+00:00",
        "updated_at": "2026-11-25T09:43:12+00:00",
        "step": NUM_STEPS,
        "num_steps": NUM_STEPS,
        "stopped_because": "all steps done",
        "result": result,
    }
    return RunRecord(**{**values, **changes})


def make_samples(system: int, num_rows: int) -> tuple[Sample, ...]:
    chance = random.Random(11 + system)
    samples = []
    for row in range(num_rows):
        name, summary = FUNCTIONS[row % len(FUNCTIONS)]
        body = "    while buf := read(length):\n        write(buf)\n" * (1 + 9 * (row % 4 == 1))
        head = f"def {name.rsplit('.', 1)[1]}(fsrc, fdst, length=0):"
        prompt = f"Write the summary line of this function's docstring.\n\n{head}\n{body}"
        wordy = "The function takes two arguments and does the following things. It reads the source and writes it. "
        outputs = (wordy * (1 + row % 7), f"Return {summary[5:40].lower()}", summary if row % 3 else summary[:30] + ".")
        mean = MEANS["rouge_l"][system]
        samples.append(
            Sample(
                row_id=f"held_out.jsonl:{row + 1}",
                prompt=prompt,
                reference=summary,
                output=outputs[system],
                num_new_tokens=64 if system == 0 else 14,
                finish_reason="length" if system == 0 and row % 5 == 0 else "stop",
                scores={"rouge_l": min(1.0, max(0.0, chance.gauss(mean, 0.15))), "exact_match": float(row % 9 == 8)},
            )
        )
    return tuple(samples)


def make_evaluation(num_rows: int = 200, **changes: Any) -> Evaluation:
    systems = []
    for place, name in enumerate(SYSTEMS):
        metrics = {}
        for metric, means in MEANS.items():
            width = 0.02 + means[place] * 0.09
            low = max(0.0, means[place] - width)
            metrics[metric] = Metric(
                value=means[place],
                low=low,
                high=means[place] + width,
                unit=UNITS[metric],
                higher_is_better=metric != "perplexity",
            )
        systems.append(
            SystemResult(
                name=name,
                model="smollm2-135m-instruct",
                adapter="/runs/adapter" if place == 2 else None,
                num_few_shot=4 if place == 1 else 0,
                num_samples=num_rows,
                metrics=metrics,
                samples=make_samples(place, num_rows),
                seconds=40.0,
                num_cut_off=num_rows // 5 if place == 0 else 0,
            )
        )
    comparisons = []
    for high, low in ((1, 0), (2, 0), (2, 1)):
        for metric, means in MEANS.items():
            difference = means[high] - means[low]
            bounds = sorted((difference * 0.8, difference * 1.2))
            open_question = metric == "exact_match" and high == 1
            comparisons.append(
                Comparison(
                    baseline=SYSTEMS[low],
                    candidate=SYSTEMS[high],
                    metric=metric,
                    difference=difference,
                    low=-0.005 if open_question else bounds[0],
                    high=0.025 if open_question else bounds[1],
                    p_value=0.31 if open_question else 0.0001,
                    verdict="not distinguishable" if open_question else "better",
                    rows_needed=780 if open_question else None,
                )
            )
    values: dict[str, Any] = {
        "evaluation_id": "eval-20261125-094000-aa11bb",
        "created_at": "2026-11-25T09:43:00+00:00",
        "run_id": "run-20261125-093000-1f2e3d",
        "held_out_file": "/data/python docs/held_out.jsonl",
        "held_out_sha256": DIGEST,
        "num_rows": num_rows,
        "systems": tuple(systems),
        "comparisons": tuple(comparisons),
        "verdict": Verdict(
            word="better",
            metric="rouge_l",
            headline=(
                "The tuned model is better than smollm2-135m-instruct and better than it with 4 examples, by ROUGE-L."
            ),
            details=(
                "Better than smollm2-135m-instruct: ROUGE-L 0.35 against 0.12 "
                f"(+0.23, 95% interval 0.18 to 0.28, p < 0.001; {num_rows} held-out rows).",
                "Better than smollm2-135m-instruct with 4 examples in its prompt: ROUGE-L 0.35 against 0.20 "
                f"(+0.14, 95% interval 0.11 to 0.17, p < 0.001; {num_rows} held-out rows).",
                "BLEU, exact match and perplexity say the same.",
            ),
            num_primary_details=2,
            caveats=(
                "40 answers of the base model were cut off at 64 new tokens.",
                "Four metrics were looked at; the verdict rests on ROUGE-L alone.",
            ),
        ),
        "seconds": 121.0,
    }
    return Evaluation(**{**values, **changes})


def make_documents() -> Documents:
    question = "Write the summary line of this function's docstring.\n\ndef dedent(text):\n    ..."
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n"
    example = (
        (prompt, False),
        ("<|im_start|>assistant\n", False),
        ("Remove any common ", True),
        ("leading whitespace from every line in text.", True),
        ("<|im_end|>\n", True),
    )
    return Documents(
        record=make_record(),
        plan=make_plan(),
        events=make_events(),
        evaluation=make_evaluation(),
        versions=VERSIONS,
        example=example,
    )


@pytest.fixture
def documents() -> Documents:
    """A run that ended well and was evaluated."""
    return make_documents()


@pytest.fixture
def evaluation_of() -> Callable[..., Evaluation]:
    """Makes evaluations of a given size."""
    return make_evaluation


@pytest.fixture
def record_of() -> Callable[..., RunRecord]:
    """Makes records that differ in the given fields."""
    return make_record


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    """Makes plans with or without validation and held-out rows."""
    return make_plan


@pytest.fixture
def events_of() -> Callable[..., tuple[Event, ...]]:
    """Makes the events of a run that took so many steps."""
    return make_events
