"""Loops compiled by Numba: the same functions as torch's operations, and not used where they are not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.ml.training.conftest import FixedSchedule, random_examples
from tests.vacuous import nonempty
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from luthier.core.events import Event, StepDone
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.training import fused_operations, kernels
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.kernels import FusedRmsNorm, FusedSwiGlu, RmsNorm, SwiGlu
from luthier.ml.training.loop import train
from luthier.ml.training.losses.cross_entropy import cross_entropy_sum, entropy_sum, token_log_probabilities
from luthier.ml.training.low_rank import Dropout
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objectives.rules import load_objective

MakePlan = Callable[..., Plan]
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""Of the largest entry; bfloat16 has 8 bits of mantissa, and plain operations round after each of several."""


@pytest.fixture
def _not_proved_yet() -> Iterator[None]:
    fused_operations.why_not.cache_clear()
    yield
    fused_operations.why_not.cache_clear()


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_near(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert (one.double() - other.double()).abs().max() <= TOLERANCE[one.dtype] * other.double().abs().max()


def outputs_and_gradients(function: Any, inputs: list[Tensor], *more: Any) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = function.apply(*inputs, *more)
    out = out[0] if isinstance(out, tuple) else out
    grad = drawn(*out.shape, dtype=out.dtype, seed=9)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@BOTH
@pytest.mark.parametrize("shape", [(1, 3), (3, 5), (2, 7, 64), (5, 1000)])
def test_norm_and_its_gradients_are_those_of_the_plain_function(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [drawn(*shape, dtype=dtype), drawn(shape[-1], dtype=dtype, seed=1)]
    plain, fused = (outputs_and_gradients(norm, inputs, 1e-5) for norm in (RmsNorm, FusedRmsNorm))
    for one, other in zip(nonempty(fused), plain, strict=True):
        assert_near(one, other)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 7, 64), (5, 1000)])
def test_gate_and_its_gradients_are_those_of_the_plain_function(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [4.0 * drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=1)]
    plain, fused = (outputs_and_gradients(gate, inputs) for gate in (SwiGlu, FusedSwiGlu))
    for one, other in zip(nonempty(fused), plain, strict=True):
        assert_near(one, other)


def test_a_gate_of_any_size_is_computed() -> None:
    """exp is held at its ends: nothing becomes NaN, and what vanishes is 0."""
    gate = torch.tensor([-1e30, -200.0, -88.0, -87.0, 0.0, 87.0, 200.0, 1e30])
    found = fused_operations.swiglu(gate, torch.ones(8))
    assert torch.allclose(found, F.silu(gate), rtol=1e-6, atol=1e-30)


@BOTH
@pytest.mark.parametrize("count", [1, 3, 4, 4095, 4096, 4097, 10_000])
@pytest.mark.parametrize("probability", [0.1, 0.5, 1e-9])
def test_dropout_is_the_plain_one_to_the_bit(count: int, probability: float, dtype: torch.dtype) -> None:
    x, part = drawn(count, dtype=dtype), drawn(count, dtype=dtype, seed=1)
    plain, fused = Dropout(probability, 77), Dropout(probability, 77, numba_kernels=True)
    assert torch.equal(fused.of(x), plain.of(x))
    assert torch.equal(fused.add_of_(x.clone(), part), plain.add_of_(x.clone(), part))


def test_random_words_are_splitmix64() -> None:
    """Vigna's reference sequence of seed 1234567 (prng.di.unimi.it/splitmix64.c), as other libraries test it."""
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert fused_operations.random_words(1234567, 5).tolist() == words


@BOTH
def test_cross_entropy_and_its_gradient_are_those_of_the_plain_function(dtype: torch.dtype) -> None:
    hidden, head = drawn(37, 16, dtype=dtype), drawn(301, 16, dtype=dtype, seed=1).requires_grad_()
    targets = torch.randint(301, (37,), generator=torch.Generator().manual_seed(2))
    targets[5] = int((hidden[5] @ head.detach().t()).argmax())  # one that is right
    found = []
    for fused in (True, False):
        rows = hidden.clone().requires_grad_()
        total, correct = cross_entropy_sum(rows, head, targets, chunk=16, numba_kernels=fused)
        found.append((total, correct, *torch.autograd.grad(total, (rows, head))))
    (total, correct, *grads), (plain, plain_correct, *plain_grads) = found
    assert float(total.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert int(correct) == int(plain_correct) >= 1
    for one, other in zip(nonempty(grads), plain_grads, strict=True):
        assert_near(one, other)


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_entropies_and_gradients_are_those_of_the_plain_functions(
    dtype: torch.dtype, temperature: float
) -> None:
    hidden, head = drawn(37, 16, dtype=dtype), drawn(301, 16, dtype=dtype, seed=1).requires_grad_()
    targets = torch.randint(301, (37,), generator=torch.Generator().manual_seed(2))
    targets[:2] = torch.tensor([0, 300])
    found = []
    for fused in (True, False):
        rows = hidden.clone().requires_grad_()
        values = token_log_probabilities(rows, head, targets, 16, temperature, numba_kernels=fused)
        grads = torch.autograd.grad(values, (rows, head), drawn(37, dtype=torch.float32, seed=3))
        entropy = entropy_sum(hidden, head.detach(), temperature, 16, numba_kernels=fused)
        found.append((values.detach(), entropy, *grads))
    for one, other in zip(nonempty(found[0][:2]), found[1][:2], strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(nonempty(found[0][2:]), found[1][2:], strict=True):
        assert_near(one, other)


def test_an_impossible_token_has_no_part_in_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, float("-inf")], [5.0, float("-inf"), float("-inf")]])
    assert fused_operations.entropies(logits, 1.0).tolist() == pytest.approx([0.693147, 0.0], abs=1e-5)


