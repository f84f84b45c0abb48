"""On an accelerator torch is asked for deterministic operations; on a CPU nothing is changed. Seeds of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from luthier.core.plan import Plan
from luthier.ml.inference.accelerator import compute_exactly
from luthier.ml.training.step import seed_random


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(("device", "exact"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_what_torch_is_asked_for(device: str, exact: bool) -> None:
    compute_exactly(device)
    assert torch.are_deterministic_algorithms_enabled() is exact
    assert torch.is_deterministic_algorithms_warn_only_enabled() is exact
    assert torch.utils.deterministic.fill_uninitialized_memory is not exact  # type: ignore[attr-defined]


NUMBER = 3 * 1_000_003 + 2 * 7_654_321_987_657 + 5
"""Of seed 3, rank 2 and step 5 (`seed_random`)."""


def test_on_a_cpu_a_step_draws_what_torch_draws_and_seeds_no_other_device(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, drawn = make_plan(seed=3), torch.rand(4, generator=torch.Generator().manual_seed(NUMBER))
    for module in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(module, "manual_seed_all", lambda _: pytest.fail("a device that is not in use is seeded"))
    seed_random(plan, 5, "cpu", rank=2)
    assert torch.equal(torch.rand(4), drawn)


def test_on_an_accelerator_a_step_seeds_every_device(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    seed_random(make_plan(seed=3), 5, "cuda:1", rank=2)
    assert seeds == [NUMBER]
