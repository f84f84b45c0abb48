"""Canaries as the server looks at them: rolled back with a reason, kept, or not to be told."""

from __future__ import annotations

import json

import polars as pl
import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.ids import new_id
from luthier.core.records.deployment import CanaryRules
from luthier.core.records.traffic import Exchange, Feedback
from luthier.features.deployments import canary_release as canary_watch
from luthier.features.deployments import service as deployments
from luthier.features.deployments.canary_release import canary_frame
from luthier.features.traffic import service as traffic
from luthier.platform.audit_log import service as audit_log
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

ME = Caller()


@pytest.fixture
def canary(context: Context) -> tuple[str, str]:
    """Runs: who answers to `support`, and who is tried on half of its users."""
    before, tried = add_run(context, "a"), add_run(context, "b")
    deployments.deploy(context, ME, "support", before)
    deployments.deploy(context, ME, "support", tried, canary=0.5)
    return before, tried


def exchanges(context: Context, canary: tuple[str, str], num: int = 240, **of_canary: object) -> list[Exchange]:
    """One exchange of each of so many users since the canary began: of_canary changes those of the canary."""
    began = context.deployments.get(ME.project_id, "support").revision.created_at
    lines = []
    for number in range(num):
        is_canary = number % 2 == 1
        values: dict[str, object] = {
            "exchange_id": f"chatcmpl-{number}",
            "project_id": ME.project_id,
            "at": began + number,
            "model": "support",
            "target": canary[is_canary],
            "is_canary": is_canary,
            "user_digest": f"u{number}",
            "seconds": 1.0 + number % 7 / 10,
            "messages": ({"role": "user", "content": f"question {number}"},),
            "answer": f"answer {number}",
        }
        lines.append(Exchange.model_validate(values | (of_canary if is_canary else {})))
    for one in lines:
        traffic.record(context, one)
    return lines


def test_a_worse_canary_is_rolled_back_and_the_log_says_why(context: Context, canary: tuple[str, str]) -> None:
    exchanges(context, canary, answer="I'm sorry, but I can't help with that.")
    deployments.deploy(context, ME, "support", canary[1], canary=0.5)  # raised before: all of it has to go back
    exchanges(context, canary, answer="I'm sorry, but I can't help with that.")
    (seen,) = canary_watch.check_canaries(context)
    assert seen.state == "worse"
    assert seen.sentence.startswith("answers that refuse: 100.0% against 0.0%, +100.0 points")
    revision = context.deployments.get(ME.project_id, "support").revision
    assert revision.canary is None
    assert [share.target for share in revision.shares] == [canary[0]]
    assert seen.rolled_back_to == revision.number
    entry = next(e for e in audit_log.newest_entries(context, limit=9) if e.action == "canary.rolled_back")
    assert (entry.actor, entry.subject) == ("canary watch", "support")
    document = json.loads(entry.document)
    assert document["canary"] == canary[1]
    assert [one["name"] for one in document["signals"]] == ["refusals"]
    assert document["signals"][0]["p_value"] <= document["signals"][0]["level"]
    assert canary_watch.last_seen(context, ME, "support") == seen
    assert canary_watch.check_canaries(context) == []


def test_one_that_is_no_worse_stays(context: Context, canary: tuple[str, str]) -> None:
    exchanges(context, canary)
    (seen,) = canary_watch.check_canaries(context)
    assert (seen.state, seen.rolled_back_to, seen.num_canary, seen.num_rest) == ("holding", None, 112, 113)
    assert context.deployments.get(ME.project_id, "support").revision.canary == canary[1]


