"""Curves: whole for who comes, new for who watches, and never more read than was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from luthier.core.events import Event, RunStarted, StepDone, ValidationDone
from luthier.features.runs import series as run_series
from luthier.features.runs.series import (
    GRADIENT_NORM,
    LOSS_BY_SOURCE,
    MAX_NEW_POINTS,
    MAX_POINTS,
    MINIMISED,
    REPLAYED,
    TRAINING,
    VALIDATION,
    Curves,
    RunSeries,
)
from luthier.features.runs.store import RunStore
from luthier.features.runs.view import run_charts
from luthier.platform.home.context import Context
from luthier.testing.records import RUN_ID, events_of, make_plan, make_record, make_step, tell


@pytest.fixture
def series(context: Context) -> RunSeries:
    context.runs.create(make_record(), make_plan())
    return RunSeries(context)


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events each reading took."""
    read: list[int] = []
    appended = RunStore.appended

    def counted(store: RunStore, run_id: str, after: int, *, limit: int) -> tuple[Sequence[Event], int]:
        found = appended(store, run_id, after, limit=limit)
        read.append(len(found[0]))
        return found

    monkeypatch.setattr(RunStore, "appended", counted)
    return read


def steps(curves: Curves) -> list[float]:
    return [step for step, _ in curves.points.get(TRAINING, [])]


def test_a_run_that_has_not_begun_has_no_curves(series: RunSeries) -> None:
    news = series.news("run-20261125-093000-ffffff", 0)
    assert (news.curves.points, news.position, news.is_whole) == ({}, 0, True)


def test_first_all_and_then_what_is_new(context: Context, series: RunSeries) -> None:
    for step in (1, 2, 3):
        context.runs.append(RUN_ID, make_step(step))
    first = series.news(RUN_ID, 0)
    assert (steps(first.curves), first.is_whole) == ([1, 2, 3], True)
    assert series.news(RUN_ID, first.position).curves.points == {}
    context.runs.append(RUN_ID, make_step(4))
    context.runs.append(RUN_ID, ValidationDone(step=4, loss=0.5, num_trained_tokens=1, is_best=True, seconds=1.0))
    then = series.news(RUN_ID, first.position)
    assert (steps(then.curves), then.is_whole, then.curves.is_more) == ([4], False, True)
    assert then.curves.points[VALIDATION] == [(4, 0.5)]
    assert then.curves.best == (4, 0.5)
    assert steps(series.news(RUN_ID, 0).curves) == [1, 2, 3, 4]


def test_a_run_that_goes_on_from_a_checkpoint_forgets_what_it_had_done_behind_it(
    context: Context, series: RunSeries
) -> None:
    for step in range(1, 9):
        context.runs.append(RUN_ID, make_step(step, loss=1.0))
    seen = series.news(RUN_ID, 0)
    context.runs.truncate_after(RUN_ID, 5)
    context.runs.append(RUN_ID, RunStarted(from_step=5, num_steps=10))
    context.runs.append(RUN_ID, make_step(6, loss=2.0))
    news = series.news(RUN_ID, seen.position)
    assert (news.curves.from_step, steps(news.curves)) == (5, [6])
    assert series.news(RUN_ID, 0).curves.points[TRAINING] == [*((n, 1.0) for n in range(1, 6)), (6, 2.0)]


def test_of_a_step_told_twice_the_newer_counts(context: Context, series: RunSeries) -> None:
    for step in (1, 2, 3):
        context.runs.append(RUN_ID, make_step(step))
    series.news(RUN_ID, 0)
    context.runs.append(RUN_ID, make_step(3, loss=7.0))
    assert series.news(RUN_ID, 0).curves.points[TRAINING][-1] == (3, 7.0)


def test_a_long_run_is_read_once_and_answers_stay_small(
    context: Context, series: RunSeries, num_read: list[int]
) -> None:
    told = list(events_of(1, 12_000, 12_000))
    tell(context, RUN_ID, told)
    whole = series.news(RUN_ID, 0)
    assert max(len(points) for points in whole.curves.points.values()) <= MAX_POINTS + 10
    losses = {event.loss for event in told if isinstance(event, StepDone)}
    kept = {loss for _, loss in whole.curves.points[TRAINING]}
    assert {min(losses), max(losses)} <= kept, "lows and highs stay"
    assert max(num_read) <= 2_000, "a part at a time"
    num_read.clear()
    series.news(RUN_ID, 0)
    context.runs.append(RUN_ID, make_step(12_001))
    series.news(RUN_ID, whole.position)
    assert sum(num_read) <= 1, "what was read is not read again"


