import itertools
import json
import types

import polars as pl
import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError, WorkError
from luthier.core.records.monitoring import WatchSettings
from luthier.features.judges import service as judges
from luthier.features.judges.service import judged_by
from luthier.features.monitoring import service as monitoring
from luthier.ml.drift.traffic.files import SCHEMA
from luthier.platform.home.settings import Settings
from luthier.testing.fake_engine import FakeEngine

FRAME_AT = 1_000.0


def exchange(number: int, answer: str, *, at: float, **other):
    messages = json.dumps([{"role": "user", "content": f"Question {number}?"}])
    row = {"exchange_id": f"chatcmpl-{number}", "at": at, "messages": messages, "answer": answer, "status": 200}
    return {name: (row | other).get(name) for name in SCHEMA}


@pytest.fixture
def asked(monkeypatch):
    """Every question that the judge gets; it gives 1 to answers that are bad."""
    questions = []

    def answer(prompt):
        text = prompt.conversation.messages[-1].content
        questions.append(text)
        score = 1 if "bad answer" in text else 5
        return json.dumps({"relevance": score, "coherence": 5, "accuracy": score})

    monkeypatch.setattr(judges, "open_judge", lambda _context, name: FakeEngine(answer, name=name))
    return questions


def frame(num_before: int, num_now: int) -> pl.DataFrame:
    rows = [exchange(n, "good answer", at=n) for n in range(num_before)]
    rows += [exchange(10_000 + n, "bad answer", at=FRAME_AT + n) for n in range(num_now)]
    return pl.DataFrame(rows, schema=SCHEMA)


def test_answers_of_now_are_judged_beside_those_of_before(context, asked):
    settings = WatchSettings(judge="judge", num_judged=40)
    signals, cautions = judged_by(context, "default", settings, frame(200, 200), FRAME_AT, 30)
    states = {one.name: one.state for one in signals}
    assert states == {"judged_relevance": "changed", "judged_coherence": "steady", "judged_accuracy": "changed"}
    assert len(asked) == 80
    assert "not known to agree with people in relevance, coherence, accuracy" in cautions[0]
    assert all(nonempty(one.startswith("chatcmpl-1") for one in signals[0].examples))


def test_a_look_later_asks_mostly_of_the_same_answers(context, asked):
    settings = WatchSettings(judge="judge", num_judged=40)
    judged_by(context, "default", settings, frame(200, 200), FRAME_AT, 30)
    first = set(asked)
    asked.clear()
    judged_by(context, "default", settings, frame(200, 210), FRAME_AT, 30)
    assert len(set(asked) - first) < 10


def test_what_cannot_be_judged_is_not_asked_about(context, asked):
    rows = [
        exchange(1, "", at=1),
        exchange(2, "x" * 9_000, at=2),
        exchange(3, "failed", at=3, status=500),
        exchange(4, "no words", at=4, messages=None),
        exchange(5, "a tool asks", at=5, messages=json.dumps([{"role": "user", "content": None}])),
    ]
    settings = WatchSettings(judge="judge")
    signals, _ = judged_by(context, "default", settings, pl.DataFrame(rows, schema=SCHEMA), FRAME_AT, 30)
    assert not asked
    assert {one.state for one in signals} == {"unknown"}


def test_a_judge_that_cannot_be_asked_is_a_caution_and_no_failed_look(context, monkeypatch):
    def refuse(_prompt):
        raise WorkError("connection refused", expected="an answer", do="start it")

    monkeypatch.setattr(judges, "open_judge", lambda _context, name: FakeEngine(refuse, name=name))
    settings = WatchSettings(judge="http://localhost:1/v1#m")
    signals, cautions = judged_by(context, "default", settings, frame(50, 50), FRAME_AT, 30)
    # Unknown and not missing: what is missing counts as steady, and would close an alert.
    assert {one.name: one.state for one in signals} == dict.fromkeys(
        ("judged_relevance", "judged_coherence", "judged_accuracy"), "unknown"
    )
    assert "could not be asked" in cautions[0]


def test_a_judge_of_a_page_is_asked_only_while_it_is_the_configured_one(context, asked):
    address = "http://localhost:1/v1#m"
    settings = WatchSettings(judge=address, judge_is_configured=True, num_judged=20)
    for teacher in (None, "http://localhost:1/v1#another"):
        context.settings = Settings(home=context.home, teacher=teacher or "")
        signals, cautions = judged_by(context, "default", settings, frame(50, 50), FRAME_AT, 30)
        assert {one.state for one in signals} == {"unknown"}
        assert cautions == (f"The judge {address} could not be asked: the model {address} is no longer configured.",)
        canary = frame(50, 50).with_columns(pl.lit(value=True).alias("is_canary"))
        scores, cautions = judges.scores_of_sides(context, settings, canary)
        assert (scores, "no longer configured" in cautions[0]) == ({}, True)
    assert asked == []
    context.settings = Settings(home=context.home, teacher="http://localhost:1/v1/#m")
    judged_by(context, "default", settings, frame(50, 50), FRAME_AT, 30)
    assert len(asked) == 40


def test_a_slow_judge_of_another_host_is_asked_for_a_limited_time(context, asked, monkeypatch):
    clock = itertools.count(step=10.0)  # ten seconds for each group of answers
    monkeypatch.setattr(judges, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    settings = WatchSettings(judge="http://localhost:1/v1#m", num_judged=200)
    signals, cautions = judged_by(context, "default", settings, frame(200, 200), FRAME_AT, 30)
    num_each = 5 * judges._ASKED_AT_ONCE  # the limit of 60 s is looked at before each group
    assert len(asked) == 2 * num_each
    said = f"{2 * (200 - num_each)} sampled answers were not scored within 120 s. The next check asks about the rest."
    assert cautions[0] == f"http://localhost:1/v1#m is slow: {said}"
    assert {one.state for one in signals} == {"changed", "steady"}
    # One of this machine is not waited for: it computes, and is asked about all at once.
    asked.clear()
    own = settings.model_copy(update={"judge": "judge"})
    _, cautions = judged_by(context, "default", own, frame(200, 200), FRAME_AT, 30)
    assert len(asked) == 400
    assert not any("slow" in one for one in cautions)


def test_without_a_judge_nothing_is_asked_and_a_judge_that_cannot_be_is_refused(context, asked):
    assert judged_by(context, "default", WatchSettings(), frame(50, 50), FRAME_AT, 30) == ((), ())
    assert not asked
    with pytest.raises(RequestError):
        monitoring.set_model_settings(context, "default", "shop", WatchSettings(judge="http://localhost:1/v1"))


def test_both_sides_of_a_canary_are_rated_alike(context, asked):
    rows = [exchange(n, "bad answer" if n % 2 else "good answer", at=n, is_canary=bool(n % 2)) for n in range(100)]
    settings = WatchSettings(judge="judge", num_judged=20)
    scores, cautions = judges.scores_of_sides(context, settings, pl.DataFrame(rows, schema=SCHEMA))
    assert len(asked) == len(scores) == 40, "as many of each side"
    for name, score in nonempty(scores.items()):
        assert score == pytest.approx(1 / 3 if int(name.rpartition("-")[2]) % 2 else 1.0), (
            "relevance and accuracy are 1"
        )
    assert cautions == ()
    assert judges.scores_of_sides(context, WatchSettings(), pl.DataFrame(rows, schema=SCHEMA)) == ({}, ())
