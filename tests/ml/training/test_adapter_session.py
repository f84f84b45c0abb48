"""Adapters that are trained call by call: equal to the loop, on one base, and as exact after a resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.ml.training.conftest import FixedSchedule
from tests.vacuous import nonempty

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import CheckpointError, DivergedError, OverlongError, RequestError
from luthier.core.plan import OptimizerPlan, Plan
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.adapter_sampler import AdapterSampler, SampleOrder, joined, read_adapter
from luthier.ml.training.adapter_session import AdamSettings, AdapterSession, SharedBase
from luthier.ml.training.checkpoint import LoopState
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.losses.token_losses import Datum
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objectives.rules import load_objective
from luthier.ml.training.optimizer import MasterOptimizer
from luthier.ml.training.step import one_step

MakePlan = Callable[..., Plan]
RATE = 1e-2
TARGETS = {"targets": ("q_proj", "v_proj", "down_proj", "lm_head"), "alpha": 32.0}
ADAM = AdamSettings(RATE, beta2=0.999, epsilon=1e-8, clip_norm=1.0)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> SharedBase:
    return SharedBase(str(tiny_model), "float32", "cpu")


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    made = make_plan(settings=TARGETS)
    training = made.training.model_copy(
        update={
            "learning_rate": RATE,
            "schedule": "constant",
            "num_warmup_steps": 0,
            "weight_decay": 0.0,
            "clip_gradient_norm": 1.0,
            "optimizer": OptimizerPlan(),
        }
    )
    return made.model_copy(update={"training": training})


def as_datum(row: TokenisedExample, divisor: float) -> Datum:
    """The row as a client sends it: targets one token behind, and weights of which the loss is a mean."""
    ids = np.frombuffer(row.input_ids, dtype=np.int32)
    weights = np.frombuffer(row.loss_mask, dtype=np.uint8)[1:].astype(np.float32) / divisor
    return Datum(ids[:-1], {"target_tokens": ids[1:].astype(np.int64), "weights": weights})


def by_the_loop(plan: Plan, steps: Sequence[Sequence[TokenisedExample]]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights after some steps of the training loop, of equally many rows, and their losses."""
    model = TrainableModel.load(plan)
    optimizer, objective = MasterOptimizer(model.module, plan.training), load_objective(plan.objective)
    units, size = [(row,) for rows in steps for row in rows], len(steps[0])
    state = LoopState(plan_hash=plan.hash, early_stopping=EarlyStopping(patience=0))
    schedule, losses = FixedSchedule(len(units), size, size), []
    for _ in steps:
        state, event = one_step(plan, model, objective, optimizer, units, schedule, state)
        losses.append(event.loss)
    return optimizer.weight_state(), losses


def train(session: AdapterSession, steps: Sequence[Sequence[TokenisedExample]]) -> list[float]:
    losses = []
    for rows in steps:
        num = sum(row.num_trained_tokens for row in rows)
        losses.append(session.run([as_datum(row, num) for row in rows], "cross_entropy", {}, backward=True).loss)
        session.step(ADAM)
    return losses


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert set(found) == set(expected)
    return max(float((found[name] - expected[name]).abs().max()) for name in nonempty(expected))


def test_three_steps_equal_those_of_the_loop(base: SharedBase, plan: Plan, examples: list[TokenisedExample]) -> None:
    steps = [examples[:6], examples[6:12], examples[12:18]]
    expected, losses = by_the_loop(plan, steps)
    session = AdapterSession(base, plan)
    assert train(session, steps) == pytest.approx(losses, rel=1e-5)
    assert apart(session.weights(), expected) < 1e-5
    # They have moved at all.
    assert apart(session.weights(), AdapterSession(base, plan).weights()) > RATE


def test_clients_share_the_weights_of_the_base_and_nothing_else(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample]
) -> None:
    one, other = AdapterSession(base, plan), AdapterSession(base, plan)
    shared = {p.data_ptr() for p in one.model.module.parameters() if not p.requires_grad}
    assert shared == {p.data_ptr() for p in other.model.module.parameters() if not p.requires_grad}
    before = other.weights()
    train(one, [examples[:4]])
    assert apart(other.weights(), before) == 0.0
    assert {p.data_ptr() for p in one.model.module.parameters() if p.requires_grad}.isdisjoint(shared)


