"""cuBLAS is told to be deterministic before torch is loaded, unless the user wants otherwise."""

from __future__ import annotations

import os

import pytest

from luthier.core.system.process_setup import keep_products_exact


@pytest.mark.parametrize(("set_before", "expected"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_the_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch, set_before: str | None, expected: str) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", set_before or "")
    if set_before is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    keep_products_exact()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == expected
