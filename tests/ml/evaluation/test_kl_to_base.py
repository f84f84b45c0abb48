"""KL(tuned || base) over the tokens of answers, against the logits of the whole models."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import kl_div

from luthier.core.dataset import TokenisedExample
from luthier.core.ports import SilentProgress
from luthier.ml.evaluation import kl_to_base
from luthier.ml.evaluation.kl_to_base import AnswerStates, answer_states, kl_by_row, kl_result, rows_that_fit
from luthier.ml.inference.models.forward import ScaledHead
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.transformers_engine import TransformersEngine

ROWS = [
    TokenisedExample("r:1", array("i", [5, 6, 7, 8, 9]), bytes([0, 0, 1, 1, 1])),
    TokenisedExample("r:2", array("i", [5, 6, 11, 4]), bytes([0, 1, 0, 1])),
    TokenisedExample("r:3", array("i", [9, 3, 12, 13, 14, 15]), bytes([0, 0, 0, 0, 0, 1])),
]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(
            load_model(tiny_model, dtype="float32", attention="sdpa"),
            LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def states(engine: TransformersEngine) -> AnswerStates:
    with SilentProgress().task("rows", 3, "rows") as task:
        return answer_states(engine, ROWS, task)


@torch.no_grad()
def logits_at_answers(engine: TransformersEngine, row: TokenisedExample) -> Tensor:
    places = torch.tensor([place - 1 for place, learned in enumerate(row.loss_mask) if learned])
    logits: Tensor = engine.causal(input_ids=torch.tensor([list(row.input_ids)])).logits[0, places]
    return logits.double().log_softmax(-1)


def test_it_is_that_of_the_whole_models_logits(
    tiny_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = TransformersEngine.open(str(tiny_model), dtype="float32")
    tuned = TransformersEngine.open(str(tiny_model), dtype="float32", adapter_path=str(adapter))
    wanted = [
        float(kl_div(logits_at_answers(base, row), logits_at_answers(tuned, row), log_target=True, reduction="sum"))
        for row in ROWS
    ]
    assert min(wanted) > 1e-3
    assert kl_by_row(states(tuned), states(base), "cpu") == pytest.approx(wanted, rel=1e-3)
    monkeypatch.setattr(kl_to_base, "CHUNK_TOKENS", 2)
    monkeypatch.setattr(kl_to_base, "_HEAD_ROWS", 7)
    assert kl_by_row(states(tuned), states(base), "cpu") == pytest.approx(wanted, rel=1e-3)
    assert kl_by_row(states(base), states(base), "cpu") == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_a_scale_and_a_cap_on_the_logits_count() -> None:
    draw = torch.Generator().manual_seed(0)
    head, one, other = (torch.randn(size, 8, generator=draw) for size in (20, 3, 3))
    scaled = ScaledHead(scale=0.5, cap=2.0)
    found = kl_by_row(AnswerStates([one], head, scaled), AnswerStates([other], head, scaled), "cpu")
    p, q = ((2.0 * ((states @ head.t()) * 0.5 / 2.0).tanh()).log_softmax(1) for states in (one, other))
    assert found == pytest.approx([float((p.exp() * (p - q)).sum())], rel=1e-5)


def test_the_figure_is_the_mean_over_tokens_with_an_interval_over_rows() -> None:
    found = kl_result([0.3, 0.1, 0.2], ROWS, tuned="tuned", base="base", of=3)
    assert found.value == pytest.approx(0.6 / 6)
    assert 0 <= found.low < found.value < found.high
    assert (found.num_rows, found.num_tokens) == (3, 6)
    assert "KL(tuned || base) at 6 tokens of the answers of 3 rows" in found.sentence
    assert "of 3 of 9 rows" in kl_result([0.3, 0.1, 0.2], ROWS, tuned="tuned", base="base", of=9).sentence


def test_of_more_rows_than_fit_equally_spaced_ones_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = TokenisedExample("r:4", array("i", [5, 6]), bytes([0, 0]))
    assert rows_that_fit([*ROWS, silent], 64, 4) == [0, 1, 2]
    monkeypatch.setattr(kl_to_base, "MAX_STATE_BYTES", 3 * 64 * 4)
    assert rows_that_fit([*ROWS, silent], 64, 4) == [0, 2]


def test_rows_of_one_group_count_together_in_the_interval() -> None:
    """Eight groups of ten equal rows know as much as eight rows."""
    rows = [TokenisedExample(f"r:{at}", array("i", [5, 6, 7]), bytes([0, 1, 1])) for at in range(80)]
    sums = [0.1 * (1 + at // 10) for at in range(80)]
    by_row = kl_result(sums, rows, tuned="tuned", base="base", of=80)
    by_group = kl_result(sums, rows, tuned="tuned", base="base", of=80, clusters=[at // 10 for at in range(80)])
    few = kl_result(sums[::10], rows[::10], tuned="tuned", base="base", of=80)
    assert by_group.value == pytest.approx(by_row.value)
    assert by_group.high - by_group.low > 2 * (by_row.high - by_row.low)
    assert (by_group.low, by_group.high) == pytest.approx((few.low, few.high))
