"""Every error says what came, what was expected and what to do, and the tree gives the exit code."""

from __future__ import annotations

import json

import pytest

from luthier.core import errors
from luthier.core.errors import DataError, LuthierError, PeerLostError, RequestError, RowProblem, WorkError

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, LuthierError)]


@pytest.mark.parametrize("kind", ALL)
def test_all_three_parts_stand_in_the_message(kind: type[LuthierError]) -> None:
    error = kind("found 3", expected="4", do="add one")
    assert str(error) == "found 3\n  expected: 4\n  what to do: add one"
    assert json.loads(json.dumps(error.as_json()))["type"] == kind.__name__


@pytest.mark.parametrize("kind", ALL)
def test_none_can_be_left_out(kind: type[LuthierError]) -> None:
    with pytest.raises(TypeError):
        kind("found 3")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ALL)
def test_exit_code_tells_a_wrong_request_from_failed_work(kind: type[LuthierError]) -> None:
    if issubclass(kind, RequestError):
        assert kind.exit_code == 2
    elif kind is PeerLostError:  # what a launcher may start again, and nothing else
        assert kind.exit_code == 75
    elif issubclass(kind, WorkError):
        assert kind.exit_code == 1


def test_many_problems_are_all_kept_and_few_are_shown() -> None:
    problems = [RowProblem("a.jsonl", n, "text", "''", "is empty") for n in range(1, 9)]
    error = DataError("8 rows are wrong", expected="text", do="fill it", problems=problems)
    assert "a.jsonl:5 field 'text' has '': is empty" in str(error)
    assert "a.jsonl:6" not in str(error)
    assert "and 3 more" in str(error)
    assert len(error.as_json()["problems"]) == 8
