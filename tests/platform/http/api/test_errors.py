"""Our errors as a client is told them, and whether it should ask again."""

from __future__ import annotations

import pytest

from luthier.core.errors import (
    BusyError,
    CheckpointError,
    DefectError,
    DivergedError,
    LuthierError,
    MemoryLimitError,
    ModelSourceError,
    RequestError,
    StorageFullError,
    UnreachableError,
    WorkError,
)
from luthier.platform.http.errors import as_api_error


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (ModelSourceError, 503),
        (CheckpointError, 503),
        (DivergedError, 503),
        (MemoryLimitError, 503),
        (DefectError, 500),
        (StorageFullError, 507),
    ],
)
def test_what_is_for_good_is_not_to_be_repeated(kind: type[LuthierError], status: int) -> None:
    told = as_api_error(kind("came", expected="expected", do="do"))
    assert told.status == status
    assert told.headers.get("x-should-retry") == "false"
    assert "Retry-After" not in told.headers


@pytest.mark.parametrize("kind", [WorkError, UnreachableError, BusyError])
def test_what_may_pass_says_when_to_ask_again(kind: type[LuthierError]) -> None:
    told = as_api_error(kind("came", expected="expected", do="do"))
    assert int(told.headers["Retry-After"]) >= 1
    assert "x-should-retry" not in told.headers


def test_a_wrong_request_says_neither() -> None:
    assert as_api_error(RequestError("came", expected="expected", do="do")).headers == {}
