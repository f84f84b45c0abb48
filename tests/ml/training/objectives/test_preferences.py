"""Losses on preferences: against the formulas of the papers in float64, and the reference that they rest on."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import ObjectivePlan, Plan
from luthier.core.ports import SilentProgress
from luthier.core.recipe import PairLoss
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objective_protocol import Objective, Tools, Unit, rows_of
from luthier.ml.training.objectives.pair_losses import pair_losses
from luthier.ml.training.objectives.preference import FILE_NAME, Kto, _partners, key_of, mismatched
from luthier.ml.training.objectives.rules import LABEL_SMOOTHING, LOSS_TYPES, load_objective, rules_of

PAIRS = ("dpo", "ipo", "orpo", "simpo")


def row(prompt: Sequence[int], answer: Sequence[int], name: str, is_wanted: bool | None = None) -> TokenisedExample:
    mask = bytes(len(prompt)) + b"\1" * len(answer)
    return TokenisedExample(name, array("i", [*prompt, *answer]), mask, is_wanted=is_wanted)


def pairs(num: int = 5) -> list[Unit]:
    """Pairs whose prompts and completions have different lengths; token 0, padding, stands in none."""
    made: list[Unit] = []
    for n in range(num):
        prompt = [(7 * n + i) % 299 + 1 for i in range(3 + n)]
        chosen = [(50 * n + i) % 299 + 1 for i in range(2 + n % 3)]
        rejected = [(90 + 11 * n + 2 * i) % 299 + 1 for i in range(5)]
        made.append((row(prompt, chosen, f"pair:{n}"), row(prompt, rejected, f"pair:{n}")))
    return made


def singles(num: int = 5) -> list[Unit]:
    rows = [unit[n % 2] for n, unit in enumerate(pairs(num))]
    return [(row(r.input_ids[: r.loss_mask.find(1)], r.input_ids[r.loss_mask.find(1) :], r.id, n % 2 == 0),)
            for n, r in enumerate(rows)]  # fmt: skip


def plan_of(name: str, **settings: Any) -> ObjectivePlan:
    values = {key: default for key, (default, _) in rules_of(name).settings.items()}
    return ObjectivePlan(name=name, **(values | settings))


def moved(model: TrainableModel) -> TrainableModel:
    """The model some way from where it started."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def token_values(model: TrainableModel, one: TokenisedExample) -> torch.Tensor:
    """The log-probability of each token of a row but the first, from whole logits in float64, a row at a time."""
    ids = torch.tensor(list(one.input_ids))[None]
    with torch.no_grad():
        hidden = model.method.hidden(model.body, ids, torch.arange(ids.shape[1])[None])[0]
    logits = hidden.double() @ model.head.detach().double().t()
    return torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]


def answer_sum(model: TrainableModel, one: TokenisedExample) -> float:
    learned = torch.tensor([mark == 1 for mark in one.loss_mask[1:]])
    return float(token_values(model, one)[learned].sum())


