"""What the losses of a run are found to say, and whether the advice can be followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.events import Event, StepDone, ValidationDone
from luthier.core.plan import AveragePlan, Plan
from luthier.core.run import Fit
from luthier.features.recipes.service import load_recipe
from luthier.ml.training.fit import diagnose

MakePlan = Callable[..., Plan]


def course(*windows: tuple[float, float], every: int = 10, plain: float | None = None) -> list[Event]:
    """A run of `every` steps a window with that training loss, each ended by a validation with that loss."""
    events: list[Event] = []
    best = float("inf")
    for number, (training, validation) in enumerate(windows):
        for step in range(number * every + 1, (number + 1) * every + 1):
            measures = {} if plain is None else {"plain_loss": training}
            loss = training if plain is None else plain
            event = StepDone(
                step=step, epoch=step / every, loss=loss, learning_rate=1e-3, gradient_norm=1.0,
                num_tokens=10, num_trained_tokens=5, seconds=1.0, measures=measures,
            )  # fmt: skip
            events.append(event)
        check = ValidationDone(
            step=(number + 1) * every, loss=validation, num_trained_tokens=5, is_best=validation < best, seconds=1.0
        )
        events.append(check)
        best = min(best, validation)
    return events


BY_HEART = ((2.0, 2.0), (1.5, 1.8), (1.0, 1.9), (0.5, 2.25))


def test_by_heart_says_since_when_and_by_how_much(make_plan: MakePlan) -> None:
    fit = diagnose(make_plan(num_steps=40, num_steps_per_epoch=10), course(*BY_HEART))
    assert (fit.kind, fit.best_step, fit.last_step) == ("overfitted", 20, 40)
    for figure in ("step 20 (1.800)", "2.250 at step 40", "25.0% more", "from 1.500 to 0.500"):
        assert figure in fit.seen
    first = fit.remedies[0]
    assert first.settings == ("training.max_steps=20",)
    assert "epoch 2" in first.text
    assert "50% of the steps" in first.text


def test_the_training_loss_is_that_without_smoothing(make_plan: MakePlan) -> None:
    assert "from 1.500 to 0.500" in diagnose(make_plan(), course(*BY_HEART, plain=9.0)).seen


@pytest.mark.parametrize(
    ("windows", "kind"),
    [
        (((2.0, 2.0), (1.5, 1.8), (1.2, 1.5)), "still_learning"),
        (((2.0, 2.0), (1.5, 1.8), (1.4, 1.795)), "settled"),
        (((2.0, 2.0), (1.5, 1.8), (1.4, 1.81)), "settled"),
        (((2.0, 2.0), (1.5, 1.8), (1.9, 2.4)), "unstable"),
        (((2.0, 2.0),), "unknown"),
        ((), "unknown"),
    ],
)
def test_kinds(make_plan: MakePlan, windows: tuple[tuple[float, float], ...], kind: str) -> None:
    assert diagnose(make_plan(), course(*windows)).kind == kind


def test_only_what_may_be_kept_is_the_best(make_plan: MakePlan) -> None:
    """AdaLoRA's early validations are no candidates: the loop does not mark them as best."""
    early = [
        event.model_copy(update={"is_best": event.step == 30}) if isinstance(event, ValidationDone) else event
        for event in course((2.0, 1.0), (1.5, 1.5), (1.0, 1.8), (0.5, 2.0))
    ]
    assert diagnose(make_plan(), early).best_step == 30


def test_a_step_that_was_trained_twice_counts_once(make_plan: MakePlan) -> None:
    events = course(*BY_HEART)
    assert diagnose(make_plan(), [*course((9.0, 9.0), (9.0, 9.5)), *events]) == diagnose(make_plan(), events)


def named(fit: Fit) -> str:
    return " ".join(setting for remedy in fit.remedies for setting in remedy.settings)


def test_nothing_is_advised_that_is_in_use_already(make_plan: MakePlan) -> None:
    plan = make_plan(
        dropout=0.3, neftune_alpha=5.0, weight_decay=0.1, average=AveragePlan(kind="ema", decay=0.9),
        early_stopping_patience=3, num_steps=40,
    )  # fmt: skip
    found = named(diagnose(plan, course(*BY_HEART)))
    assert found == "training.max_steps=20 training.learning_rate=0.005"


def test_what_a_method_has_no_place_for_is_not_advised(make_plan: MakePlan) -> None:
    full = named(diagnose(make_plan("full"), course(*BY_HEART)))
    assert "dropout" not in full
    assert "rank" not in full
    adalora = named(diagnose(make_plan("adalora", num_steps=40), course(*BY_HEART)))
    assert "average" not in adalora
    assert "method.rank" not in adalora
    assert "weight_decay" in full
    assert "weight_decay" not in named(diagnose(make_plan("ia3"), course(*BY_HEART)))


def test_a_part_of_the_rows_is_named_before_new_ones(make_plan: MakePlan) -> None:
    plan = make_plan()
    part = plan.model_copy(update={"data": plan.data.model_copy(update={"part": (0.0, 0.25)})})
    assert "this run used 25% of them (24)" in " ".join(r.text for r in diagnose(part, course(*BY_HEART)).remedies)
    texts = " ".join(r.text for r in diagnose(plan, course(*BY_HEART)).remedies)
    assert "these 24, each seen 1 times" in texts


@pytest.mark.parametrize("method", ["lora", "full", "adalora", "prompt_tuning"])
@pytest.mark.parametrize("windows", [BY_HEART, ((2.0, 2.0), (1.5, 1.5)), ((1.0, 1.0), (2.0, 2.0)), ()])
def test_every_setting_can_be_asked_for(
    make_plan: MakePlan, tmp_path: Path, method: str, windows: tuple[tuple[float, float], ...]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    document: dict[str, Any] = {"base_model": "tiny", "data": {"train": "t.jsonl"}, "method": {"name": method}}
    recipe.write_text(yaml.safe_dump(document))
    fit = diagnose(make_plan(method, num_steps=40, schedule="constant", dropout=0.1), course(*windows))
    assert fit.remedies
    for remedy in fit.remedies:
        load_recipe(recipe, remedy.settings)
