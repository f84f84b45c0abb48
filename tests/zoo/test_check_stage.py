"""The check of a model and the walk of a family must not contradict one another."""

from __future__ import annotations

import pytest
from tests.zoo.check_stage import contradictions
from tests.zoo.walk import Outcome, Status

from luthier.features.model_checks.service import Check, CheckStatus


@pytest.mark.parametrize(
    ("walked", "checked", "is_same"),
    [
        ("works", "works", True),
        ("works", "refused", False),
        ("works", "not_run", False),
        ("refused", "refused", True),
        ("refused", "not_run", True),
        ("refused", "works", False),
        ("refused", "fault", False),
        ("wrong", "works", False),
        ("wrong", "wrong", True),
        ("raw exception", "works", False),
        ("raw exception", "fault", True),
    ],
)
def test_what_works_must_work_and_what_is_refused_be_refused(
    walked: Status, checked: CheckStatus, is_same: bool
) -> None:
    found = contradictions({"loss": Check(name="loss", status=checked)}, [Outcome("loss", walked, reason="so")])
    assert (found == []) is is_same
    assert all(line.startswith(f"loss: the check says {checked}, loss {walked}: so") for line in found)


def test_rows_are_held_against_the_same_kind() -> None:
    checks = {"rows: two turns": Check(name="rows: two turns", status="works")}
    assert contradictions(checks, [Outcome("row_two_turns", "refused")])
    assert not contradictions(checks, [Outcome("row_one_turn", "refused")])


def test_texts_need_no_plan_in_the_check_alone() -> None:
    checks = {"text": Check(name="text", status="works"), "plan": Check(name="plan", status="refused")}
    outcomes = [Outcome("plan", "refused"), Outcome("generate", "refused")]
    assert contradictions(checks, outcomes) == []
    assert contradictions(checks | {"plan": Check(name="plan", status="works")}, outcomes)


def test_the_check_must_not_say_a_larger_reach() -> None:
    def both(ours: float, theirs: float) -> list[str]:
        checks = {"reach": Check(name="reach", status="works", measures={"share_of_matrices": ours})}
        return contradictions(checks, [Outcome("reach", "works", measures={"share_of_matrices": theirs})])

    assert both(0.991, 0.99) == []
    assert both(0.5, 0.99) == []  # at a higher rank some matrices are left out
    assert both(1.0, 0.9) == ["reach: the check says 1.0000, the walk 0.9000"]