def test_a_pass_is_the_same_in_any_micro_batches(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample]
) -> None:
    session, data = AdapterSession(base, plan), [as_datum(row, 1.0) for row in examples[:6]]
    whole = session.run(data, "cross_entropy", {}, backward=False)
    single = [session.run([one], "cross_entropy", {}, backward=False) for one in data]
    assert whole.loss == pytest.approx(sum(one.loss for one in single), rel=1e-5)
    for place, one in enumerate(nonempty(single)):
        np.testing.assert_allclose(whole.log_probabilities[place], one.log_probabilities[0], atol=1e-5)
    session.model.micro_batch_tokens = 32
    cut = session.run(data, "cross_entropy", {}, backward=False)
    np.testing.assert_allclose(
        np.concatenate(cut.log_probabilities), np.concatenate(whole.log_probabilities), atol=1e-5
    )


def test_passes_of_two_clients_in_turns_are_those_of_each_alone(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample]
) -> None:
    data = [as_datum(row, 1.0) for row in examples[:6]]
    alone, one, other = AdapterSession(base, plan), AdapterSession(base, plan), AdapterSession(base, plan)
    alone.model.micro_batch_tokens = one.model.micro_batch_tokens = 1
    whole = alone.run(data, "cross_entropy", {}, backward=True)
    parts, num_parts, result = one.parts(data, "cross_entropy", {}, backward=True), 1, None
    while result is None:
        try:
            assert next(parts) > 0
            num_parts += 1
            other.run(data[:2], "cross_entropy", {}, backward=False)
            other.run(data[:2], "cross_entropy", {}, backward=True)
        except StopIteration as end:
            result = end.value
    assert num_parts == len(data)
    assert (result.loss, result.num_tokens) == (whole.loss, whole.num_tokens)
    pairs = list(zip(one.optimizer.gradients, alone.optimizer.gradients, strict=True))
    assert all(torch.equal(*pair) for pair in nonempty(pairs))


def test_log_probabilities_of_several_targets_are_those_of_each(base: SharedBase, plan: Plan) -> None:
    session, ids = AdapterSession(base, plan), np.array([5, 6, 7], dtype=np.int32)
    columns = np.array([[1, 2], [3, 4], [5, 6]])
    both = session.run([Datum(ids, {"target_tokens": columns})], "cross_entropy", {}, backward=False)
    for column in (0, 1):
        alone = session.run([Datum(ids, {"target_tokens": columns[:, column]})], "cross_entropy", {}, backward=False)
        np.testing.assert_allclose(both.log_probabilities[0][:, column], alone.log_probabilities[0], atol=1e-6)


def test_a_custom_loss_by_weights_has_the_gradient_of_the_loss(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample]
) -> None:
    # A loss C of log-probabilities has the gradient of cross-entropy with the weights -dC/dlog p.
    plain, custom = AdapterSession(base, plan), AdapterSession(base, plan)
    data = [as_datum(row, 1.0) for row in examples[:3]]
    found = custom.run(data, "cross_entropy", {}, backward=False).log_probabilities
    squared = [Datum(d.tokens, {**d.inputs, "weights": -2 * p}) for d, p in zip(data, found, strict=True)]
    custom.run(squared, "cross_entropy", {}, backward=True)
    expected = _gradient_of_squares(plain, data)
    assert apart(custom.optimizer.gradient_state(), expected) < 1e-4


def _gradient_of_squares(session: AdapterSession, data: Sequence[Datum]) -> dict[str, torch.Tensor]:
    """The gradient of the sum of squared log-probabilities, by autograd alone."""
    from luthier.ml.training.adapter_session import laid_out

    session.model.module.train()
    for one in data:
        batch = laid_out([one], np.arange(len(one.tokens)), session.model)
        session.model.log_probabilities(batch).square().sum().backward()
    return {name: p.grad for name, p in session.model.module.named_parameters() if p.grad is not None}