def whole_loss(
    objective: Objective, model: TrainableModel, units: list[Unit], size: int, prefix_lengths: bool = False
) -> tuple[float, dict[str, float], torch.Tensor]:
    """Loss, measures and gradient of a batch that is cut into micro-batches of `size` units."""
    from luthier.ml.training.objectives.preference import shared_prefix_tokens

    model.module.zero_grad()
    model.module.eval()
    parts = [units[i : i + size] for i in range(0, len(units), size)]
    objective.look(model, parts)
    weight = objective.weight(units)
    total, measures = 0.0, dict[str, float]()
    for part in parts:
        cuts = shared_prefix_tokens(model, part) if prefix_lengths else ()
        batch = collate(rows_of(part), model.pad_id, "cpu", prefix_lengths=cuts)
        losses = objective.losses(model, part, batch)
        (losses.total / weight).backward()
        total += losses.total.item()
        for name, value in losses.measures.items():
            measures[name] = measures.get(name, 0.0) + value.item() / weight
    gradients = [p.grad.flatten() for p in model.module.parameters() if p.grad is not None]
    return total / weight, measures, torch.cat(gradients).double()


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo_variant(p: ObjectivePlan, h_w: float, h_l: float, m_w: float, m_l: float) -> float:
    """The loss of a pair as each paper writes it, from the log-ratios of its two sides, whole and a token."""
    beta, e = p.beta or 0.0, p.label_smoothing or 0.0
    x_w, x_l, x = beta * h_w, beta * h_l, beta * (h_w - h_l)
    win = logistic(x)
    forms: dict[str, Callable[[], float]] = {
        "hinge": lambda: max(0.0, 1 - x),
        "robust": lambda: (-(1 - e) * math.log(win) + e * math.log(1 - win)) / (1 - 2 * e),
        "exo_pair": lambda: win * math.log(win / (1 - e)) + (1 - win) * math.log((1 - win) / e),
        "nca_pair": lambda: -math.log(logistic(x_w)) - (math.log(logistic(-x_w)) + math.log(logistic(-x_l))) / 2,
        "bco_pair": lambda: -math.log(logistic(x_w)) - math.log(logistic(-x_l)),
        "sppo_hard": lambda: (h_w - 1 / (2 * beta)) ** 2 + (h_l + 1 / (2 * beta)) ** 2,
        "apo_zero": lambda: 1 - logistic(x_w) + logistic(x_l),
        "apo_down": lambda: logistic(x_w) + 1 - logistic(x),
        "sigmoid_norm": lambda: -math.log(logistic(beta * (m_w - m_l))),
    }
    return forms[p.loss_type or ""]()


