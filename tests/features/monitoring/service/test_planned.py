"""What will be watched: thresholds, and what is missing, by the index of the traffic alone."""

from __future__ import annotations

import pytest

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.records.monitoring import AlertSettings, WatchSettings
from luthier.core.records.traffic import TrafficFile, TrafficPolicy
from luthier.features.monitoring.planned import planned_signals, traffic_counts
from luthier.features.monitoring.service import set_model_settings
from luthier.features.traffic.policy import set_traffic_policy
from luthier.features.traffic.service import hour_of
from luthier.platform.home.context import Context

MODEL, SETTINGS = "shop-bot", AlertSettings(window_hours=24)


def with_traffic(context: Context, by_hours_ago: dict[int, int]) -> None:
    now = context.access.now()
    for ago, num in by_hours_ago.items():
        at = now - 3600.0 * ago
        file = TrafficFile(
            project_id=DEFAULT_PROJECT,
            day=hour_of(at)[:10],
            file=f"file-{ago}",
            num_exchanges=num,
            num_bytes=1,
            first_at=at,
            last_at=at,
            num_by_hour={MODEL: {hour_of(at): num}, "other": {hour_of(at): 1_000}},
        )
        context.traffic.replace([], [file])


def test_without_traffic_every_signal_says_what_it_needs(context: Context) -> None:
    set_traffic_policy(context, Caller(), TrafficPolicy(keep="full"))
    counts, found = planned_signals(context, DEFAULT_PROJECT, MODEL, SETTINGS)
    assert (counts.num_now, counts.num_before) == (0, 0)
    states = {one.titles.split(",")[0]: one.missing for one in found}
    assert states["Latency"] == "needs 6 more hours with 5 answers now and 96 more before"
    assert states["Failed and refused requests"] == "needs 200 more answers in the last 24 hours and 500 more before"
    assert states["Scores of a judge"] == "no judge is set"
    assert [one.is_off for one in found] == [False, False, False, False, True, True, True]


def test_what_is_missing_shrinks_with_the_traffic_of_the_model_alone(context: Context) -> None:
    set_traffic_policy(context, Caller(), TrafficPolicy(keep="full"))
    with_traffic(context, {1: 100, 2: 40, 30: 300, 31: 4})
    counts = traffic_counts(context, DEFAULT_PROJECT, MODEL, SETTINGS)
    assert (counts.num_now, counts.num_before, counts.hours_now, counts.hours_before) == (140, 304, 2, 1)
    found = planned_signals(context, DEFAULT_PROJECT, MODEL, SETTINGS)[1]
    assert found[1].missing == "needs 60 more answers in the last 24 hours and 196 more before"
    assert found[3].missing == "needs 60 more answers"
    with_traffic(context, {3: 60, 32: 196})
    found = planned_signals(context, DEFAULT_PROJECT, MODEL, SETTINGS)[1]
    assert found[1].missing == ""
    late = traffic_counts(context, DEFAULT_PROJECT, MODEL, SETTINGS, normal_since=context.access.now() - 3600 * 26)
    assert late.num_before == 0, "what was before `--normal-now` is not compared"


@pytest.mark.parametrize("keep", ["metadata", "off"])
def test_without_texts_their_signals_are_off(context: Context, keep: str) -> None:
    set_traffic_policy(context, Caller(), TrafficPolicy(keep=keep))  # type: ignore[arg-type]
    set_model_settings(context, DEFAULT_PROJECT, MODEL, WatchSettings(groups={"women": "she|her"}))
    found = planned_signals(context, DEFAULT_PROJECT, MODEL, SETTINGS)[1]
    texts = [one for one in found if one.missing.startswith("needs texts")]
    assert [one.is_off for one in texts] == [True, True, True]
    assert found[-1].titles == "Groups of people: women"