def test_policy_losses_move_the_weights_and_zero_advantages_do_not(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample]
) -> None:
    session = AdapterSession(base, plan)
    row = as_datum(examples[0], 1.0)
    sampled = session.run([row], "cross_entropy", {}, backward=False).log_probabilities[0]
    policy = {"target_tokens": row.inputs["target_tokens"], "logprobs": sampled}
    zero = Datum(row.tokens, {**policy, "advantages": np.zeros_like(sampled)})
    assert session.run([zero], "ppo", {}, backward=True).loss == 0.0
    assert all(not gradient.any() for gradient in nonempty(session.optimizer.gradients))
    one = Datum(row.tokens, {**policy, "advantages": np.ones_like(sampled)})
    # At the weights that the tokens were sampled with every ratio is 1, so the loss is minus their number.
    for name in ("importance_sampling", "ppo"):
        assert session.run([one], name, {}, backward=True).loss == pytest.approx(-len(sampled), rel=1e-5)
    assert any(gradient.any() for gradient in session.optimizer.gradients)


def test_a_saved_state_goes_on_exactly(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    session = AdapterSession(base, plan)
    train(session, [examples[:4]])
    session.save(tmp_path, with_state=True)
    train(session, [examples[4:8]])
    other = AdapterSession(base, plan)
    other.load(tmp_path, with_optimizer=True)
    train(other, [examples[4:8]])
    assert apart(other.weights(), session.weights()) == 0.0
    assert other.state.step == 2
    fresh = AdapterSession(base, plan)
    fresh.load(tmp_path, with_optimizer=False)
    train(fresh, [examples[4:8]])
    assert fresh.state.step == 1
    assert apart(fresh.weights(), session.weights()) > 0.0  # its moments began at zero


def test_a_damaged_state_is_refused(base: SharedBase, plan: Plan, tmp_path: Path) -> None:
    session = AdapterSession(base, plan)
    session.save(tmp_path, with_state=True)
    (file,) = tmp_path.glob("state/step-*/weights.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(CheckpointError, match="damaged"):
        session.load(tmp_path, with_optimizer=True)


def test_a_state_of_another_shape_is_refused(base: SharedBase, plan: Plan, make_plan: MakePlan, tmp_path: Path) -> None:
    AdapterSession(base, make_plan(settings={"rank": 2})).save(tmp_path, with_state=True)
    with pytest.raises(RequestError, match="another shape"):
        AdapterSession(base, plan).load(tmp_path, with_optimizer=False)
    with pytest.raises(RequestError, match="no saved state"):
        AdapterSession(base, plan).load(tmp_path / "elsewhere", with_optimizer=False)


def test_a_step_without_gradients_is_refused(base: SharedBase, plan: Plan, examples: list[TokenisedExample]) -> None:
    session = AdapterSession(base, plan)
    with pytest.raises(RequestError, match="optim_step without gradients"):
        session.step(ADAM)
    train(session, [examples[:2]])
    with pytest.raises(RequestError, match="optim_step without gradients"):
        session.step(ADAM)


def test_a_wrong_request_adds_no_gradient(base: SharedBase, plan: Plan, examples: list[TokenisedExample]) -> None:
    session, good = AdapterSession(base, plan), as_datum(examples[0], 1.0)
    wrong = Datum(good.tokens, {**good.inputs, "weights": good.inputs["weights"][1:]})
    with pytest.raises(RequestError, match="datum 1 has weights"):
        session.run([good, wrong], "cross_entropy", {}, backward=True)
    with pytest.raises(RequestError, match="optim_step without gradients"):
        session.step(ADAM)


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_pass_that_is_cut_off_adds_no_gradient(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample], monkeypatch: pytest.MonkeyPatch, num_before: int
) -> None:
    session = AdapterSession(base, plan)
    session.model.micro_batch_tokens = 1  # each row is a micro-batch
    data = [as_datum(row, 1.0) for row in examples[:3]]
    for _ in range(num_before):
        session.run(data, "cross_entropy", {}, backward=True)
    before = [one.clone() for one in session.optimizer.gradients]
    own, num = AdapterSession._micro_batch, 0

    def fails_at_the_second(self: AdapterSession, *given: Any, **options: Any) -> tuple[float, list[Any]]:
        nonlocal num
        num += 1
        if num == 2:
            raise MemoryError
        return own(self, *given, **options)

    monkeypatch.setattr(AdapterSession, "_micro_batch", fails_at_the_second)
    with pytest.raises(MemoryError):
        session.run(data, "cross_entropy", {}, backward=True)
    assert num == 2
    assert all(torch.equal(*pair) for pair in zip(session.optimizer.gradients, nonempty(before), strict=True))
    if not num_before:
        with pytest.raises(RequestError, match="without gradients"):
            session.step(ADAM)


def test_a_state_before_the_first_step_brings_no_moments(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    session = AdapterSession(base, plan)
    session.save(tmp_path, with_state=True)
    train(session, [examples[:4]])
    once = session.weights()
    session.load(tmp_path, with_optimizer=True)
    assert session.optimizer.moment_state() == {}
    train(session, [examples[:4]])
    assert apart(session.weights(), once) == 0.0


def test_numbers_that_are_not_finite_leave_the_weights_as_they_were(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample]
) -> None:
    session, row = AdapterSession(base, plan), as_datum(examples[0], 1.0)
    huge = {**row.inputs, "weights": np.full_like(row.inputs["weights"], 3e38)}
    before = session.weights()
    session.run([Datum(row.tokens, huge)], "cross_entropy", {}, backward=True)
    with pytest.raises(DivergedError):
        session.step(ADAM)
    assert apart(session.weights(), before) == 0.0
    assert not any(gradient.any() for gradient in nonempty(session.optimizer.gradients))


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": float("nan")}, {"beta1": 1.0}, {"clip_norm": -1.0}, {"epsilon": 0.0}]
)
def test_wrong_settings_of_a_step_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        AdamSettings(**({"learning_rate": 1.0} | wrong))


