"""All signals together: on steady traffic, after known changes, and where too little is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from tests.vacuous import nonempty

from luthier.core.records.monitoring import WatchReport
from luthier.core.records.traffic import answer_of_calls
from luthier.features.monitoring.service import text_checks
from luthier.ml.drift.signals.columns import Checks, columns_of, last_words, read_rows
from luthier.ml.drift.signals.signal_report import Compared, Watched, number_of_signals, watch_rows
from luthier.ml.drift.signals.training import NAMES, Profile, training_signals
from luthier.ml.drift.thresholds import stretch_begins
from luthier.platform.home.context import Context
from luthier.testing.traffic import BEGINS, Change, last_prompts, made_traffic, with_prompts

DAY = 86_400.0


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checks]:
    with Context.open(tmp_path_factory.mktemp("home")) as context:
        # The language of made words cannot be told, and to try takes half of the time.
        yield replace(text_checks(context), languages=lambda texts: [None] * len(texts))


def look(frame: pl.DataFrame, checks: Checks, compared: Compared | None = None, days: float = 3.0) -> Watched:
    until = float(frame["at"].max() or BEGINS) + 1  # type: ignore[arg-type]
    return watch_rows(
        frame,
        project_id="default",
        model="shop",
        since=until - days * DAY,
        until=until,
        checks=checks,
        compared=compared or Compared(),
    )


def states(report: WatchReport) -> dict[str, str]:
    return {one.name: one.state for one in report.signals}


def test_steady_traffic_with_its_rhythm_changes_nothing(checks: Checks) -> None:
    trained = made_traffic(7, 8.0, seed=50)
    profile = Profile(last_prompts(trained), trained["answer"].to_list())
    found = look(made_traffic(16, 6.0, seed=2), checks, Compared(profile))
    assert "changed" not in states(found.report).values()
    assert states(found.report)["answer_refusals"] == "steady"
    assert states(found.report)["prompt_words"] == "steady"
    assert states(found.report)["latency_p95_seconds"] == "steady"
    assert states(found.report)["prompt_length_psi"] == "steady"
    assert states(found.report)["cost_usd"] == "unknown"
    assert len(found.report.signals) == number_of_signals(Compared(profile))


def test_a_fifth_of_a_new_topic_is_told_within_500_requests(checks: Checks) -> None:
    seed = 3
    num = made_traffic(16, 6.0, seed=seed).height
    change = Change(at=num - 500, moved=0.2, topic=True)
    frame = made_traffic(16, 6.0, seed=seed, change=change)
    found = look(frame, checks)
    signal = found.report.signal("prompt_words")
    assert signal is not None
    assert signal.state == "changed"
    assert signal.since is not None
    assert abs(signal.since - frame["at"][change.at]) < DAY
    assert signal.p_value is not None
    assert signal.p_value < 0.05
    of_topic = {name for name, prompt in zip(frame["exchange_id"], last_prompts(frame), strict=True) if "ai" in prompt}
    assert set(signal.examples) & of_topic
    assert signal.do
    assert states(found.report)["answer_refusals"] != "changed"


def test_more_refusals_and_slower_answers_are_told_each_by_its_signal(checks: Checks) -> None:
    num = made_traffic(16, 6.0, seed=5).height
    frame = made_traffic(16, 6.0, seed=5, change=Change(at=num - 500, moved=0.15, refusals=True, slower=2.0))
    found = look(frame, checks, days=2.0).report
    assert states(found)["answer_refusals"] == "changed"
    assert states(found)["latency_p50_seconds"] == "changed"
    refusals = found.signal("answer_refusals")
    assert refusals is not None
    assert refusals.value is not None
    assert refusals.low is not None
    assert refusals.reference is not None
    assert refusals.low > refusals.reference
    refused = set(frame.filter(pl.col("answer").str.starts_with("I'm sorry"))["exchange_id"])
    assert set(refusals.examples) <= refused


def test_a_new_normal_holds_for_signals_of_hours_within_the_window(checks: Checks) -> None:
    num = made_traffic(16, 6.0, seed=5).height
    frame = made_traffic(16, 6.0, seed=5, change=Change(at=num - 500, moved=0.15, slower=2.0))
    until, normal = float(frame["at"][-1]) + 1, float(frame["at"][num - 500])
    since = normal - 2 * DAY
    found = [
        watch_rows(
            frame,
            project_id="default",
            model="shop",
            since=since,
            until=until,
            checks=checks,
            compared=Compared(),
            normal_since=normal_since,
        )
        for normal_since in (0.0, normal)
    ]
    assert [states(one.report)["latency_p50_seconds"] for one in found] == ["changed", "unknown"]
    assert found[0].report.num_exchanges == found[1].report.num_exchanges, "all of the window is shown"


def test_too_little_is_unknown_and_never_steady(checks: Checks) -> None:
    few = look(made_traffic(4, 3.0, seed=6), checks).report
    assert set(states(few).values()) == {"unknown"}
    assert all(nonempty(one.sentence.startswith("Unknown") for one in few.signals))
    none = look(made_traffic(4, 3.0, seed=6).clear(), checks).report
    assert set(states(none).values()) == {"unknown"}
    assert none.num_exchanges == 0
    alone = look(made_traffic(2, 30.0, seed=7), checks, days=3.0).report
    assert "steady" not in states(alone).values()
    assert any("nothing to compare with" in one for one in alone.cautions)


def test_without_words_nothing_is_said_of_words(checks: Checks) -> None:
    frame = made_traffic(16, 6.0, seed=8).with_columns(messages=pl.lit(None, pl.String), answer=pl.lit(None, pl.String))
    found = look(frame, checks, Compared(Profile(["a b"] * 300, ["c"] * 300), {"women": "she"})).report
    for name in ("prompt_words", "prompt_topic", "answer_refusals", "answer_json", *NAMES, "bias_women_answer_toxic"):
        signal = found.signal(name)
        assert signal is not None
        assert signal.state == "unknown"
        assert "words" in signal.sentence
    assert states(found)["latency_p50_seconds"] == "steady"
    assert found.num_with_text == 0


def test_calls_of_tools_are_no_answers_to_read_and_their_arguments_are_searched(checks: Checks) -> None:
    """As text each would be an answer in JSON, and the share of calls would look like a drift of the format."""
    function = {"name": "send", "arguments": '{"to": "ann@firm-of-ann.de"}'}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    frame = made_traffic(2, 30.0, seed=7)
    silent = read_rows(frame.with_columns(answer=pl.lit(answer_of_calls(calls))), 0.0)
    speaking = read_rows(frame.with_columns(answer=pl.lit(answer_of_calls(calls, '["it is sent"]'))), 0.0)
    assert silent.is_tested.any()
    found = [{one.name: one for one in columns_of(rows, checks)} for rows in (silent, speaking)]
    for name in ("answer_json", "answer_refusals"):
        assert np.isnan(found[0][name].values).all()
        assert found[0][name].lacks == "all answers only call tools"
    assert set(found[1]["answer_json"].values[speaking.is_tested]) == {1.0}
    assert set(found[0]["answer_personal_data"].values[silent.is_tested]) == {1.0}


def test_prompts_are_compared_with_training_where_all_answers_only_call_tools(checks: Checks) -> None:
    trained = made_traffic(7, 8.0, seed=50)
    calls = answer_of_calls([{"id": "call_1", "type": "function", "function": {"name": "price", "arguments": "{}"}}])
    frame = made_traffic(16, 6.0, seed=2).with_columns(answer=pl.lit(calls))
    found = states(look(frame, checks, Compared(Profile(last_prompts(trained), trained["answer"].to_list()))).report)
    assert (found["prompt_length_psi"], found["answer_length_psi"]) == ("steady", "unknown")


def test_one_user_who_asks_the_same_a_hundred_times_is_one_event(checks: Checks) -> None:
    frame = made_traffic(16, 6.0, seed=9)
    late = frame["at"].max()
    again = pl.concat([frame[-1:]] * 150).with_columns(
        exchange_id=pl.format("again-{}", pl.int_range(150)), at=pl.lit(late), user_digest=pl.lit("one")
    )
    prompts = [*last_prompts(frame), *["zebra zebra unheard"] * 150]
    found = look(with_prompts(pl.concat([frame, again]), prompts), checks).report
    assert "changed" not in states(found).values()
    assert any("are in no test" in one for one in found.cautions)


def test_clocks_that_jump_and_times_that_are_none_do_no_harm(checks: Checks) -> None:
    frame = made_traffic(16, 6.0, seed=10)
    wrong = frame[:60].with_columns(
        exchange_id=pl.format("wrong-{}", pl.int_range(60)),
        at=pl.when(pl.int_range(60) < 20).then(float("nan")).when(pl.int_range(60) < 40).then(-5e9).otherwise(0.0),
    )
    until = float(frame["at"].max()) + 1  # type: ignore[arg-type]
    found = watch_rows(
        pl.concat([frame, wrong, frame[:5].with_columns(at=pl.lit(until + 1e9))]).sample(
            fraction=1.0, shuffle=True, seed=1
        ),
        project_id="default",
        model="shop",
        since=until - 3 * DAY,
        until=until,
        checks=checks,
        compared=Compared(),
    )
    plain = look(frame, checks)
    assert [one.state for one in found.report.signals] == [one.state for one in plain.report.signals]
    assert len(found.rows.at) == frame.height + 40


def test_traffic_unlike_the_training_data_is_told_against_it_alone(checks: Checks) -> None:
    trained = made_traffic(7, 8.0, seed=51)
    profile = Profile([f"{one} {one} {one} {one}" for one in last_prompts(trained)], trained["answer"].to_list())
    watched = look(made_traffic(16, 6.0, seed=11), checks, Compared(profile))
    found = states(watched.report)
    assert found["prompt_length_psi"] == "changed"
    assert found["prompt_tokens"] == "steady"
    assert found["answer_length_psi"] == "steady"
    # Rows of reinforcement may have no answers: their prompts are compared all the same.
    signals = training_signals(watched.rows, replace(profile, answers=[]), checks, watched.num_signals)
    assert {one.name: one.state for one in signals} == {
        name: "unknown" if name == "answer_length_psi" else found[name] for name in NAMES
    }


def test_a_group_that_is_refused_more_often_is_told(checks: Checks) -> None:
    frame = made_traffic(12, 14.0, seed=12)
    is_group = pl.Series([place % 3 == 0 for place in range(frame.height)])
    prompts = [f"she {one}" if group else one for one, group in zip(last_prompts(frame), is_group, strict=True)]
    compared = Compared(groups={"women": r"\bshe\b"})
    fair = with_prompts(frame, prompts)
    assert states(look(fair, checks, compared).report)["bias_women_answer_refusals"] in ("steady", "unknown")
    refused = pl.when(is_group & (pl.int_range(pl.len()) % 2 == 0)).then(pl.lit("I'm sorry, but I cannot help."))
    unfair = fair.with_columns(answer=refused.otherwise(pl.col("answer")))
    signal = look(unfair, checks, compared, days=6.0).report.signal("bias_women_answer_refusals")
    assert signal is not None
    assert signal.state == "changed"
    assert signal.value is not None
    assert signal.value > 0.3
    assert signal.examples


def test_a_stretch_stays_for_fourteen_days_and_a_new_normal_cuts_it() -> None:
    until = BEGINS + 20 * DAY
    assert stretch_begins(until) == stretch_begins(until + 7 * DAY) == BEGINS
    assert stretch_begins(BEGINS + 28 * DAY) == BEGINS + 14 * DAY
    assert stretch_begins(until, BEGINS + 3 * DAY) == BEGINS + 3 * DAY


def test_what_the_user_said_last_is_read_from_any_messages() -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "3"},
    ]
    assert last_words(json.dumps(turns)) == "3"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}]}]
    assert last_words(json.dumps(parts)) == "a\nb"
    for odd in ("no json", "[]", "{}", '[{"role": "user", "content": 3}]', "[1, null]"):
        assert last_words(odd) is None


def test_of_a_busy_hour_500_are_tested(checks: Checks) -> None:
    frame = made_traffic(1, 800.0, seed=13)
    rows = read_rows(frame.with_columns(user_digest=pl.lit("")), 0.0)
    assert max(rows.is_tested[rows.hours == hour].sum() for hour in set(rows.hours.tolist())) == 500
    assert checks.words([]).counts.shape == (0,)