def by_the_paper(name: str, model: TrainableModel, start: TrainableModel, units: list[Unit], p: ObjectivePlan) -> float:
    """The mean loss, from the formulas as the papers write them; see the docstrings of the objectives."""
    total = 0.0
    beta = p.beta or 0.0
    if name == "kto":
        rows = rows_of(units)
        others = [mismatched(one, before, 10_000) for before, one in zip([rows[-1], *rows[:-1]], rows, strict=True)]
        shift = max(0.0, sum(answer_sum(model, one) - answer_sum(start, one) for one in others) / len(others))
        for one in rows:
            h = answer_sum(model, one) - answer_sum(start, one)
            gain = beta * (h - shift if one.is_wanted else shift - h)
            weight = p.desirable_weight if one.is_wanted else p.undesirable_weight
            total += (weight or 0.0) * (1 - 1 / (1 + math.exp(-gain)))
        return total / len(rows)
    nll, num_nll = 0.0, 0
    for chosen, rejected in units:
        w, l = answer_sum(model, chosen), answer_sum(model, rejected)  # noqa: E741
        num_w, num_l = chosen.num_trained_tokens, rejected.num_trained_tokens
        if name == "orpo":
            odds = [m - math.log(1 - math.exp(m)) for m in (w / num_w, l / num_l)]
            total += beta * softplus(-(odds[0] - odds[1]))
            values = token_values(model, chosen)
            values = values if p.nll_over == "all" else values[-num_w:]
            nll, num_nll = nll - float(values.sum()), num_nll + len(values)
            continue
        total -= (p.nll_weight or 0.0) * w / num_w
        h_w, h_l = w - answer_sum(start, chosen), l - answer_sum(start, rejected)
        if name == "dpo" and p.loss_type != "sigmoid":
            total += dpo_variant(p, h_w, h_l, h_w / num_w, h_l / num_l)
            continue
        if name == "ipo":
            total += (h_w / num_w - h_l / num_l - 1 / (2 * beta)) ** 2
            continue
        x = beta * (h_w - h_l) if name == "dpo" else beta * (w / num_w - l / num_l) - (p.gamma or 0.0)
        smoothing = p.label_smoothing or 0.0
        total += (1 - smoothing) * softplus(-x) + smoothing * softplus(x)
    return total / len(units) + (nll / num_nll if num_nll else 0.0)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {}),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.2}),
    ("dpo", {"nll_weight": 0.7}),
    *[("dpo", {"loss_type": kind, "beta": 0.3}) for kind in get_args(PairLoss) if kind not in LABEL_SMOOTHING],
    ("dpo", {"loss_type": "hinge", "beta": 0.9}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.2}),
    ("dpo", {"loss_type": "exo_pair", "label_smoothing": 0.05, "nll_weight": 0.3}),
    ("dpo", {"loss_type": "sigmoid_norm", "beta": 5.0}),
    ("ipo", {}),
    ("ipo", {"nll_weight": 1.5}),
    ("orpo", {}),
    ("orpo", {"nll_over": "answer", "beta": 1.0}),
    ("kto", {}),
    ("kto", {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.3}),
    ("simpo", {}),
    ("simpo", {"label_smoothing": 0.1, "gamma": 0.3}),
    ("simpo", {"nll_weight": 0.2}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_losses_are_those_of_the_papers(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    tmp_path: Path,
    name: str,
    settings: dict[str, Any],
) -> None:
    plan = plan_of(name, **settings)
    units = singles() if name == "kto" else pairs()
    start, model = make_model(make_plan()), make_model(make_plan())
    objective = load_objective(plan)
    objective.prepare(model, units, tmp_path, SilentProgress())
    moved(model)
    expected = by_the_paper(name, model, start, units, plan)
    loss, measures, gradient = whole_loss(objective, model, units, size=5)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert all(math.isfinite(value) for value in measures.values())
    # any cut into micro-batches gives the same, and so do prefixes that are computed once
    for size, prefix_lengths in ((2, False), (1, False), (3, True), (5, True)):
        again, others, other = whole_loss(objective, model, units, size, prefix_lengths)
        assert again == pytest.approx(loss, rel=1e-5)
        assert others == pytest.approx(measures, rel=1e-4, abs=1e-5)
        assert float((other - gradient).norm() / gradient.norm()) < 2e-5


@pytest.mark.parametrize("name", [*PAIRS, "kto"])
def test_the_gradient_is_the_derivative_of_the_loss(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path, name: str
) -> None:
    """Along a random direction, in float64, with every weight trained, the head among them. z0 of KTO is held fast."""
    model = make_model(make_plan("full"), torch.float64)
    units = singles() if name == "kto" else pairs()
    objective = load_objective(plan_of(name))
    objective.prepare(model, units, tmp_path, SilentProgress())
    moved(model)
    _, _, gradient = whole_loss(objective, model, units, size=2)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    torch.manual_seed(5)
    ways = [torch.randn_like(p) for p in trained]
    slope = float(gradient @ torch.cat([way.flatten() for way in ways]))
    monkey = pytest.MonkeyPatch()
    if name == "kto":
        monkey.setattr(objective, "look", lambda *_: None)
    ends = []
    for step in (1e-4, -2e-4):  # norms and rotations are computed in float32, which smaller steps would drown in
        with torch.no_grad():
            for parameter, way in zip(trained, ways, strict=True):
                parameter.add_(way, alpha=step)
        ends.append(whole_loss(objective, model, units, size=2)[0])
    monkey.undo()
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("kind", get_args(PairLoss))
def test_the_gradient_of_each_loss_of_dpo_is_its_derivative(kind: PairLoss) -> None:
    """In float64, far from the start too, where probabilities are 0 and 1 in rounding."""
    smoothing = LABEL_SMOOTHING.get(kind, (0.0, ""))[0] or 0.0
    sides = torch.tensor([[0.3, -1.2, 40.0, -900.0], [-0.7, 2.0, -30.0, 900.0]], dtype=torch.float64).requires_grad_()

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return pair_losses(kind, chosen, rejected, 0.25, smoothing)

    assert torch.isfinite(loss(*sides)).all()
    assert torch.autograd.gradcheck(lambda both: loss(*both), (sides,))


def test_every_loss_of_dpo_is_described() -> None:
    assert set(LOSS_TYPES) == set(get_args(PairLoss))
    assert set(LABEL_SMOOTHING) <= set(LOSS_TYPES)


METHODS = ["full", "lora", "rslora", "dora", "loraplus", "pissa", "olora", "adalora", "ia3", "prompt_tuning"]


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_the_model_at_its_start_under_every_method(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path, method: str
) -> None:
    """At step 0 nothing has moved: each reward is 0, and the loss of DPO is log 2. All but prompt tuning begin as the
    base itself."""
    units = pairs(3)
    model = make_model(make_plan(method, dropout=0.1))
    objective = load_objective(plan_of("dpo"))
    objective.prepare(model, units, tmp_path, SilentProgress())
    loss, measures, _ = whole_loss(objective, model, units, size=2)
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert measures["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    base = make_model(make_plan("full"))
    expected = sum(answer_sum(base, chosen) for chosen, _ in units) / 3
    if method != "prompt_tuning":
        assert measures["chosen_log_probability"] == pytest.approx(expected, abs=1e-3)


def test_the_reference_is_kept_and_read_again(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    """A run that resumes reads the same bytes, though its weights are no longer the first ones."""
    units, model = pairs(), make_model(make_plan())
    first = load_objective(plan_of("dpo"))
    first.prepare(model, units, tmp_path, SilentProgress())
    file = tmp_path / FILE_NAME
    content = file.read_bytes()
    moved(model)
    loss, _, _ = whole_loss(first, model, units, size=5)
    second = load_objective(plan_of("dpo"))
    second.prepare(model, units, tmp_path, SilentProgress())
    assert file.read_bytes() == content
    assert whole_loss(second, model, units, size=5)[0] == loss


@pytest.mark.parametrize("harm", ["cut", "changed", "of other rows", "gone"])
def test_a_reference_that_is_not_whole_is_computed_anew(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path, harm: str
) -> None:
    units, model = pairs(), make_model(make_plan())
    load_objective(plan_of("dpo")).prepare(model, units, tmp_path, SilentProgress())
    file = tmp_path / FILE_NAME
    content = file.read_bytes()
    if harm == "of other rows":
        load_objective(plan_of("dpo")).prepare(model, pairs(3), tmp_path, SilentProgress())
        assert file.read_bytes() != content
    elif harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    load_objective(plan_of("dpo")).prepare(model, units, tmp_path, SilentProgress())
    assert file.read_bytes() == content


def test_rewards_and_log_probabilities_are_shown(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    units, start, model = pairs(), make_model(make_plan()), make_model(make_plan())
    objective = load_objective(plan_of("dpo", beta=0.5))
    objective.prepare(model, units, tmp_path, SilentProgress())
    moved(model)
    _, measures, _ = whole_loss(objective, model, units, size=2)
    ratios = [[answer_sum(model, one) - answer_sum(start, one) for one in unit] for unit in units]
    assert measures["reward_accuracy"] == sum(better > worse for better, worse in ratios) / 5
    assert measures["chosen_reward"] == pytest.approx(0.5 * sum(better for better, _ in ratios) / 5, abs=1e-4)
    assert measures["rejected_reward"] == pytest.approx(0.5 * sum(worse for _, worse in ratios) / 5, abs=1e-4)
    assert measures["reward_margin"] == pytest.approx(measures["chosen_reward"] - measures["rejected_reward"], abs=1e-5)
    rejected = sum(answer_sum(model, unit[1]) for unit in units) / 5
    assert measures["rejected_log_probability"] == pytest.approx(rejected, abs=1e-4)


def test_the_cross_entropy_of_the_chosen_answers_is_shown_where_it_is_learned(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    units, model = pairs(), moved(make_model(make_plan()))
    plain, learned = (load_objective(plan_of("simpo", nll_weight=weight)) for weight in (0.0, 0.5))
    loss, measures, _ = whole_loss(plain, model, units, size=2)
    assert "nll_loss" not in measures
    other, measures, _ = whole_loss(learned, model, units, size=2)
    mean = -sum(answer_sum(model, chosen) / chosen.num_trained_tokens for chosen, _ in units) / len(units)
    assert measures["nll_loss"] == pytest.approx(mean, abs=1e-4)
    assert other == pytest.approx(loss + 0.5 * mean, abs=1e-4)


def test_kto_shows_means_over_each_kind(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    units, start, model = singles(), make_model(make_plan()), make_model(make_plan())
    objective = load_objective(plan_of("kto"))
    objective.prepare(model, units, tmp_path, SilentProgress())
    moved(model)
    _, measures, _ = whole_loss(objective, model, units, size=2)
    for name, is_wanted in (("chosen_reward", True), ("rejected_reward", False)):
        rows = [one for one in rows_of(units) if one.is_wanted is is_wanted]
        mean = sum(answer_sum(model, one) - answer_sum(start, one) for one in rows) / len(rows)
        assert measures[name] == pytest.approx(0.1 * mean, abs=1e-5)
    assert measures["kl"] >= 0


def test_a_prompt_with_the_completion_of_another_row() -> None:
    one, other = row([1, 2, 3], [4, 5], "one"), row([6], [7, 8, 9], "other")
    found = mismatched(one, other, 100)
    assert list(found.input_ids) == [1, 2, 3, 7, 8, 9]
    assert found.loss_mask == bytes([0, 0, 0, 1, 1, 1])
    assert list(mismatched(one, other, 5).input_ids) == [1, 2, 3, 7, 8]


def test_kto_compares_with_completions_of_other_prompts(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path
) -> None:
    """Rows of pairs have one prompt: the completion of the row before would be the chosen one, which is learned."""
    rows = [side for unit in pairs(3) for side in unit]
    objective = load_objective(plan_of("kto"))
    assert isinstance(objective, Kto)
    objective.prepare(make_model(make_plan()), [(one,) for one in rows], tmp_path, SilentProgress())
    # Chosen and rejected of pair 0 with those of pair 2, and so on: the same number of either kind.
    others = [rows[5], rows[4], rows[1], rows[0], rows[3], rows[2]]
    found = [objective._partners[key_of(one)].input_ids.tolist() for one in rows]
    assert found == [mismatched(one, other, 64).input_ids.tolist() for one, other in zip(rows, others, strict=True)]


def test_partners_where_a_prompt_occurs_again() -> None:
    a, b = [1], [2]
    rows = [row(prompt, [10 + n], str(n)) for n, prompt in enumerate([a, a, b, a, a, a])]
    # The rows of prompt a around the end belong together: 3, 4, 5, 0, 1.
    assert [one.input_ids[-1] - 10 for one in _partners(rows, 9)] == [2, 2, 1, 2, 2, 2]
    same = [row(a, [10 + n], str(n)) for n in range(3)]
    assert [one.input_ids[-1] - 10 for one in _partners(same, 9)] == [2, 0, 1]


@pytest.mark.parametrize("targets", [("q_proj",), ("lm_head", "q_proj"), ("embed_tokens",)])
def test_each_row_adds_up_to_what_cross_entropy_gives(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], targets: tuple[str, ...]
) -> None:
    """Also where the head has an adapter, and in the gradient of everything that is trained."""
    model = moved(make_model(make_plan("lora", settings={"targets": targets})))
    model.module.eval()
    batch = collate(rows_of(pairs()), model.pad_id, "cpu")
    found = []
    for loss in (lambda: model.loss_sum(batch)[0], lambda: -model.log_probabilities(batch).sum()):
        model.module.zero_grad()
        value = loss()
        value.backward()
        gradients = [p.grad.flatten() for p in model.module.parameters() if p.grad is not None]
        found.append((value.item(), torch.cat(gradients)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_the_reference_of_streamed_rows_is_that_of_rows_that_are_all_there(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path, name: str
) -> None:
    """The same loss and gradient, though the rows were not known before the weights moved."""
    units, model = singles() if name == "kto" else pairs(), make_model(make_plan())
    known, streamed = load_objective(plan_of(name)), load_objective(plan_of(name), Tools(is_streamed=True))
    known.prepare(model, units, tmp_path / "known", SilentProgress())
    streamed.prepare(model, [], tmp_path / "streamed", SilentProgress())
    moved(model)
    weights = [p.detach().clone() for p in model.module.parameters()]
    expected, found = (whole_loss(one, model, units, size=5) for one in (known, streamed))
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-5, abs=1e-6)
    assert float((found[2] - expected[2]).norm() / expected[2].norm()) < 1e-5
    assert [p for p, before in zip(model.module.parameters(), weights, strict=True) if not torch.equal(p, before)] == []
    assert not (tmp_path / "streamed" / FILE_NAME).exists(), "there were no validation rows"