@pytest.fixture(scope="module")
def sampler_of(base: SharedBase, tiny_model: Path) -> Callable[[Plan], AdapterSampler]:
    made: dict[str, AdapterSampler] = {}

    def make(plan: Plan) -> AdapterSampler:
        if plan.hash not in made:
            made[plan.hash] = AdapterSampler(base, plan, ChatTemplate.load(tiny_model))
        return made[plan.hash]

    return make


PROMPT = tuple(range(5, 14))


def test_samples_are_scored_as_training_scores_them(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample], sampler_of: Callable[[Plan], AdapterSampler]
) -> None:
    session, sampler = AdapterSession(base, plan), sampler_of(plan)
    train(session, [examples[:8]])
    sampler.use("trained", session.weights)
    order = SampleOrder(PROMPT, num_samples=3, max_tokens=6, seed=7, stop_ids=frozenset(), scores_prompt=True)
    (result,) = sampler.sample([order])
    assert [len(one.tokens) for one in result.answers] == [6, 6, 6]
    assert len({one.tokens for one in result.answers}) > 1
    assert not any(one.has_stopped for one in nonempty(result.answers))
    for one in result.answers:
        ids = np.array([*PROMPT, *one.tokens], dtype=np.int32)
        datum = Datum(ids[:-1], {"target_tokens": ids[1:].astype(np.int64)})
        (trained,) = session.run([datum], "cross_entropy", {}, backward=False).log_probabilities
        np.testing.assert_allclose(one.log_probabilities, trained[len(PROMPT) - 1 :], atol=1e-4)
        assert result.prompt_log_probabilities is not None
        np.testing.assert_allclose(result.prompt_log_probabilities[1:], trained[: len(PROMPT) - 1], atol=1e-4)
        assert np.isnan(result.prompt_log_probabilities[0])
    assert sampler.sample([order])[0].answers == result.answers  # the same seed
    context_tokens = sampler.model.context_length_tokens
    parts = order.parts(len(PROMPT) + 6, context_tokens)
    assert [(one.first_sample, one.num_samples, one.scores_prompt) for one in parts] == [
        (0, 1, True),
        (1, 1, False),
        (2, 1, False),
    ]
    assert order.parts(10**6, context_tokens) == [order]
    cut = joined([sampler.sample([part])[0] for part in parts])
    assert [one.tokens for one in cut.answers] == [one.tokens for one in result.answers]
    assert cut.prompt_log_probabilities is not None
    # The base model answers by the same modules, and exactly as without an adapter.
    sampler.use("base", lambda: None)
    (plain,) = sampler.sample([SampleOrder(PROMPT, max_tokens=1, seed=7, scores_prompt=True, temperature=0.0)])
    new = AdapterSession(base, plan)
    ids = np.array(PROMPT, dtype=np.int32)
    (first,) = new.run(
        [Datum(ids[:-1], {"target_tokens": ids[1:].astype(np.int64)})], "cross_entropy", {}, backward=False
    ).log_probabilities
    assert plain.prompt_log_probabilities is not None
    np.testing.assert_allclose(plain.prompt_log_probabilities[1:], first, atol=1e-6)


