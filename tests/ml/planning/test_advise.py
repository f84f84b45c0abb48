"""Advice: the method that rows, memory and budget speak for, and why."""

from __future__ import annotations

from typing import Any

import pytest
from tests.ml.planning.test_budget import device
from tests.vacuous import nonempty

from luthier.core.estimate import Estimate
from luthier.core.recipe import BudgetRecipe
from luthier.core.records.advice import Advice
from luthier.core.results.cost import MemoryPrediction, Option, Prediction
from luthier.ml.planning.fit import METHOD_TITLES, DataFacts, advise


def option(method: Any, *, fits: bool = True, hours: float = 1.0, gib: float = 1.0, needs: str = "") -> Option:
    def spread(value: float) -> Estimate:
        return Estimate(value=value, low=value / 2, high=value * 2)

    memory = MemoryPrediction(
        weights_bytes=gib * 2**30, adapters_bytes=0, gradients_bytes=0, optimizer_bytes=0, activations_bytes=0,
        logits_bytes=0, generation_bytes=0, runtime_bytes=0, total_bytes=spread(gib * 2**30),
    )  # fmt: skip
    made = Prediction(
        device=device(), step_seconds=spread(1.0), num_steps=10, hours=spread(hours), peak_memory=memory, fits=fits,
        usd=spread(hours * 0.2), energy_kwh=None, calibrated=False, flops_per_step=1.0, tokens_per_second=spread(1.0),
    )  # fmt: skip
    return Option(method=METHOD_TITLES[method], device="cpu", fits=fits, needs=needs, prediction=made)


def facts(**changes: Any) -> DataFacts:
    values: dict[str, Any] = {
        "num_examples": 5000,
        "num_learned_tokens": 100_000,
        "num_steps": 300,
        "parameters_per_rank": 100_000,
        "largest_rank": 192,
        "asked_rank": None,
        "asked_method": None,
    }
    return DataFacts(**(values | changes))


ALL = ("full", "lora", "adalora", "qlora")


def advised(*, without: tuple[str, ...] = (), budget: BudgetRecipe | None = None, **changes: Any) -> Advice:
    options = [option(m, fits=m not in without, hours={"full": 2.0, "qlora": 3.0}.get(m, 1.0)) for m in ALL]
    return advise(options, facts(**changes), budget)


def test_a_usual_task_takes_lora_with_the_usual_rank() -> None:
    advice = advised()
    assert (advice.method, advice.rank) == ("lora", 16)
    assert advice.headline == "LoRA with rank 16"
    assert advice.ask == "--set method.name=lora"
    assert "fit into an adapter of rank 16 (1,600,000 parameters)" in advice.reasons[0]
    assert {m.method: m.word for m in advice.methods} == {
        "full": "possible", "lora": "recommended", "adalora": "possible", "qlora": "possible",
    }  # fmt: skip


@pytest.mark.parametrize(("tokens", "rank"), [(1_600_000, 16), (1_600_001, 32), (6_000_000, 64), (12_800_000, 128)])
def test_the_rank_grows_until_there_is_a_parameter_for_each_learned_token(tokens: int, rank: int) -> None:
    advice = advised(num_learned_tokens=tokens, asked_method="lora")
    assert (advice.method, advice.rank) == ("lora", rank)
    assert advice.ask == ("" if rank == 16 else f"--set method.rank={rank}")


def test_more_than_an_adapter_holds_takes_full_fine_tuning() -> None:
    advice = advised(num_learned_tokens=50_000_000)
    assert (advice.method, advice.rank) == ("full", None)
    assert "more than an adapter of rank 192 has parameters (19,200,000)" in advice.reasons[0]
    assert advice.ask == "--set method.name=full"


def test_where_full_fine_tuning_does_not_fit_the_largest_adapter_is_taken_and_the_loss_is_said() -> None:
    advice = advised(num_learned_tokens=50_000_000, without=("full",))
    assert (advice.method, advice.rank) == ("lora", 192)
    assert any("full fine-tuning would learn more, but" in reason for reason in advice.reasons)


def test_few_rows_are_a_reason_against_full_fine_tuning() -> None:
    assert any("memorises" in reason for reason in advised(num_examples=999).reasons)
    assert not any("memorises" in reason for reason in advised(num_examples=1000).reasons)
    assert not any("memorises" in reason for reason in advised(num_examples=999, without=("full",)).reasons)


def test_qlora_is_the_way_out_where_lora_does_not_fit() -> None:
    advice = advised(without=("full", "lora", "adalora"))
    assert advice.method == "qlora"
    assert any("4-bit" in reason for reason in advice.reasons)
    assert {m.method: m.word for m in advice.methods}["lora"] == "does not fit"


def test_what_makes_lora_fit_is_preferred_to_a_coarser_base() -> None:
    options = [option("full", fits=False), option("lora", needs="smaller micro-batches"), option("qlora")]
    advice = advise(options, facts())
    assert advice.method == "lora"
    assert any("LoRA needs smaller micro-batches to fit" in reason for reason in advice.reasons)


def test_adalora_only_for_small_ranks_and_many_steps() -> None:
    assert advised(asked_rank=4, num_steps=1000).method == "adalora"
    assert advised(asked_rank=4, num_steps=1000).rank == 4
    assert advised(asked_rank=4, num_steps=999).method == "lora"
    assert advised(asked_rank=16, num_steps=5000).method == "lora"
    assert advised(asked_rank=4, num_steps=5000, without=("adalora",)).method == "lora"
    assert advised(asked_rank=4, num_steps=5000, num_learned_tokens=400_001).method == "lora", "too much for rank 4"


def test_a_method_over_the_budget_is_not_recommended() -> None:
    advice = advised(num_learned_tokens=50_000_000, budget=BudgetRecipe(hours=1.5))
    assert advice.method == "lora"
    full = next(m for m in advice.methods if m.method == "full")
    assert full.word == "over the budget"
    assert full.why == "about 2 h [1, 4] against a cap of 1.5"
    lora = next(m for m in advice.methods if m.method == "lora")
    assert "a cap may stop it before its end" in lora.why


def test_a_budget_that_nothing_keeps_to_is_said_with_what_the_least_takes() -> None:
    advice = advised(budget=BudgetRecipe(usd=0.1))
    assert (advice.method, advice.rank, advice.ask) == (None, None, "")
    assert "no method fits the budget: the quickest, LoRA, should take 1 h [0.5, 2]" in advice.headline


def test_a_device_that_holds_nothing_is_said() -> None:
    advice = advised(without=ALL)
    assert advice.method is None
    assert advice.headline.startswith("no method fits on this device")
    assert all(nonempty("GiB" in m.why for m in advice.methods))
