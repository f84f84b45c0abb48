"""What the GPU tests share. Without a GPU all of them are skipped; the CPU can stand in to try the tests themselves.

LUTHIER_TEST_DEVICE=cpu runs them there, with the CPU's own attention and kernels: that proves the tests, not the GPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.ml.training.conftest import examples, make_model, make_plan  # noqa: F401 - fixtures

DEVICE = os.environ.get("LUTHIER_TEST_DEVICE", "cuda")
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lies in this folder where there is no GPU."""
    if DEVICE == "cpu" or torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is false")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As elsewhere, but with heads of 32: FlexAttention takes none below 16."""
    from luthier.testing.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", hidden=128)
