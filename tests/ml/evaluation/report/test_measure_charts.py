"""Charts of what an objective tells: one each, chosen and rejected together, and nothing of what it does not tell."""

from __future__ import annotations

from luthier.core.events import StepDone, ValidationDone
from luthier.ml.evaluation.report.charts import MAX_POINTS, measure_charts


def step(number: int, **measures: float) -> StepDone:
    return StepDone(
        step=number,
        epoch=0.0,
        loss=1.0,
        learning_rate=1e-4,
        gradient_norm=1.0,
        num_tokens=10,
        num_trained_tokens=5,
        seconds=0.1,
        measures=measures,
    )


def validation(number: int, **measures: float) -> ValidationDone:
    return ValidationDone(step=number, loss=1.0, num_trained_tokens=5, is_best=False, seconds=0.1, measures=measures)


def test_chosen_and_rejected_stand_in_one_chart_with_their_validations() -> None:
    steps = [step(n, chosen_reward=0.1 * n, rejected_reward=-0.2 * n, reward_accuracy=0.5) for n in (1, 2, 3)]
    charts = measure_charts([*steps, validation(3, chosen_reward=0.25, rejected_reward=-0.5)], "dpo")
    assert [chart.title for chart in charts] == ["Rewards", "Reward accuracy, share of examples"]
    assert charts[0].caption == (
        "Chosen from 0.1 to 0.3; chosen, validation from 0.25 to 0.25; rejected from −0.2 to −0.6; "
        "rejected, validation from −0.5 to −0.5."
    )
    assert "chart-reward-accuracy" in charts[1].svg


def test_rounding_beside_larger_values_is_said_to_be_0() -> None:
    (chart,) = measure_charts([step(1, reward_margin=-6.7e-7), step(2, reward_margin=3.5)], "dpo")
    assert chart.caption == "Training from 0 to 3.5."


def test_a_step_that_was_trained_twice_counts_once_and_long_runs_are_thinned() -> None:
    (chart,) = measure_charts([step(1, kl=9.0), step(1, kl=1.0), step(2, kl=2.0)], "kto")
    assert chart.caption == "Training from 1 to 2."
    (chart,) = measure_charts([step(n, kl=2.0 * n) for n in range(3 * MAX_POINTS)], "kto")
    assert chart.caption == f"Training from 2 to {2 * (3 * MAX_POINTS - 2):,}."


def test_objectives_without_such_measures_have_no_charts() -> None:
    assert measure_charts([], "dpo") == []
    assert measure_charts([step(1, token_accuracy=0.5)], "sft") == []
    assert measure_charts([step(1, reward_margin=0.5)], "of_a_package_that_is_gone") == []


def test_a_distillation_shows_both_parts_of_its_loss() -> None:
    steps = [step(n, token_accuracy=0.5, cross_entropy=2.0 / n, divergence=1.0 / n) for n in (1, 2)]
    charts = measure_charts(steps, "distillation")
    assert [(chart.title, chart.caption) for chart in charts] == [
        ("Cross-entropy with the answers, nats a token", "Training from 2 to 1."),
        ("Divergence from the teacher, nats a token", "Training from 1 to 0.5."),
    ]
