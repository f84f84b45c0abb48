"""Several updates with the answers of a step, compared with a loop over the definition: the clipped ratio of PPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.ml.training.conftest import FixedSchedule
from tests.ml.training.objectives.test_grpo import by_ids, plain_logarithms
from tests.vacuous import nonempty
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.core.events import StepDone
from luthier.core.graders import Reward
from luthier.core.plan import ObjectivePlan, Plan
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.checkpoint import LoopState
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objective_protocol import Tools
from luthier.ml.training.objectives.grpo import Grpo
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.step import one_step

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
KL = 0.1
LOW, HIGH = 0.05, 0.1


class Stepped(NamedTuple):
    """A step of the code under test."""

    model: TrainableModel
    objective: Grpo
    event: StepDone
    before: LoopState
    after: LoopState
    optimizer: MasterOptimizer


@pytest.fixture
def stepped(
    make_plan: MakePlan,
    make_model: MakeModel,
    tiny_model: Path,
    examples: list[TokenisedExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Stepped]:
    """The first step of a run, with updates as given."""

    def make(num_iterations: int, weighting: str = "token", broken_at: int = 0) -> Stepped:
        objective_plan = ObjectivePlan(
            name="grpo",
            rewards=(Reward(metric="token_f1"),),
            num_samples=4,
            num_iterations=num_iterations,
            clip_ratio_low=LOW if num_iterations > 1 else None,
            clip_ratio_high=HIGH if num_iterations > 1 else None,
            temperature=0.8,
            max_new_tokens=9,
            kl_weight=KL,
            divide_by_spread=True,
            loss_weighting=weighting,
        )
        plan = make_plan("lora", learning_rate=0.02).model_copy(update={"objective": objective_plan})
        model = make_model(plan, torch.float64)
        model._shared_prefix = False  # as the reference: rotary angles depend on the shape of a row
        optimizer = MasterOptimizer(model.module, plan.training, model.method.rate_factor, model.method.decays)
        if broken_at:
            norms = iter(math.nan if number == broken_at else 1.0 for number in range(1, num_iterations + 1))
            monkeypatch.setattr(optimizer, "gradient_norm", lambda: next(norms))
        units = [(row,) for row in examples[:4]]
        objective = Grpo(plan.objective, Tools(ChatTemplate.load(tiny_model), by_ids, 5))
        objective.prepare(model, units, tmp_path, SilentProgress())
        state = LoopState(plan_hash=plan.hash, early_stopping=EarlyStopping(patience=0))
        after, event = one_step(plan, model, objective, optimizer, units, FixedSchedule(4, 4, 2), state)
        return Stepped(model, objective, event, state, after, optimizer)

    return make


def reference(model: TrainableModel, given: Stepped, num_updates: int) -> dict[str, Any]:
    """The updates by the definition: each answer by itself through transformers, and torch's AdamW."""
    answers, weighting = list(given.objective.drawn.answers.values()), given.objective.plan.loss_weighting
    trained = [p for p in model.module.parameters() if p.requires_grad]
    rule = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.0)
    with torch.no_grad():
        old = [plain_logarithms(model, answer.row) for answer in answers]
    losses, norms, num_clipped, num_tokens = list[float](), list[float](), 0, 0
    for _ in range(num_updates):
        terms = list[Tensor]()
        for answer, before in zip(answers, old, strict=True):
            new = plain_logarithms(model, answer.row)
            ratio, advantage = torch.exp(new - before), answer.advantage
            limited = torch.clamp(ratio, 1 - LOW, 1 + HIGH)
            # The smaller of the two gains; `before` is the reference of the divergence, too: it is the first step.
            terms.append(-torch.min(ratio * advantage, limited * advantage))
            terms[-1] = terms[-1] + KL * (torch.exp(before - new) - (before - new) - 1)
            moved = ratio > 1 + HIGH if advantage > 0 else ratio < 1 - LOW
            num_clipped += int(moved.sum()) if advantage else 0
            num_tokens += len(new)
        means = torch.stack([one.mean() for one in terms])
        loss = means.mean() if weighting == "sample" else torch.cat(terms).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        rule.step()
        rule.zero_grad()
    return {
        "weights": {name: p.detach() for name, p in model.module.named_parameters() if p.requires_grad},
        "loss": sum(losses) / num_updates,
        "norm": max(norms),
        "clipped": num_clipped / num_tokens,
        "num_tokens": num_tokens,
    }


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_weights_and_figures_are_those_of_the_definition(
    stepped: Callable[..., Stepped], make_plan: MakePlan, make_model: MakeModel, weighting: str
) -> None:
    found = stepped(4, weighting)
    wanted = reference(make_model(make_plan("lora"), torch.float64), found, 4)
    assert found.event.loss == pytest.approx(wanted["loss"], rel=1e-6)
    assert found.event.gradient_norm == pytest.approx(wanted["norm"], rel=1e-6)
    assert found.event.measures["clipped_fraction"] == pytest.approx(wanted["clipped"])
    assert 0.02 < wanted["clipped"] < 0.9  # both sides of the limits are met
    assert found.event.num_trained_tokens == wanted["num_tokens"]
    assert found.event.measures["sampling_gap"] < 1e-5  # of before the first update
    weights = dict(found.model.module.named_parameters())
    for name, wanted_weight in wanted["weights"].items():
        torch.testing.assert_close(weights[name].detach(), wanted_weight, rtol=1e-6, atol=1e-8)
    state = found.after
    assert (state.step, state.num_examples) == (1, 4)  # a step, and its prompts, are counted once
    assert state.loss_sum / state.loss_weight == pytest.approx(found.event.loss)


def test_several_updates_end_elsewhere_than_one(stepped: Callable[..., Stepped]) -> None:
    one, four = stepped(1), stepped(4)
    assert "clipped_fraction" not in one.event.measures
    assert one.event.measures["reward"] == pytest.approx(four.event.measures["reward"])
    assert four.event.num_tokens == 4 * one.event.num_tokens
    pairs = zip(one.model.module.parameters(), four.model.module.parameters(), strict=True)
    assert any(float((a.detach() - b.detach()).abs().max()) > 0.01 for a, b in pairs)


def test_a_step_that_breaks_in_its_second_update_is_no_step(stepped: Callable[..., Stepped]) -> None:
    found = stepped(4, broken_at=2)
    assert found.after is found.before
    assert math.isnan(found.event.gradient_norm)
    assert all(nonempty(bool(p.isfinite().all()) for p in found.model.module.parameters()))
    assert found.optimizer.rule.num_steps == 1  # type: ignore[attr-defined]


def test_a_plan_of_one_update_keeps_the_hash_that_it_had_before_there_were_several(make_plan: MakePlan) -> None:
    def hash_of(**more: Any) -> str:
        objective = ObjectivePlan(name="grpo", num_samples=4, max_new_tokens=8, **more)
        return make_plan("lora").model_copy(update={"objective": objective}).hash

    assert hash_of(num_iterations=1) == hash_of()
    assert hash_of(num_iterations=2) != hash_of()
