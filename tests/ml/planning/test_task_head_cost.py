"""What a task head costs: no logits, no answers to write, one pass over each prompt that is evaluated."""

from __future__ import annotations

from dataclasses import replace

from tests.ml.planning.shapes import accelerator, judging, run_of

from luthier.ml.planning import speed, step_counts


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
