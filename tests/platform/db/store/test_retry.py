"""Waiting for a database that restarts."""

from __future__ import annotations

import pytest

from luthier.core.errors import RequestError, UnreachableError
from luthier.platform.db.database import retry_unreachable


def test_it_asks_again_until_there_is_an_answer() -> None:
    asked = []

    def ask() -> int:
        asked.append(1)
        if len(asked) < 3:
            raise UnreachableError("gone", expected="an answer", do="wait")
        return len(asked)

    assert retry_unreachable(ask) == 3


def test_not_for_ever_and_not_for_what_waiting_does_not_mend() -> None:
    def gone() -> None:
        raise UnreachableError("gone", expected="an answer", do="wait")

    def wrong() -> None:
        raise RequestError("wrong", expected="right", do="correct it")

    with pytest.raises(UnreachableError):
        retry_unreachable(gone, max_seconds=0.05)
    with pytest.raises(RequestError):
        retry_unreachable(wrong)
