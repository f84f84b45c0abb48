"""On an accelerator torch is asked for deterministic operations; on a CPU nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from luthier.ml.inference.accelerator import compute_exactly


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