def test_between_two_looks_texts_are_left_alone(
    context: Context, canary: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanges(context, canary)
    (first,) = canary_watch.check_canaries(context)
    monkeypatch.setattr("luthier.ml.drift.canary.compare", lambda *_: pytest.fail("no new look"))
    (again,) = canary_watch.check_canaries(context)
    assert again.signals == first.signals
    assert again.num_seen == 240


def test_nothing_is_said_before_there_is_enough(context: Context, canary: tuple[str, str]) -> None:
    exchanges(context, canary, num=99, answer="I cannot help.")
    (seen,) = canary_watch.check_canaries(context)
    assert (seen.state, seen.look, seen.num_seen, seen.next_at) == ("too early", 0, 99, 100)


def test_thumbs_down_and_corrections_count(context: Context, canary: tuple[str, str]) -> None:
    for one in exchanges(context, canary):
        bad = {"thumb": "down"} if int(one.exchange_id.split("-")[1]) % 4 == 1 else {"correction": "Better so."}
        said = bad if one.is_canary else {"thumb": "up"}
        context.feedback.put(
            Feedback.model_validate(
                {
                    "feedback_id": new_id("fb"),
                    "project_id": ME.project_id,
                    "exchange_id": one.exchange_id,
                    "model": "support",
                    **said,
                }
            )
        )
    frame, _ = canary_frame(context, ME.project_id, "support", canary=canary[1], since=0)
    assert frame.select("is_canary", "bad").group_by("is_canary").mean().sort("is_canary")["bad"].to_list() == [
        0.0,
        1.0,
    ]
    # what is said after the look, by the clock of the exchanges, is left to the next one
    late = context.access.now() + 10_000
    assert frame["rated_at"].max() < late  # type: ignore[operator]


def test_what_a_client_asks_wrongly_is_no_failure_and_a_missing_model_is(
    context: Context, canary: tuple[str, str]
) -> None:
    exchanges(context, canary, num=40, status=400)
    frame, _ = canary_frame(context, ME.project_id, "support", canary=canary[1], since=0)
    assert (frame.height, frame["failed"].sum()) == (20, 0)
    began = context.deployments.get(ME.project_id, "support").revision.created_at
    gone = Exchange(
        exchange_id="x",
        project_id=ME.project_id,
        at=began,
        model="support",
        target=canary[1],
        is_canary=True,
        status=404,
    )
    traffic.record(context, gone)
    frame, _ = canary_frame(context, ME.project_id, "support", canary=canary[1], since=0)
    assert (frame.height, frame["failed"].sum()) == (21, 1)


def test_a_canary_that_fails_always_goes_before_the_first_look(context: Context, canary: tuple[str, str]) -> None:
    exchanges(context, canary, num=60, status=500, answer=None, messages=None)
    (seen,) = canary_watch.check_canaries(context)
    assert seen.look == 0
    assert "have all failed" in seen.sentence
    assert seen.rolled_back_to == 3


def test_who_names_no_user_is_counted_by_conversation_or_said_to_be_unknown(
    context: Context, canary: tuple[str, str]
) -> None:
    same = ({"role": "user", "content": "good morning"},)
    exchanges(context, canary, num=40, user_digest="", messages=same)
    frame, told = canary_frame(context, ME.project_id, "support", canary=canary[1], since=0)
    assert frame.filter(frame["is_canary"])["unit"].n_unique() == 1
    assert told.num_unnamed == 20
    seen = canary_watch.check_canary(context, ME, "support")
    assert any("name no user: each conversation" in one for one in seen.cautions)


def test_one_digest_on_both_sides_is_no_unit(context: Context, canary: tuple[str, str]) -> None:
    exchanges(context, canary, num=20, user_digest="u0")
    frame, _ = canary_frame(context, ME.project_id, "support", canary=canary[1], since=0)
    assert "user u0" not in frame["unit"].to_list()


def test_rules_may_only_tell(context: Context, canary: tuple[str, str]) -> None:
    canary_watch.set_rules(context, ME, "support", CanaryRules(rolls_back=False))
    exchanges(context, canary, answer="I'm sorry, but I can't help with that.")
    (seen,) = canary_watch.check_canaries(context)
    assert (seen.state, seen.rolled_back_to, seen.kept_because) == ("worse", None, "its rules only tell")
    assert context.deployments.get(ME.project_id, "support").revision.canary == canary[1]


def test_where_the_model_before_is_gone_it_is_said(context: Context, canary: tuple[str, str]) -> None:
    import shutil

    exchanges(context, canary, answer="I'm sorry, but I can't help with that.")
    shutil.rmtree(context.settings.run_folder(canary[0]))
    (seen,) = canary_watch.check_canaries(context)
    assert seen.state == "worse"
    assert "cannot be served" in seen.kept_because


def test_without_traffic_it_is_said_that_nobody_watches(context: Context, canary: tuple[str, str]) -> None:
    seen = canary_watch.check_canary(context, ME, "support")
    assert seen.state == "too early"
    assert "the policy of traffic is `off`" in seen.cautions[0]


def test_no_canary_and_no_deployment(context: Context) -> None:
    with pytest.raises(NotFoundError):
        canary_watch.check_canary(context, ME, "support")
    deployments.deploy(context, ME, "support", add_run(context, "a"))
    with pytest.raises(ConflictError, match="has no canary"):
        canary_watch.check_canary(context, ME, "support")
    assert canary_watch.check_canaries(context) == []


def test_both_sides_are_kept_with_the_check_and_renewed_between_looks(
    context: Context, canary: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanges(context, canary, seconds=3.0)
    canary_watch.set_rules(context, ME, "support", CanaryRules(rolls_back=False))
    seen = canary_watch.check_canary(context, ME, "support")
    found = {one.name: one for one in seen.measures}
    assert list(found) == ["failures", "seconds_p50", "seconds_p95", "thumbs", "score"], "no judge is set"
    assert found["seconds_p50"].finding == "worse"
    assert found["failures"].finding == "not distinguishable"
    assert found["seconds_p50"].canary is not None
    assert (found["seconds_p50"].canary.value, found["seconds_p50"].canary.num) == (3.0, 120)
    assert seen.summary.startswith("The canary is worse in: time to the end of the answer, median")
    assert canary_watch.last_seen(context, ME, "support") == seen


def test_a_judge_of_the_model_rates_both_sides(
    context: Context, canary: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.core.records.monitoring import SETTINGS_KIND, WatchSettings
    from luthier.features.judges import service as judges

    lines = exchanges(context, canary, num=60)
    document = WatchSettings(judge="http://localhost:1/v1#judge").model_dump_json()
    context.watches.put(ME.project_id, SETTINGS_KIND, "support", document)

    def scores(_context: object, settings: WatchSettings, frame: object) -> tuple[dict[str, float], tuple[str, ...]]:
        assert settings.judge is not None
        return {one.exchange_id: 0.9 if one.is_canary else 0.5 for one in lines}, ("The judge is not calibrated.",)

    monkeypatch.setattr(judges, "scores_of_sides", scores)
    seen = canary_watch.check_canary(context, ME, "support", may_roll_back=False)
    judged = next(one for one in seen.measures if one.name == "judge")
    assert judged.canary is not None
    assert judged.rest is not None
    assert (judged.canary.value, judged.rest.value, judged.finding) == (
        pytest.approx(0.9),
        pytest.approx(0.5),
        "better",
    )
    assert "The judge is not calibrated." in seen.cautions


def unnamed(context: Context, canary: tuple[str, str], number: int, words: str, *, fails: bool = False) -> None:
    """An exchange of nobody that is named, every second one of the canary, whose conversation begins with `words`."""
    began = context.deployments.get(ME.project_id, "support").revision.created_at
    exchange = Exchange(
        exchange_id=f"chatcmpl-{number}",
        project_id=ME.project_id,
        at=began + number,
        model="support",
        target=canary[number % 2],
        is_canary=number % 2 == 1,
        seconds=1.0,
        status=500 if fails else 200,
        messages=({"role": "user", "content": words},),
        answer="an answer",
    )
    traffic.record(context, exchange)


def test_conversations_that_begin_alike_on_both_sides_are_not_mixed(context: Context, canary: tuple[str, str]) -> None:
    # As of two keys: who asks is part of the draw, and not of the log.
    for number in range(40):
        unnamed(context, canary, number, "hello", fails=number % 2 == 1)
    frame, _ = canary_frame(context, ME.project_id, "support", canary=canary[1], since=0)
    sides = frame.group_by("unit").agg(pl.col("is_canary").n_unique())
    assert sides["is_canary"].to_list() == [1, 1], "a unit is on one side"
    seen = canary_watch.check_canary(context, ME, "support", may_roll_back=False)
    failures = next(one for one in seen.measures if one.name == "failures")
    assert failures.canary is not None
    assert failures.rest is not None
    assert (failures.canary.value, failures.rest.value) == (1.0, 0.0), "all of the canary's failed, none of the rest"


def test_figures_renewed_between_two_looks_count_conversations(
    context: Context, canary: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(240):
        unnamed(context, canary, number, f"conversation {number % 4}")
    seen = [canary_watch.check_canary(context, ME, "support", may_roll_back=False)]
    unnamed(context, canary, 240, "conversation 0")
    monkeypatch.setattr("luthier.ml.drift.canary.compare", lambda *_, **__: pytest.fail("no new look"))
    seen.append(canary_watch.check_canary(context, ME, "support", may_roll_back=False))
    figures = [next(one for one in each.measures if one.name == "seconds_p50") for each in seen]
    assert [each.num_seen for each in seen] == [240, 241]
    assert [(one.rest.num, one.rest.num_users) for one in figures if one.rest is not None] == [(120, 2), (121, 2)]


def test_looks_before_a_canary_was_raised_keep_their_part_of_the_error(
    context: Context, canary: tuple[str, str]
) -> None:
    exchanges(context, canary, num=110)
    first = canary_watch.check_canary(context, ME, "support")
    assert (first.look, first.looks_before) == (1, 0)
    deployments.deploy(context, ME, "support", canary[1], canary=0.6)
    exchanges(context, canary)
    raised = canary_watch.check_canary(context, ME, "support")
    # Looks at 84, 126, 189 and 284 exchanges; 426 are not there yet.
    assert (raised.look, raised.looks_before) == (4, 1)
    # A fifth for each signal of what the fifth look of all may spend.
    (level,) = {one.level for one in raised.signals}
    assert level == pytest.approx(0.05 / 5 * 4 / (8 * 9))
    again = canary_watch.check_canary(context, ME, "support")
    assert (again.look, again.looks_before) == (4, 1)
    deployments.rollback(context, ME, "support")
    deployments.rollback(context, ME, "support")
    deployments.deploy(context, ME, "support", canary[1], canary=0.5)
    assert canary_watch.check_canary(context, ME, "support").looks_before == 0, "it is tried from the beginning"


def test_a_name_that_is_given_again_has_no_rules_of_the_deployment_before(
    context: Context, canary: tuple[str, str]
) -> None:
    canary_watch.set_rules(context, ME, "support", CanaryRules(rolls_back=False))
    canary_watch.check_canary(context, ME, "support")
    assert canary_watch.last_seen(context, ME, "support") is not None
    deployments.remove(context, ME, "support")
    deployments.deploy(context, ME, "support", canary[0])
    assert canary_watch.rules_of(context, ME.project_id, "support") == CanaryRules(), "a worse one is rolled back"
    assert canary_watch.last_seen(context, ME, "support") is None


def test_a_worse_canary_is_rolled_back_before_its_judge_is_asked(
    context: Context, canary: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge may take minutes, in which the process may be ended."""
    from luthier.core.records.monitoring import SETTINGS_KIND, WatchSettings
    from luthier.features.judges import service as judges

    exchanges(context, canary, answer="I'm sorry, but I can't help with that.")
    document = WatchSettings(judge="http://localhost:1/v1#judge").model_dump_json()
    context.watches.put(ME.project_id, SETTINGS_KIND, "support", document)
    answering: list[str | None] = []

    def scores(*_: object) -> None:
        answering.append(context.deployments.get(ME.project_id, "support").revision.canary)
        raise KeyboardInterrupt

    monkeypatch.setattr(judges, "scores_of_sides", scores)
    with pytest.raises(KeyboardInterrupt):
        canary_watch.check_canaries(context)
    assert answering == [None]
    seen = canary_watch.last_seen(context, ME, "support")
    assert seen is not None
    assert (seen.state, seen.rolled_back_to) == ("worse", 3)


def test_an_unexpected_error_with_one_canary_is_kept_from_the_others(
    context: Context, canary: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deployments.deploy(context, ME, "sales", canary[0])
    deployments.deploy(context, ME, "sales", canary[1], canary=0.5)
    check = canary_watch.check_canary

    def fail_once(context: Context, caller: Caller, name: str) -> object:
        return 1 / 0 if name == "sales" else check(context, caller, name)

    monkeypatch.setattr(canary_watch, "check_canary", fail_once)
    assert [one.name for one in canary_watch.check_canaries(context)] == ["support"]
    assert "the canary of sales was not checked" in caplog.text
    assert "ZeroDivisionError" in caplog.text