def test_answers_that_nobody_wants_any_more_end(plan: Plan, sampler_of: Callable[[Plan], AdapterSampler]) -> None:
    sampler, asked = sampler_of(plan), iter(range(100))
    sampler.use("base", lambda: None)
    order = SampleOrder(PROMPT, max_tokens=20, seed=7, stop_ids=frozenset())
    (result,) = sampler.sample([order], lambda: next(asked) < 3)
    assert [len(one.tokens) for one in result.answers] == [4]


def test_answers_end_at_stop_tokens_and_texts_which_are_part_of_them(
    plan: Plan, sampler_of: Callable[[Plan], AdapterSampler], tiny_model: Path
) -> None:
    sampler = sampler_of(plan)
    sampler.use("base", lambda: None)
    free = SampleOrder(PROMPT, max_tokens=12, seed=3, stop_ids=frozenset())
    (whole,) = sampler.sample([free])[0].answers
    stop = whole.tokens[4]
    first = whole.tokens.index(stop)
    (cut,) = sampler.sample([SampleOrder(PROMPT, max_tokens=12, seed=3, stop_ids=frozenset({stop}))])[0].answers
    assert (cut.tokens, cut.has_stopped) == (whole.tokens[: first + 1], True)
    assert len(cut.log_probabilities) == len(cut.tokens)
    text = ChatTemplate.load(tiny_model).tokenizer.decode(whole.tokens[:3])
    (said,) = sampler.sample([SampleOrder(PROMPT, max_tokens=12, seed=3, stop_texts=(text,))])[0].answers
    assert said.has_stopped
    assert len(said.tokens) <= 3


def test_truncated_sampling_takes_likely_tokens_alone(plan: Plan, sampler_of: Callable[[Plan], AdapterSampler]) -> None:
    sampler = sampler_of(plan)
    sampler.use("base", lambda: None)
    (greedy,) = sampler.sample([SampleOrder(PROMPT, max_tokens=5, temperature=0.0, num_top=3, stop_ids=frozenset())])
    for limit in ({"top_k": 1}, {"top_p": 1e-6}):
        (one,) = sampler.sample([SampleOrder(PROMPT, max_tokens=5, seed=1, stop_ids=frozenset(), **limit)])  # type: ignore[arg-type]
        assert one.answers[0].tokens == greedy.answers[0].tokens
        assert one.answers[0].log_probabilities == pytest.approx([0.0] * 5)
    (answer,) = greedy.answers
    assert answer.top is not None
    assert answer.top.ids[:, 0].tolist() == list(answer.tokens)
    np.testing.assert_allclose(answer.top.log_probabilities[:, 0], answer.log_probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"prompt": ()}, RequestError),
        ({"prompt": (100_000,)}, RequestError),
        ({"max_tokens": 600}, OverlongError),
        ({"max_tokens": 0}, RequestError),
        ({"temperature": -1.0}, RequestError),
        ({"top_p": 0.0}, RequestError),
        ({"num_top": 50}, RequestError),
        ({"scores_prompt": True, "num_scored": 9}, RequestError),
    ],
)
def test_wrong_orders_are_refused(
    plan: Plan, sampler_of: Callable[[Plan], AdapterSampler], wrong: dict[str, object], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        sampler_of(plan).check(SampleOrder(**({"prompt": PROMPT} | wrong)))  # type: ignore[arg-type]


def test_a_saved_adapter_is_what_its_client_had(
    base: SharedBase, plan: Plan, examples: list[TokenisedExample], tmp_path: Path
) -> None:
    session = AdapterSession(base, plan)
    train(session, [examples[:4]])
    session.save(tmp_path, with_state=False)
    assert apart(read_adapter(tmp_path, AdapterSession(base, plan).model), session.weights()) == 0.0
    with pytest.raises(RequestError, match="their files are gone"):
        read_adapter(tmp_path / "elsewhere", session.model)
