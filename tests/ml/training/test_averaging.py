"""Averages of the weights: their values by hand and by torch's own, and a model that gets its weights back."""

from __future__ import annotations

import pytest
import torch
from tests.vacuous import nonempty
from torch import nn
from torch.optim.swa_utils import AveragedModel

from luthier.core.plan import AveragePlan
from luthier.ml.training.optimizer import WeightAverage, all_but_averages, averages_in

EMA = AveragePlan(kind="ema", decay=0.9)


def walk(num: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [{"a": torch.randn(3, 2), "b": torch.randn(4)} for _ in range(num)]


def test_ema_by_hand() -> None:
    average = WeightAverage(AveragePlan(kind="ema", decay=0.3))
    for step, value in enumerate((8.0, 4.0, 2.0), start=1):
        average.after_step(step, {"w": torch.tensor([value])})
    # begins at 8; then it keeps min(0.3, 3/12) = 1/4, then min(0.3, 4/13) = 0.3
    second = 0.25 * 8 + 0.75 * 4
    assert float(average.weights["w"]) == pytest.approx(0.3 * second + 0.7 * 2)


def test_ema_forgets_its_start() -> None:
    average = WeightAverage(AveragePlan(kind="ema", decay=0.999))
    average.after_step(1, {"w": torch.tensor([1000.0])})
    for step in range(2, 200):
        average.after_step(step, {"w": torch.tensor([1.0])})
    assert float(average.weights["w"]) == pytest.approx(1.0, abs=1e-3)


def test_uniform_is_the_mean_of_the_chosen_steps_as_torch_averages_them() -> None:
    steps = walk(11)
    average = WeightAverage(AveragePlan(kind="uniform", from_step=4, every_steps=3))
    for step, weights in nonempty(enumerate(steps, start=1)):
        average.after_step(step, weights)
        assert bool(average.weights) == (step >= 4)
    chosen = [steps[i - 1]["a"] for i in (4, 7, 10)]
    torch.testing.assert_close(average.weights["a"], torch.stack(chosen).mean(0))
    layer = nn.Linear(2, 3, bias=False)
    theirs = AveragedModel(layer)  # stochastic weight averaging of torch itself
    for weight in chosen:
        layer.weight.data.copy_(weight)
        theirs.update_parameters(layer)
    torch.testing.assert_close(average.weights["a"], theirs.module.weight.detach())


def test_a_resumed_average_goes_on_to_the_bit() -> None:
    for plan in (EMA, AveragePlan(kind="uniform", from_step=2, every_steps=2)):
        steps = walk(9)
        whole, first = WeightAverage(plan), WeightAverage(plan)
        for step, weights in enumerate(steps, start=1):
            whole.after_step(step, weights)
            if step <= 5:
                first.after_step(step, weights)
        resumed = WeightAverage(plan)
        resumed.load_state({"rank.x": torch.ones(1)} | first.state(), steps[0])
        for step, weights in enumerate(steps[5:], start=6):
            resumed.after_step(step, weights)
        assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in ("a", "b"))


def test_what_is_averaged_is_not_changed_and_not_shared() -> None:
    weights = {"w": torch.ones(2)}
    average = WeightAverage(EMA)
    average.after_step(1, weights)
    weights["w"].fill_(7.0)
    assert average.weights["w"].tolist() == [1.0, 1.0]
    average.after_step(2, weights)
    assert weights["w"].tolist() == [7.0, 7.0]


def test_the_model_shows_the_average_and_gets_its_weights_back_even_after_an_error() -> None:
    model = nn.Linear(2, 1, bias=False).bfloat16()
    own = model.weight.detach().clone()
    average = WeightAverage(EMA)
    average.after_step(1, {"weight": torch.full((1, 2), 1.0 + 2**-10)})
    with average.shown_in(model):
        assert model.weight.tolist() == [[1.0, 1.0]], "rounded to the model's own precision"
    assert torch.equal(model.weight, own)
    with pytest.raises(KeyError), average.shown_in(model):
        raise KeyError
    assert torch.equal(model.weight, own)


def test_no_plan_holds_nothing() -> None:
    average = WeightAverage(None)
    average.after_step(1, {"w": torch.ones(1)})
    assert average.weights == {}
    assert average.state() == {}


def test_averages_and_the_methods_own_state_part_again() -> None:
    average = WeightAverage(EMA)
    average.after_step(1, {"w": torch.ones(1)})
    both = {"kept.x": torch.zeros(1)} | average.state()
    assert set(averages_in(both)) == {"w"}
    assert set(all_but_averages(both)) == {"kept.x"}