def test_who_was_away_for_a_few_hundred_steps_gets_lows_and_highs_and_for_more_the_whole(
    context: Context, series: RunSeries
) -> None:
    tell(context, RUN_ID, events_of(1, 10, 5_000))
    seen = series.news(RUN_ID, 0).position
    tell(context, RUN_ID, events_of(11, 800, 5_000))
    few = series.news(RUN_ID, seen)
    assert not few.is_whole
    assert len(few.curves.points[GRADIENT_NORM]) <= MAX_NEW_POINTS + 10
    assert few.curves.points[GRADIENT_NORM][-1][0] == 800
    tell(context, RUN_ID, events_of(801, 5_000, 5_000))
    many = series.news(RUN_ID, few.position)
    assert many.is_whole
    assert many.curves.points[GRADIENT_NORM][0][0] == 1


def test_what_is_kept_is_bounded(context: Context, series: RunSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_series, "_MAX_RUNS", 2)
    for number in range(5):
        series.news(f"run-20261125-093000-00000{number}", 0)
    assert len(series._known) == 2


def test_the_first_look_reads_few_steps_evenly_spread(context: Context, series: RunSeries, num_read: list[int]) -> None:
    tell(context, RUN_ID, events_of(1, 5_000, 5_000))
    look = series.first_look(RUN_ID, 5_000, 100)
    found = steps(look)
    assert num_read == []
    assert 95 <= len(found) <= 101
    assert found[-1] == 5_000
    assert max(b - a for a, b in pairwise(found)) <= 51
    assert len(look.points[VALIDATION]) == 10
    assert series.first_look(RUN_ID, 0, 100).points.keys() == {VALIDATION}


def _validation(step: int, losses: dict[str, float]) -> ValidationDone:
    return ValidationDone(step=step, loss=1.0, num_trained_tokens=10, seconds=0.1, is_best=False, loss_by_source=losses)


def test_all_sources_have_a_curve_and_many_share_the_points_of_six(context: Context, series: RunSeries) -> None:
    names = [f"source {number:02}" for number in range(32)]
    for step in range(1, 301):
        losses = {name: 1.0 + number / step for number, name in enumerate(names)}
        context.runs.append(RUN_ID, _validation(step, losses))
    whole = series.news(RUN_ID, 0).curves.points
    assert [name for chart, name in whole if chart == LOSS_BY_SOURCE] == names
    assert whole[LOSS_BY_SOURCE, "source 31"][0] == (1, 32.0)
    assert sum(len(points) for (chart, _), points in whole.items() if chart == LOSS_BY_SOURCE) <= 6 * MAX_POINTS
    first = series.first_look(RUN_ID, 300, 50).points
    counts = [len(points) for (chart, _), points in first.items() if chart == LOSS_BY_SOURCE]
    assert (len(counts), sum(counts) <= 32 * 20) == (32, True)
    plot = next(one for one in run_charts(Curves(first), "nats") if one.key == LOSS_BY_SOURCE)
    looks = {(one.role, one.is_dashed) for one in plot.series}
    assert (len(plot.series), len(looks)) == (32, 16)


def test_losses_that_are_not_alike_are_told_apart(context: Context, series: RunSeries) -> None:
    measures = {"plain_loss": 0.5, "task_loss": 0.4, "replay_loss": 0.7, "token_accuracy": 0.9}
    context.runs.append(RUN_ID, make_step(1, loss=0.8).model_copy(update={"measures": measures}))
    points = series.news(RUN_ID, 0).curves.points
    assert points[TRAINING] == [(1, 0.4)], "what a validation is held against"
    assert points[MINIMISED] == [(1, 0.8)]
    assert points[REPLAYED] == [(1, 0.7)]
    assert points["token_accuracy", "training"] == [(1, 0.9)]
