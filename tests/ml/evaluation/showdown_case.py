"""A showdown of two models as it might come out, made of figures that a test chooses."""

from __future__ import annotations

from luthier.core.estimate import Estimate
from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult
from luthier.core.workflows.pipeline import (
    Contender,
    ModelComparisonResult,
    ModelComparisonSpec,
    Standing,
    Tuning,
)
from luthier.ml.evaluation.workflow_verdicts import not_equal, recommend

KINDS = ("zero-shot", "few-shot", "tuned")


def contender(label, **changed):
    usual = {
        "label": label,
        "model": label,
        "licence": "Apache-2.0",
        "num_parameters": 135_000_000,
        "context_length_tokens": 8192,
        "vocabulary_size": 49152,
        "has_chat_template": True,
        "weights_bytes": 540_000_000,
        "learning_rate": 2e-4,
        "batch_size": 16,
        "num_steps": 20,
        "num_tokens": 30_000,
        "training_hours": Estimate(value=0.2, low=0.15, high=0.3),
        "judging_seconds": {"zero-shot": 0.5, "few-shot": 0.8},
        "loading_seconds": 2.0,
    }
    return Contender(**(usual | changed))


def spec(**changed):
    usual = {
        "contenders": (contender("small"), contender("large", num_parameters=270_000_000, learning_rate=1e-4)),
        "data": "/rows/train.jsonl",
        "held_out": "/rows/test.jsonl",
        "train_file": "/home/train.jsonl",
        "judged_file": "/home/judged.jsonl",
        "num_rows": 320,
        "num_rows_in_file": 1000,
        "num_examples": 320,
        "num_judged": 100,
        "num_held_out": 400,
        "num_too_long": 0,
        "few_shot": 4,
        "instruction": "Answer with one SQL query.",
        "metrics": ("rouge", "bits_per_byte"),
        "primary": "rouge_l",
        "max_new_tokens": 64,
        "method": "lora",
        "seed": 0,
        "hours": 1.0,
        "sizing_hours": 0.02,
        "planned_hours": Estimate(value=0.8, low=0.6, high=1.1),
        "usd_per_hour": Estimate(value=0.1, low=0.05, high=0.2),
    }
    return ModelComparisonSpec(**(usual | changed))


def metric(value, *, unit="fraction", higher=True):
    return Metric(value=value, low=value - 0.04, high=value + 0.04, unit=unit, higher_is_better=higher)


def baseline(name, kind, rouge):
    """A system without a language model; rouge None: it has no such figure."""
    metrics = {} if rouge is None else {"rouge_l": metric(rouge)}
    return SystemResult(name=name, kind=kind, model="", num_samples=100, metrics=metrics, seconds=0.7)


def showdown(rouge, seconds, *, p_value=0.001, given=None, reasons=("", ""), baselines=()):
    """rouge, seconds: of small and large, each as it is, with examples, and tuned; None leaves a system out.

    p_value: of every difference of more than 0.05; smaller ones are not distinguishable. baselines: without a model.
    """
    given = given or spec()
    standings = []
    for place, kind in enumerate(KINDS):
        for number, one in enumerate(given.contenders):
            if rouge[number][place] is None:
                continue
            name = one.label + {"zero-shot": "", "few-shot": " + 4 examples", "tuned": " tuned"}[kind]
            sample = Sample(
                row_id="test.jsonl:1",
                prompt="Q: how many <b>instruments</b> are there?",
                reference="SELECT COUNT(*) FROM instruments",
                output=f"SELECT {place} FROM instruments",
                num_new_tokens=7,
                finish_reason="stop",
            )
            loss = metric(1 - rouge[number][place] / 2, unit="bits/byte", higher=False)
            result = SystemResult(
                name=name,
                model=one.model,
                adapter="/adapter" if kind == "tuned" else None,
                num_few_shot=4 if kind == "few-shot" else 0,
                num_samples=100,
                metrics={"rouge_l": metric(rouge[number][place]), "bits_per_byte": loss},
                samples=(sample,),
                seconds=50.0,
                num_cut_off=3,
            )
            took = seconds[number][place]
            usd = given.usd_per_hour.times(took * 1000 / 3600)
            standings.append(
                Standing(contender=number, kind=kind, result=result, seconds_per_answer=took, usd_per_1000_answers=usd)
            )
    comparisons = [
        compared(earlier.result, later.result, name, p_value)
        for place, later in enumerate(standings)
        for earlier in standings[:place]
        for name in ("rouge_l", "bits_per_byte")
    ]
    comparisons += [
        compared(one, later.result, name, p_value) for later in standings for one in baselines for name in one.metrics
    ]
    tunings = tuple(
        Tuning(contender=n, run_id=f"run-20261126-000000-00000{n}", hours=0.21, peak_memory_bytes=2 * 10**9, reason=why)
        for n, why in zip(range(len(given.contenders)), reasons, strict=False)
    )
    return ModelComparisonResult(
        showdown_id="showdown-20261126-000000-000000",
        created_at="2026-11-26T12:00:00+00:00",
        spec=given,
        standings=tuple(standings),
        tunings=tunings,
        baselines=tuple(one.model_copy(update={"samples": standings[0].result.samples}) for one in baselines),
        baselines_left_out=("copy rules: the answers repeat, as labels do",) if baselines else (),
        comparisons=tuple(comparisons),
        recommendation=recommend(given, standings, tunings, comparisons, baselines),
        not_equal=not_equal(given.contenders, standings, given.few_shot),
        hours=0.83,
    )


def compared(earlier, later, name, p_value):
    own, other = later.metrics[name], earlier.metrics[name]
    difference = own.value - other.value
    settled = abs(difference) > 0.05 if name == "rouge_l" else abs(difference) > 0.025
    better = (difference > 0) == own.higher_is_better
    return Comparison(
        baseline=earlier.name,
        candidate=later.name,
        metric=name,
        difference=difference,
        low=difference - 0.05,
        high=difference + 0.05,
        p_value=p_value if settled else 0.4,
        verdict=("better" if better else "worse") if settled else "not distinguishable",
        rows_needed=None if settled else 900,
    )