def test_largest_logits_of_one_size_count_as_right_and_infinite_ones_end_in_nan() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [-5.0, -5.0, -9.0], [0.0, float("inf"), 0.0]])
    losses, correct = fused_operations.cross_entropy_(logits, torch.tensor([2, 0, 1]), needs_gradient=False)
    assert correct.tolist()[:2] == [True, True]
    assert losses[:2].tolist() == pytest.approx([0.7586, 0.7022], abs=1e-4)
    assert losses[2].isnan()


@BOTH
def test_a_nan_reaches_every_result(dtype: torch.dtype) -> None:
    x = drawn(4, 40, dtype=dtype)
    x[2, 7] = torch.nan
    other = drawn(4, 40, dtype=dtype, seed=1)
    losses, _ = fused_operations.cross_entropy_(x.clone(), torch.zeros(4, dtype=torch.int64), needs_gradient=False)
    found = [
        fused_operations.rms_norm(x, other[0].clone(), 1e-5)[0],
        fused_operations.swiglu(x, other),
        fused_operations.swiglu_backward(other, x, other)[0],
        fused_operations.dropout(x, 1, 32_768),
        fused_operations.add_dropout_(other.clone(), x, 1, 32_768),
        losses[:, None],
    ]
    for one in found:
        assert one.isnan().any(1).tolist() == [False, False, True, False]


@BOTH
def test_they_apply_to_contiguous_numbers_of_one_type_on_the_cpu(dtype: torch.dtype) -> None:
    x = drawn(4, 6, dtype=dtype)
    assert fused_operations.why_not(dtype) is None
    assert fused_operations.applies(x, x)
    assert not fused_operations.applies(x.t())
    assert not fused_operations.applies(x, x.double())
    assert not fused_operations.applies(x.double())
    assert not fused_operations.applies(x.to("meta"))
    assert fused_operations.applies(torch.nn.Parameter(x))
    with FakeTensorMode():
        assert not fused_operations.applies(torch.ones(3, dtype=dtype))


@pytest.mark.usefixtures("_not_proved_yet")
def test_a_loop_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from luthier.ml.training import numba_kernels

    right = numba_kernels.swiglu

    def wrong(gate: Any, up: Any, out: Any) -> None:
        right(gate, up, out)
        out[3] *= 1.01

    monkeypatch.setattr(numba_kernels, "swiglu", wrong)
    with caplog.at_level(logging.WARNING):
        assert not fused_operations.applies(torch.ones(3))
    assert fused_operations.why_not(torch.float32) == "gate differ from the plain operations"
    assert "so that training is slower" in caplog.text


@pytest.mark.usefixtures("_not_proved_yet")
def test_a_compiler_that_fails_leaves_the_plain_operations(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    from luthier.ml.training import numba_kernels

    monkeypatch.setattr(numba_kernels, "rms_norm", broken)
    assert fused_operations.why_not(torch.float32) == "RuntimeError: no such instruction"
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    assert set(kernels.install(model, with_numba=True)) == {"LlamaRMSNorm", "LlamaMLP"}


@pytest.mark.usefixtures("_not_proved_yet")
def test_without_numba_the_plain_operations_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_operations, "has_numba", lambda: False)
    assert fused_operations.why_not(torch.bfloat16) == "numba is not installed"
    x = torch.ones(9, dtype=torch.bfloat16)
    assert torch.equal(Dropout(0.5, 3, numba_kernels=True).of(x), Dropout(0.5, 3).of(x))


def trained(plan: Plan, folder: Path, *, kill_at: int = 0) -> tuple[dict[str, Tensor], list[float], TrainableModel]:
    """Weights, losses and the model of a run; `kill_at`: the step behind which it ends as if killed."""
    model, losses = TrainableModel.load(plan), []

    def emit(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)
            if event.step == kill_at:
                raise KeyboardInterrupt

    rows, validation = random_examples(12, seed=1), random_examples(3, seed=2)
    train(
        plan,
        model,
        load_objective(plan.objective),
        [(e,) for e in rows],
        [([(e,) for e in validation], ())],
        FixedSchedule(12, size=4, micro=2),  # type: ignore[arg-type]
        CheckpointStore(folder, 9),
        emit=emit,
        stop_requested=lambda: None,
        progress=SilentProgress(),
    )
    weights = {n: p.detach().clone() for n, p in model.module.named_parameters() if p.requires_grad}
    return weights, losses, model


@pytest.mark.parametrize(("method", "rate"), [("lora", 1e-2), ("dora", 1e-2), ("full", 1e-3)])
def test_a_run_learns_what_it_learns_without_them(
    make_plan: MakePlan, tmp_path: Path, method: str, rate: float
) -> None:
    plain, fused = (make_plan(method, 0.1, learning_rate=rate, numba_kernels=does) for does in (False, True))
    _, expected, model = trained(plain, tmp_path / "plain")
    assert not any("numba" in name for name in nonempty(model.replaced))
    _, losses, model = trained(fused, tmp_path / "fused")
    assert all(name.endswith(" (numba)") for name in nonempty(model.replaced))
    assert losses == pytest.approx(nonempty(expected), rel=2e-4)


def test_killed_and_resumed_it_ends_in_the_undisturbed_bytes(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan("lora", 0.1, precision="bfloat16", numba_kernels=True)
    undisturbed, _, _ = trained(plan, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        trained(plan, tmp_path / "other", kill_at=3)
    resumed, _, _ = trained(plan, tmp_path / "other")
    for name, weight in nonempty(undisturbed.items()):
        assert torch.equal(weight, resumed[name]), name
