"""What a task head costs: no logits, no answers to write, one pass over each prompt that is evaluated."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.ml.planning.shapes import accelerator, judging, run_of
from tests.ml.planning.test_activations import Living

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan, OptimizerPlan
from luthier.core.results.cost import Device
from luthier.core.task_head import TaskHead
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning import speed, step_counts
from luthier.ml.planning.batch_shapes import batches_of
from luthier.ml.planning.memory import predict_memory
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objective_protocol import Unit, rows_of
from luthier.ml.training.objectives.embedding import Embedding
from luthier.ml.training.objectives.heads import Classify, HeadObjective, Ranking, Regress
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.optimizers.rules import RULES

Make = Callable[..., Any]
_OBJECTIVES: dict[str, type[HeadObjective]] = {
    "classify": Classify,
    "regress": Regress,
    "rank": Ranking,
    "embed": Embedding,
}


def test_no_logits_are_formed() -> None:
    writes = run_of(accelerator(80))
    rows = replace(writes.batches, num_learned=16.0)  # a slot a row
    reads = replace(writes, batches=rows, loss="task_head", num_head_outputs=3)
    assert step_counts.logits_bytes(reads) < step_counts.logits_bytes(writes)
    assert step_counts.step_flops(reads).matrices < step_counts.step_flops(writes).matrices
    assert step_counts.validation_flops(reads) <= step_counts.validation_flops(writes)


def test_its_matrix_is_trained_and_counted_whatever_the_method() -> None:
    run = run_of(accelerator(80))
    for changes in ({}, {"trainable": 1000}, {"method": "full", "rank": 0, "targets": ()}):
        plain = replace(run, **changes)
        headed = replace(plain, loss="task_head", num_head_outputs=5000)
        assert headed.num_trainable - plain.num_trainable == 5000 * (run.structure.hidden_size + 1)


def test_many_classes_take_memory() -> None:
    run = replace(run_of(accelerator(80)), loss="task_head", num_head_outputs=3)
    assert step_counts.logits_bytes(replace(run, num_head_outputs=100_000)) > step_counts.logits_bytes(run)


def test_judging_a_head_takes_a_fraction_of_judging_what_writes() -> None:
    device = accelerator(80)
    alone = judging(systems=(False, True), scores=False)
    head = judging(systems=(False,), scores=False, num_read=100)
    assert head.num_scored_tokens == 100 * 40.0
    run = run_of(device)
    step = speed.step_seconds(run, device)
    written, read = (speed.judging_seconds(replace(run, judging=one), device, step) for one in (alone, head))
    assert read.value < written.value


def _units(kind: str, num: int, length: int) -> list[Unit]:
    """Units of a head's rows; the queries of embeddings are a third as long as their documents."""

    def row(place: int, tokens: int) -> TokenisedExample:
        mask = bytes([0]) + b"\1" * (tokens - 1) if kind == "embed" else bytes(tokens - 1) + b"\1"
        ids = array("i", [(7 * place + i) % 200 + 1 for i in range(tokens)])
        return TokenisedExample(f"row:{place}", ids, mask, target=(float(place % 3),))

    if kind in ("classify", "regress"):
        return [(row(place, length),) for place in range(num)]
    first = length // 3 if kind == "embed" else length
    return [(row(2 * place, first), row(2 * place + 1, length)) for place in range(num // 2)]


def _lived_bytes(model: TrainableModel, objective: HeadObjective, units: list[Unit]) -> int:
    """Peak of all tensors but weights and sums of gradients in one micro-batch, there and back."""
    plan = SimpleNamespace(weight_decay=0.0, learning_rate=1e-3, clip_gradient_norm=1.0)
    plan.optimizer = OptimizerPlan.model_validate({"name": "adamw"} | dict(RULES["adamw"].settings))
    MasterOptimizer(model.module, plan)  # type: ignore[arg-type]  # its sums are where gradients of wide weights go
    batch = collate(rows_of(units), model.pad_id, "cpu")
    with Living(model.module) as living:
        (objective.losses(model, units, batch).total / len(units)).backward()
    return living.peak


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", list(_OBJECTIVES))
def test_the_plan_counts_what_lives_at_one_time(
    kind: str,
    method: str,
    precision: str,
    architecture: Make,
    make_workload: Make,
    make_model: Make,
    device: Device,
) -> None:
    config = architecture("llama", vocab_size=2048, num_hidden_layers=5)
    units = _units(kind, 16, 60)
    rows = rows_of(units)
    learned = sum(row.num_trained_tokens for row in rows) / sum(row.num_tokens for row in rows)
    head = TaskHead(kind=kind, width=64, labels=("a", "b", "c"), label_counts=(3, 2, 1))  # type: ignore[arg-type]
    if kind != "classify":
        head = TaskHead(kind=kind, width=64, pooling="mean" if kind == "embed" else "last")  # type: ignore[arg-type]
    work = make_workload(
        structure_of(config),
        method,
        compute=precision,
        base=precision,
        adapters=precision,
        batches=batches_of([[[row.num_tokens for row in rows]]], learned_fraction=learned, apart=kind == "embed"),
        loss="task_head",
        num_head_outputs=head.num_outputs,
    )
    found = predict_memory(work, device)
    counted = found.activations_bytes + found.logits_bytes + found.gradients_bytes - work.num_trainable * 4.0
    plan = ObjectivePlan(name=kind, temperature=0.05, task_head=head)
    lived = _lived_bytes(make_model(config, work, head), _OBJECTIVES[kind](plan), units)
    assert 0.95 * lived < counted < 1.25 * lived
