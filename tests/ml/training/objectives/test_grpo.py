"""GRPO: losses by the formula, the very model that drew the answers, and nothing where there is nothing to learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.vacuous import nonempty
from torch import Tensor

from luthier.core.data_sources import SourcePlan
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.graders import Reward
from luthier.core.plan import ObjectivePlan, Plan
from luthier.core.ports import Grade, Rollout, SilentProgress
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.checkpoint import LoopState
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objective_protocol import Batch, Tools, rows_of
from luthier.ml.training.objectives.grpo import Answer, Grpo
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.objectives.sampling import prompt_ids
from luthier.ml.training.step import validate

MakePlan = Callable[..., Plan]
MakeModel = Callable[..., TrainableModel]
TEMPERATURE = 0.8


def by_ids(attempts: Sequence[Rollout]) -> list[Grade]:
    """A reward that differs from answer to answer."""
    return [Grade(0.1 * (len(a.text) % 7) + 0.01 * a.num_new_tokens, {"x": 1.0}) for a in attempts]


def alike(attempts: Sequence[Rollout]) -> list[Grade]:
    return [Grade(0.5, {"x": 0.5}) for _ in attempts]


def objective_of(tiny_model: Path, grade: Any = by_ids, seed: int = 5, **settings: Any) -> Grpo:
    plan = ObjectivePlan(
        name="grpo",
        rewards=(Reward(metric="token_f1"),),
        **{
            "num_samples": 4,
            "temperature": TEMPERATURE,
            "max_new_tokens": 9,
            "kl_weight": 0.0,
            "divide_by_spread": True,
            "loss_weighting": "token",
        }
        | settings,
    )
    tools = Tools(ChatTemplate.load(tiny_model), grade, seed)
    found = load_objective(plan, tools)
    assert isinstance(found, Grpo)
    return found


def drawn(
    objective: Grpo, model: TrainableModel, examples: Sequence[TokenisedExample], folder: Path
) -> Sequence[Batch]:
    objective.prepare(model, [(e,) for e in examples], folder, SilentProgress())
    return objective.draw(model, 0, [([(e,) for e in examples[:2]], ()), ([(e,) for e in examples[2:]], ())])


def backward(objective: Grpo, model: TrainableModel, batches: Sequence[Batch]) -> tuple[float, dict[str, float]]:
    """The loss of a step and its measures as the loop reckons them; gradients lie in the parameters."""
    weight = objective.weight([unit for units, _ in batches for unit in units])
    loss, sums = 0.0, dict[str, float]()
    for units, prefix_lengths in batches:
        batch = collate(rows_of(units), model.pad_id, model.device, prefix_lengths=prefix_lengths)
        losses = objective.losses(model, units, batch)
        (losses.total / weight).backward()
        loss += losses.total.item()
        for name, value in losses.measures.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return loss / weight, {name: value / weight for name, value in sums.items()}


def plain_logarithms(model: TrainableModel, row: TokenisedExample) -> Tensor:
    """The definition: the whole row through transformers, log-softmax over the temperature, at the learned tokens."""
    ids = torch.tensor([row.input_ids.tolist()])
    with model.as_decoder() as base:
        logits = base(input_ids=ids, use_cache=False).logits[0] / TEMPERATURE
    learned = [i for i, bit in enumerate(row.loss_mask) if bit]
    return torch.log_softmax(logits, -1)[[i - 1 for i in learned], ids[0, learned]]


def formula(
    objective: Grpo, model: TrainableModel, rows: Sequence[TokenisedExample], reference: dict[str, Tensor], kl: float
) -> Tensor:
    """Equation 3 of arXiv:2402.03300, one answer after another, with the means of each weighting."""
    per_answer, per_token, num_tokens = [], [], 0
    for row in rows:
        new = plain_logarithms(model, row)
        terms = -objective.drawn.answers[row.id].advantage * torch.exp(new - new.detach())
        if kl:
            further = reference[row.id] - new
            terms = terms + kl * (torch.exp(further) - further - 1)
        per_answer.append(terms.mean())
        per_token.append(terms.sum())
        num_tokens += len(terms)
    if objective.plan.loss_weighting == "sample":
        return torch.stack(per_answer).mean()
    whole = torch.stack(per_token).sum()
    return whole / (num_tokens if objective.plan.loss_weighting == "token" else len(rows) * 9)


@pytest.mark.parametrize("weighting", ["token", "sample", "fixed"])
@pytest.mark.parametrize(("shares", "budget"), [(True, 200), (True, 40), (False, 60)])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_the_formula(
    make_plan: MakePlan,
    make_model: MakeModel,
    tiny_model: Path,
    examples: list[TokenisedExample],
    tmp_path: Path,
    weighting: str,
    shares: bool,
    budget: int,
    kl: float,
) -> None:
    model = make_model(make_plan("lora"), torch.float64)
    model.micro_batch_tokens, model._shared_prefix = budget, shares
    objective = objective_of(tiny_model, kl_weight=kl, loss_weighting=weighting)
    objective.prepare(model, [(e,) for e in examples[:4]], tmp_path, SilentProgress())
    with torch.no_grad():  # as after some training: the model has left its start
        for name, p in model.module.named_parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(len(name))))
    batches = objective.draw(model, 0, [([(e,) for e in examples[:4]], ())])
    rows = [row for units, _ in batches for row in rows_of(units)]
    assert len(rows) == 16
    assert len({a.advantage for a in objective.drawn.answers.values()}) > 4
    reference = {}
    if kl:
        fresh = make_model(make_plan("lora"), torch.float64)
        reference = {row.id: plain_logarithms(fresh, row).detach() for row in rows}
    trained = [p for p in model.module.parameters() if p.requires_grad]
    wanted = formula(objective, model, rows, reference, kl)
    slopes = torch.autograd.grad(wanted, trained)
    model.module.train()
    loss, measures = backward(objective, model, batches)
    # transformers computes rotary angles in float32, whose last bit depends on the shape of the row
    exact = {"rtol": 1e-5, "atol": 1e-7} if shares else {"rtol": 1e-9, "atol": 1e-12}
    assert loss == pytest.approx(float(wanted.detach()), rel=exact["rtol"], abs=exact["atol"])
    for p, slope in zip(trained, slopes, strict=True):
        torch.testing.assert_close(p.grad, slope, **exact)
    assert measures["reward"] == pytest.approx(
        sum(a.grade.reward for a in objective.drawn.answers.values()) / 16, rel=1e-12
    )
    if kl:
        gaps = [reference[row.id] - plain_logarithms(model, row).detach() for row in rows]
        k3 = torch.cat(gaps).exp() - torch.cat(gaps) - 1
        assert measures["kl"] == pytest.approx(float(k3.mean()), rel=exact["rtol"])


@pytest.mark.parametrize("method", ["lora", "full", "prompt_tuning", "ia3"])
def test_training_sees_the_probabilities_that_answers_were_drawn_with(
    make_plan: MakePlan,
    make_model: MakeModel,
    tiny_model: Path,
    examples: list[TokenisedExample],
    tmp_path: Path,
    method: str,
) -> None:
    model = make_model(make_plan(method), torch.float32)
    objective = objective_of(tiny_model)
    batches = drawn(objective, model, examples[:4], tmp_path)
    with torch.no_grad():
        for units, prefix_lengths in batches:
            rows = rows_of(units)
            batch = collate(rows, model.pad_id, model.device, prefix_lengths=prefix_lengths)
            model.module.train()
            hidden = model.hidden(batch).flatten(0, 1)[batch.rows]
            found = torch.log_softmax(hidden @ model.head.t() / TEMPERATURE, -1).gather(1, batch.targets[:, None])[:, 0]
            said = [v for row in rows for v in objective.drawn.answers[row.id].sample.log_probabilities]
            torch.testing.assert_close(found, torch.tensor(said), rtol=0, atol=2e-5)
    _, measures = backward(objective, model, batches)
    assert measures["sampling_gap"] < 2e-5
    assert 0 < measures["entropy"] < math.log(384)


def test_the_model_is_as_it_was_after_drawing(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    model = make_model(make_plan("lora"))
    attention, before = model.base.config._attn_implementation, dict(model.module.state_dict())
    before = {name: value.clone() for name, value in before.items()}
    model.module.train()
    drawn(objective_of(tiny_model, kl_weight=0.1), model, examples[:4], tmp_path)
    assert model.base.config._attn_implementation == attention
    assert all(nonempty(torch.equal(value, before[name]) for name, value in model.module.state_dict().items()))


def test_a_reference_is_the_model_itself_before_the_first_step(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    model = make_model(make_plan("pissa"))
    objective = objective_of(tiny_model, kl_weight=0.1)
    _, measures = backward(objective, model, drawn(objective, model, examples[:4], tmp_path))
    assert measures["kl"] == pytest.approx(0.0, abs=1e-9)


def test_answers_depend_on_seed_and_prompt_alone(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    model = make_model(make_plan("lora"))

    def texts(seed: int, order: Sequence[TokenisedExample]) -> dict[str, list[list[int]]]:
        objective = objective_of(tiny_model, seed=seed)
        drawn(objective, model, order, tmp_path)
        found: dict[str, list[list[int]]] = {}
        for answer in objective.drawn.answers.values():
            found.setdefault(answer.sample.row_id, []).append(answer.row.input_ids.tolist())
        return found

    first = texts(1, examples[:4])
    assert first == texts(1, examples[:4])
    assert first != texts(2, examples[:4])
    assert texts(1, examples[1:3]) == {row.id: first[row.id] for row in examples[1:3]}  # as another process would
    for row in examples[:4]:
        assert all(ids[: len(prompt_ids(row))] == prompt_ids(row) for ids in first[row.id])
        assert len({tuple(ids) for ids in first[row.id]}) > 1


def test_the_token_that_ends_an_answer_is_learned_and_a_cut_answer_has_none(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    model, template = make_model(make_plan("lora")), ChatTemplate.load(tiny_model)
    objective = objective_of(tiny_model, num_samples=64, max_new_tokens=9)
    drawn(objective, model, examples[:4], tmp_path)
    ended = 0
    for answer in nonempty(objective.drawn.answers.values()):
        new = answer.row.input_ids[answer.sample.num_prompt_tokens :].tolist()
        assert len(new) == answer.row.num_trained_tokens == answer.sample.attempt.num_new_tokens
        assert len(answer.sample.log_probabilities) == len(new)
        assert answer.sample.attempt.ended == (new[-1] in template.end_of_turn_ids)
        assert answer.sample.attempt.ended or len(new) == 9
        assert not set(new[:-1]) & set(template.end_of_turn_ids)
        ended += answer.sample.attempt.ended
    assert 0 < ended < 256


@pytest.mark.parametrize("weighting", ["token", "sample", "fixed"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_masked_answers_are_left_out_of_the_loss_and_count_in_their_group(
    make_plan: MakePlan,
    make_model: MakeModel,
    tiny_model: Path,
    examples: list[TokenisedExample],
    tmp_path: Path,
    weighting: str,
    kl: float,
) -> None:
    model = make_model(make_plan("lora"), torch.float64)
    settings = {"num_samples": 32, "kl_weight": kl, "loss_weighting": weighting}
    plain, masked = objective_of(tiny_model, **settings), objective_of(tiny_model, mask_truncated=True, **settings)
    for one in (plain, masked):
        one.prepare(model, [(e,) for e in examples[:2]], tmp_path, SilentProgress())
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(len(name))))
    plain.draw(model, 0, [([(e,) for e in examples[:2]], ())])
    batches = masked.draw(model, 0, [([(e,) for e in examples[:2]], ())])
    answers = masked.drawn.answers
    advantages = [{name: one.advantage for name, one in o.drawn.answers.items()} for o in (plain, masked)]
    assert advantages[0] == advantages[1]
    kept = [answer for answer in answers.values() if answer.sample.attempt.ended]
    assert 0 < len(kept) < 64
    fresh, sums, means, num_tokens = make_model(make_plan("lora"), torch.float64), list[Tensor](), list[Tensor](), 0
    for answer in nonempty(kept):
        new = plain_logarithms(model, answer.row)
        further = plain_logarithms(fresh, answer.row).detach() - new
        terms = -answer.advantage * torch.exp(new - new.detach()) + kl * (torch.exp(further) - further - 1)
        sums, means, num_tokens = [*sums, terms.sum()], [*means, terms.mean()], num_tokens + len(terms)
    wanted = {
        "token": torch.stack(sums).sum() / num_tokens,
        "sample": torch.stack(means).sum() / 64,
        "fixed": torch.stack(sums).sum() / (64 * 9),
    }[weighting]
    trained = [p for p in model.module.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(wanted, trained)
    model.module.train()
    loss, measures = backward(masked, model, batches)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5, abs=1e-7)
    for p, slope in zip(trained, slopes, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-5, atol=1e-7)
    assert measures["reward"] == pytest.approx(sum(a.grade.reward for a in answers.values()) / 64)
    assert measures["truncated_fraction"] == pytest.approx(1 - len(kept) / 64)


def test_a_step_whose_answers_are_all_masked_teaches_nothing(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    model = make_model(make_plan("lora"))
    objective = objective_of(tiny_model, mask_truncated=True, max_new_tokens=2, num_samples=3)
    batches = drawn(objective, model, examples[:4], tmp_path)
    assert not any(nonempty(answer.sample.attempt.ended for answer in objective.drawn.answers.values()))
    loss, measures = backward(objective, model, batches)
    assert (loss, measures["truncated_fraction"]) == (0.0, 1.0)
    for p in nonempty(model.module.parameters()):
        assert p.grad is None or not p.grad.any()


@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_groups_worth_the_same_throughout_are_counted_and_teach_nothing(
    make_plan: MakePlan,
    make_model: MakeModel,
    tiny_model: Path,
    examples: list[TokenisedExample],
    tmp_path: Path,
    kl: float,
) -> None:
    model = make_model(make_plan("lora"))
    objective = objective_of(tiny_model, alike, kl_weight=kl)
    batches = drawn(objective, model, examples[:4], tmp_path)
    loss, measures = backward(objective, model, batches)
    assert loss == pytest.approx(0.0, abs=1e-9)
    assert measures["no_signal_fraction"] == 1.0
    assert measures["reward"] == pytest.approx(0.5)
    assert measures["reward_spread"] == 0.0
    assert ("entropy" in measures) == (kl > 0)  # what is not computed has no figure
    for p in nonempty(model.module.parameters()):
        assert p.grad is None or float(p.grad.abs().max()) < 1e-6


def test_measures_are_means_over_the_answers_of_all_processes(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample]
) -> None:
    """Two processes with two prompts each, whose answers have different lengths."""

    def drawn_by(number: int, over_ranks: Callable[[Mapping[str, float]], dict[str, float]]) -> tuple[Grpo, Any]:
        objective = objective_of(tiny_model, max_new_tokens=5 + 4 * number)  # of different lengths for certain
        objective.tools = replace(objective.tools, over_ranks=over_ranks)
        return objective, objective.draw(model, 0, [([(e,) for e in examples[2 * number : 2 * number + 2]], ())])

    model, own = make_model(make_plan("lora")), list[dict[str, float]]()

    def alone(numbers: Mapping[str, float]) -> dict[str, float]:
        own.append(dict(numbers))
        return own[-1]

    for number in range(2):
        drawn_by(number, alone)
    assert own[0]["weight"] != own[1]["weight"]
    totals = {name: own[0][name] + own[1][name] for name in own[0]}
    reward, answers = 0.0, list[Answer]()
    for number in range(2):
        objective, batches = drawn_by(number, lambda _: totals)
        _, measures = backward(objective, model, batches)  # divided by the weight of this process alone
        reward += measures["reward"] * own[number]["weight"] / totals["weight"]
        answers += objective.drawn.answers.values()
    assert reward == pytest.approx(sum(answer.grade.reward for answer in answers) / len(answers))


def test_a_validation_is_the_reward_of_the_likeliest_answers(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    model = make_model(make_plan("lora"))
    objective = objective_of(tiny_model)
    objective.prepare(model, [(e,) for e in examples], tmp_path, SilentProgress())
    given = [([(e,) for e in examples[:3]], ()), ([(e,) for e in examples[3:5]], ())]
    batches = objective.draw_validation(model, given)
    rows = [row for units, _ in batches for row in rows_of(units)]
    assert len(rows) == 5
    for row, example in zip(rows, examples[:5], strict=True):
        ids = prompt_ids(example)
        with model.as_decoder() as base, torch.no_grad():
            for token in nonempty(row.input_ids[len(ids) :].tolist()):
                assert token == int(base(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                ids.append(token)
    total = weight = 0.0
    for units, prefix_lengths in batches:
        batch = collate(rows_of(units), model.pad_id, model.device, prefix_lengths=prefix_lengths)
        losses = objective.losses(model, units, batch)
        total, weight = total + losses.total.item(), weight + objective.weight(units)
    answers = [objective.validated[row.id] for row in rows]
    assert total / weight == pytest.approx(-sum(a.grade.reward for a in answers) / 5)


def test_rewards_of_a_validation_are_reported_by_source(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample]
) -> None:
    """Rows 0 to 2 are of one source, rows 3 and 4 of the other."""
    plan, model, objective = make_plan("lora"), make_model(make_plan("lora")), objective_of(tiny_model)
    sources = [
        SourcePlan(split="validation", name=name, path=name, files=(), first_row=first, num_rows=num)
        for name, first, num in (("one", 0, 3), ("other", 3, 2))
    ]
    given = [([(e,) for e in examples[:3]], ()), ([(e,) for e in examples[3:5]], ())]
    state = LoopState(plan_hash=plan.hash, step=2, early_stopping=EarlyStopping(patience=0))
    state = state.model_copy(update={"window_loss_sum": 1.0, "window_loss_weight": 1.0})
    _, found = validate(model, objective, given, state, SilentProgress(), sources=sources)
    rewards = [answer.grade.reward for answer in objective.validated.values()]
    assert found.loss_by_source == pytest.approx({"one": -sum(rewards[:3]) / 3, "other": -sum(rewards[3:]) / 2})
    assert found.loss == pytest.approx(-sum(rewards) / 5)


def test_answers_to_the_first_prompts_are_persistent_for_a_person(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    model, objective = make_model(make_plan("lora")), objective_of(tiny_model)
    drawn(objective, model, examples[:4], tmp_path)
    (file,) = (tmp_path / "samples").iterdir()
    assert file.name == "step-00000001.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["row_id"] for line in lines] == ["row:0"] * 4 + ["row:1"] * 4
    kept = list(objective.drawn.answers.values())[:8]
    assert [line["reward"] for line in lines] == [a.grade.reward for a in kept]
    assert [line["output"] for line in lines] == [a.sample.attempt.text for a in kept]


def test_without_rewards_there_is_no_objective() -> None:
    with pytest.raises(RequestError, match="without rewards"):
        load_objective(ObjectivePlan(name="grpo", num_samples=2))


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_a_process_that_gets_no_prompt_of_a_step_draws_nothing(
    make_plan: MakePlan, make_model: MakeModel, tiny_model: Path, tmp_path: Path, method: str
) -> None:
    model, objective = make_model(make_plan(method)), objective_of(tiny_model)
    objective.prepare(model, [], tmp_path, SilentProgress())
    assert list(objective.draw(model, 0, [])) == []
    assert objective.weight([]) == 0
    assert list(objective.draw_validation(model, [])) == []
