"""A run on the GPU is the run on the CPU, to rounding; one that resumes is the one never stopped, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tests.ml.training.conftest import random_examples
from tests.vacuous import nonempty
from torch import Tensor

from luthier.core.events import StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.ml.data.tokenise.batches import StepSchedule
from luthier.ml.inference.accelerator import compute_exactly
from luthier.ml.training.checkpoint import CheckpointStore
from luthier.ml.training.equivalence import why_not_packed
from luthier.ml.training.loop import train
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objective_protocol import Unit
from luthier.ml.training.objectives.rules import load_objective

UNITS: list[Unit] = [(row,) for row in random_examples(24, seed=1)]
LENGTHS = [row.num_tokens for (row,) in UNITS]


def run(
    plan: Plan, model: TrainableModel, folder: Path, *, packs: bool = False, stop_after: int | None = None
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of steps and validations, and the trained weights at the end."""
    p, events, steps = plan.training, [], [0]
    assert not packs or why_not_packed(model) is None
    schedule = StepSchedule(
        LENGTHS,
        global_batch_size=p.global_batch_size,
        micro_batch_tokens=p.micro_batch_tokens,
        order=p.order,
        seed=p.seed,
        packed=LENGTHS if packs else None,
    )

    def stop() -> str | None:
        steps[0] += 1
        return "enough" if stop_after is not None and steps[0] > stop_after else None

    train(
        plan,
        model,
        load_objective(plan.objective),
        UNITS,
        [(UNITS[:6], (0,) if packs else ())],
        schedule,
        CheckpointStore(folder, 2),
        emit=events.append,
        stop_requested=stop,
        progress=SilentProgress(),
    )
    losses = [e.loss for e in events if isinstance(e, StepDone | ValidationDone)]
    trained = {n: w.detach().cpu().clone() for n, w in model.module.named_parameters() if w.requires_grad}
    return losses, trained


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_as_it_does_on_the_cpu(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    tmp_path: Path,
    device: str,
    method: str,
) -> None:
    losses: list[Sequence[float]] = []
    for place in ("cpu", device):
        plan = make_plan(method, device=place, num_steps=4)
        losses.append(run(plan, make_model(plan), tmp_path / str(len(losses)))[0])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


@pytest.mark.parametrize("method", ["lora", "full", "adalora", "dora"])
@pytest.mark.parametrize("packs", [False, True])
def test_a_run_that_resumes_has_the_same_bits(
    make_plan: Callable[..., Plan],
    make_model: Callable[..., TrainableModel],
    tmp_path: Path,
    device: str,
    method: str,
    packs: bool,
) -> None:
    """In bfloat16 with dropout, where an order of sums that changes would show at once."""
    compute_exactly(device)
    plan = make_plan(method, dropout=0.0 if method == "full" else 0.1, device=device, precision="bfloat16", num_steps=6)
    losses, whole = run(plan, make_model(plan), tmp_path / "whole", packs=packs)
    first, _ = run(plan, make_model(plan), tmp_path / "parts", packs=packs, stop_after=3)
    rest, parts = run(plan, make_model(plan), tmp_path / "parts", packs=packs)
    assert first + rest == losses
    assert all(nonempty(torch.equal(parts[name], tensor) for name, tensor in whole.items()))


def test_packed_and_padded_runs_learn_the_same(
    make_plan: Callable[..., Plan], make_model: Callable[..., TrainableModel], tmp_path: Path, device: str
) -> None:
    plan = make_plan("lora", device=device, num_steps=4)
    losses = []
    for packs in (False, True):
        losses.append(run(plan, make_model(plan), tmp_path / str(packs), packs=packs)[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
