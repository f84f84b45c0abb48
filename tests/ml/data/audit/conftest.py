"""Tables to check, made from rows written in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.table import build_table


@pytest.fixture
def audited(jsonl: Callable[..., Path]) -> Callable[..., AuditRequest]:
    """Rows (objects, or lines as they are) -> a request to check them, without held-out file and model."""

    def make(*rows: dict[str, Any] | str) -> AuditRequest:
        return AuditRequest(build_table(jsonl(*rows)))

    return make


@pytest.fixture
def pairs(audited: Callable[..., AuditRequest]) -> Callable[..., AuditRequest]:
    """Completions -> a request on rows with these, each with a prompt of its own."""

    def make(*completions: str) -> AuditRequest:
        return audited(*({"prompt": f"question {at}", "completion": text} for at, text in enumerate(completions)))

    return make


@pytest.fixture(scope="session")
def empty_request(tmp_path_factory: pytest.TempPathFactory) -> AuditRequest:
    """A request on a file of one row, whose frame a test may replace."""
    path = tmp_path_factory.mktemp("audit") / "rows.jsonl"
    path.write_text('{"text": "one"}\n')
    return AuditRequest(build_table(path))
