"""Why a run stopped, for programs: the cause travels with the sentence, and no sentence decides."""

from __future__ import annotations

import copy
import pickle

import pytest

from luthier.core.run import RunRecord, StopReason, TrainResult, cause_of
from luthier.testing.records import make_record, make_result


def test_a_reason_is_its_sentence_and_knows_its_cause() -> None:
    reason = StopReason("SIGTERM received", "interrupted")
    assert reason == "SIGTERM received"
    assert f"paused: {reason}" == "paused: SIGTERM received"
    assert (cause_of(reason), cause_of("SIGTERM received"), cause_of(None)) == ("interrupted", "unknown", "unknown")


@pytest.mark.parametrize("text", ["budget of 1 h: 1 h spent", "", "é: ü"])
def test_it_keeps_its_cause_on_the_way_to_another_process(text: str) -> None:
    reason = StopReason(text, "budget")
    for found in (pickle.loads(pickle.dumps(reason)), copy.deepcopy(reason), StopReason.from_line(reason.to_line())):
        assert (found, cause_of(found)) == (text, "budget")


def test_a_line_with_a_cause_that_is_not_known_here_is_unknown() -> None:
    assert cause_of(StopReason.from_line("of a later version: it stopped")) == "unknown"


def paused(**changes: object) -> RunRecord:
    result = make_result().model_copy(
        update={"status": "paused", "stopped_because": "budget of 1 h", "stop_cause": "budget"}
    )
    record = make_record(status="paused", result=result)
    return record.model_copy(update={"stopped_because": "budget of 1 h", **changes})


def test_a_record_has_the_cause_of_its_own_end_alone() -> None:
    assert paused().stop_cause == "budget"
    # What came after that pause has left no result: the old one says nothing of it.
    assert paused(status="failed", stopped_because="loss is nan").stop_cause == "unknown"
    assert paused(stopped_because="KeyboardInterrupt()").stop_cause == "unknown"
    assert paused(result=None).stop_cause == "unknown"


def test_results_of_before_causes_open_as_unknown() -> None:
    document = make_result().model_dump(mode="json")
    del document["stop_cause"]
    assert TrainResult.model_validate(document).stop_cause == "unknown"
