"""What an average of the weights takes, and what it refuses."""

from __future__ import annotations

import pytest

from luthier.core.errors import RecipeError
from luthier.core.plan import AveragePlan
from luthier.core.recipe import AverageRecipe
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.resolve_optimizer import resolve_average


def resolved(num_steps: int, method: str = "lora", **asked: object) -> AveragePlan | None:
    return resolve_average(AverageRecipe.model_validate(asked), method, num_steps, Provenance())


def test_silence_averages_nothing() -> None:
    sources = Provenance()
    assert resolve_average(None, "lora", 100, sources) is None
    assert sources.found["training.average"].source == "default"


@pytest.mark.parametrize(("num_steps", "decay"), [(10, 0.5), (100, 0.9), (1000, 0.99), (1_000_000, 0.999)])
def test_an_ema_looks_back_over_a_tenth_of_the_run(num_steps: int, decay: float) -> None:
    found = resolved(num_steps, kind="ema")
    assert found is not None
    assert found.decay == pytest.approx(decay)


def test_a_uniform_average_goes_over_the_last_quarter() -> None:
    assert resolved(100, kind="uniform") == AveragePlan(kind="uniform", from_step=76, every_steps=1)
    assert resolved(1, kind="uniform") == AveragePlan(kind="uniform", from_step=1, every_steps=1)
    assert resolved(100, kind="uniform", from_step=50, every_steps=10) == AveragePlan(
        kind="uniform", from_step=50, every_steps=10
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "ema", "from_step": 3}, "ema with from_step"),
        ({"kind": "uniform", "decay": 0.9}, "uniform with decay"),
        ({"kind": "uniform", "from_step": 101}, "from step 101 of 100"),
    ],
)
def test_what_would_be_ignored_or_never_begin_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolved(100, **asked)


def test_ranks_that_are_switched_off_cannot_be_averaged() -> None:
    with pytest.raises(RecipeError, match="adalora"):
        resolved(100, method="adalora", kind="ema")
