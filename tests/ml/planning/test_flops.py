"""Operations of a step, held against torch's own count of what a model really does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning import step_counts
from luthier.ml.planning.workload import Workload
from luthier.ml.training.model import MicroBatch, TrainableModel

Make = Callable[..., Any]
aten = torch.ops.aten


def _addmm_in_place(_out: Any, a: Any, b: Any, **_: Any) -> int:
    return flop_counter.mm_flop(a, b)


def _flash(query: Any, key: Any, value: Any, _dropout: float = 0.0, is_causal: bool = False, **_: Any) -> int:
    # pairs ahead are skipped
    return flop_counter.sdpa_flop_count(query, key, value) // (2 if is_causal else 1)


def _flash_backward(
    out: Any, query: Any, key: Any, value: Any, _o: Any, _l: Any, _p: float = 0.0, is_causal: bool = False, **_: Any
) -> int:
    return flop_counter.sdpa_backward_flop_count(out, query, key, value) // (2 if is_causal else 1)


# Kinds of products that torch's counter does not know.
_MORE = {
    aten.addmm_: _addmm_in_place,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}


def counted_flops(model: TrainableModel, rows: int, length: int, learned: float) -> int:
    """What one micro-batch takes, there and back."""
    ids, num = torch.ones(rows, length, dtype=torch.int64), int(rows * length * learned)
    batch = MicroBatch(ids, torch.arange(num), ids.flatten()[:num], (num,), rows * length)
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
        loss, _ = model.loss_sum(batch)
        loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("name", "rows", "length"),
    [
        ("llama", 2, 48),
        ("llama_untied", 1, 600),
        ("gemma3", 2, 48),
        ("gemma3", 1, 600),
        ("qwen3", 2, 48),
        ("phi3", 2, 48),
        ("mixtral", 2, 48),
        ("qwen3_moe", 2, 48),
    ],
)
def test_a_step_has_the_operations_that_torch_counts(
    name: str,
    rows: int,
    length: int,
    method: str,
    recompute: bool,
    architecture: Make,
    make_workload: Make,
    make_model: Make,
) -> None:
    # torch's counter does not know grouped products: experts one by one
    eager = {"experts_implementation": "eager"} if name in ("mixtral", "qwen3_moe") else {}
    config = architecture(name, **eager)
    work: Workload = make_workload(
        structure_of(config), method, rows=rows, length=length, gradient_checkpointing=recompute
    )
    counted = counted_flops(make_model(config, work), rows, length, 0.5)
    assert step_counts.step_flops(work).total == pytest.approx(counted, rel=0.002)


def test_operations_grow_with_rows_and_not_with_how_they_are_cut(architecture: Make, make_workload: Make) -> None:
    structure = structure_of(architecture("llama"))
    one, two = (step_counts.step_flops(make_workload(structure, rows=rows)).total for rows in (4, 8))
    assert two == pytest.approx(2 * one)
    cut = make_workload(structure, rows=8)
    cut = replace(cut, batches=replace(cut.batches, num_micro_batches=4.0, peak_rows=2))
    assert step_counts.step_flops(cut).total == pytest.approx(two)


def test_a_window_saves_what_lies_outside_of_it(architecture: Make, make_workload: Make) -> None:
    structure = structure_of(architecture("gemma3"))
    assert (structure.sliding_window, structure.num_windowed_layers) == (32, 3)
    work = make_workload(structure, length=600, attention="flash")
    # of row t (counted from 1) min(t, 32) pairs
    pairs = sum(min(t, 32) for t in range(1, 601)) / 600
    by_hand = 3 * 4 * (4 * 16) * pairs * 3.5
    assert step_counts.attention_flops(work, 600) == pytest.approx(by_hand, rel=0.04)
    no_window = replace(structure, sliding_window=None, num_windowed_layers=0)
    assert step_counts.attention_flops(replace(work, structure=no_window), 600) > 4 * by_hand


def test_validation_takes_the_forward_pass_alone(architecture: Make, make_workload: Make) -> None:
    work = make_workload(structure_of(architecture("llama")), "full", num_validation_tokens=192.0)
    step = step_counts.step_flops(work)
    assert step_counts.validation_flops(work) == pytest.approx((step.total - step.attention) / 3)
