"""The default learning rate."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import NotFoundError
from luthier.ml.planning.learning_rates import NARROWEST, default_rate
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.objectives.rules import RULES as OBJECTIVES


@pytest.mark.parametrize(
    ("method", "hidden_size", "rate"),
    [
        ("lora", 576, 1.3e-3),  # SmolLM2-135M
        ("lora", 2048, 4.9e-4),
        ("lora", 4096, 2.9e-4),  # Llama 8B
        ("lora", 8192, 1.7e-4),  # Llama 70B
        ("full", 4096, 2.9e-5),
        ("full", 576, 1.3e-4),
        ("prompt_tuning", 576, 1e-2),
        ("prompt_tuning", 8192, 1e-2),
    ],
)
def test_what_moves_matrices_learns_slower_the_wider_the_model(method: str, hidden_size: int, rate: float) -> None:
    assert default_rate(method, "sft", hidden_size)[0] == pytest.approx(rate)


def test_a_model_narrower_than_any_that_was_measured_takes_no_more() -> None:
    for method in nonempty(METHODS):
        assert default_rate(method, "sft", 8)[0] == default_rate(method, "sft", NARROWEST)[0]


def test_the_reason_names_width_and_factor() -> None:
    assert "0.0005 at a width of 2,000, times 0.57 at 4,096" in default_rate("lora", "sft", 4096)[1]
    assert "width" not in default_rate("ia3", "sft", 4096)[1]


def test_objective_and_optimizer_count_on_top() -> None:
    assert default_rate("lora", "dpo", 576)[0] == pytest.approx(1.3e-4)
    assert default_rate("lora", "grpo", 576)[0] == pytest.approx(2.6e-4)
    assert default_rate("full", "sft", 576, "muon")[0] == pytest.approx(6.5e-4)
    for method in nonempty(METHODS):
        for objective in nonempty(OBJECTIVES):
            assert 0 < default_rate(method, objective, 576)[0] < 0.1


def test_a_method_that_nobody_knows_is_named() -> None:
    with pytest.raises(NotFoundError, match="method 'lorra'"):
        default_rate("lorra", "sft", 576)
