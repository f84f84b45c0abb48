"""Which repairs are done when."""

from __future__ import annotations

import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.ml.data.audit.base import about_file
from luthier.ml.data.audit.run import check_names
from luthier.ml.data.repair.request import ACTIONS, choose_actions


def test_every_repair_is_of_a_check_that_there_is() -> None:
    assert {action.check for action in ACTIONS.values()} <= set(check_names())
    assert all(action.because and action.reason for action in ACTIONS.values())


def test_what_may_be_meant_is_not_done_unasked() -> None:
    chosen = [action.id for action in choose_actions()]
    assert chosen == ["encoding", "personal_data", "secret", "schema", "empty_completion", "repeated_completion",
                      "exact_duplicate", "near_duplicate"]  # fmt: skip
    assert "contamination" in [action.id for action in choose_actions(has_held_out=True)]
    assert "contamination_all" not in [action.id for action in choose_actions(has_held_out=True)]


def test_only_and_skip() -> None:
    assert [a.id for a in choose_actions(["toxicity", "exact_duplicate"])] == ["exact_duplicate", "toxicity"]
    assert "secret" not in [a.id for a in choose_actions(skip=["secret"])]


@pytest.mark.parametrize(
    ("only", "skip", "kind", "message"),
    [
        (["duplicates"], None, NotFoundError, "no repair 'duplicates'"),
        (["few_examples"], None, NotFoundError, "no repair 'few_examples'"),
        (None, ["nothing"], NotFoundError, "no repair 'nothing'"),
        (["secret"], ["secret"], RequestError, "no repair is left"),
        (["contamination"], None, RequestError, "without a held-out file"),
        (["contamination_all"], None, RequestError, "without a held-out file"),
    ],
)
def test_what_cannot_be_asked(
    only: list[str] | None, skip: list[str] | None, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        choose_actions(only, skip)


def test_an_action_is_about_some_findings_of_its_check() -> None:
    def finding(check: str, **details: str):  # type: ignore[no-untyped-def]
        return about_file(check, "warning", message="m", fix="f", details=details)

    loops = ACTIONS["repeated_completion"]
    assert loops.is_about(finding("repeated_completion", sort="loop"))
    assert not loops.is_about(finding("repeated_completion", sort="stock_answer"))
    assert ACTIONS["contamination"].is_about(finding("contamination", kind="near"))
    assert not ACTIONS["contamination"].is_about(finding("contamination", kind="same_source"))
    assert ACTIONS["contamination_all"].is_about(finding("contamination", kind="same_source"))
    assert not ACTIONS["refusal"].is_about(finding("toxicity"))
