"""What will be watched of a model, with its thresholds and what is missing until a conclusion is possible.

By the index of the traffic alone, which knows how many exchanges each hour has: no exchange is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.core.records.monitoring import AlertSettings, WatchSettings
from luthier.core.text.counted import counted
from luthier.features.monitoring.scheduled_suites import model_settings
from luthier.features.traffic.policy import traffic_policy
from luthier.features.traffic.service import hour_of
from luthier.ml.drift.thresholds import (
    FALSE_ALARMS_A_MONTH,
    FEWEST_AN_HOUR,
    FEWEST_BEFORE,
    FEWEST_HOURS_BEFORE,
    FEWEST_HOURS_NOW,
    FEWEST_NOW,
    FEWEST_OF_GROUP,
    FEWEST_TEXTS,
    stretch_begins,
)
from luthier.platform.home.context import Context

_TESTED: Final = (
    f"beyond steady traffic: at most {FALSE_ALARMS_A_MONTH:g} false alarms a month for all signals together"
)


@dataclass(frozen=True, slots=True)
class TrafficCounts:
    """How much traffic of a model there is to compare.

    Attributes:
        num_now: exchanges of the window.
        num_before: exchanges before it, within the time that is compared.
        hours_now: hours of the window with at least 5 exchanges.
        hours_before: hours before it with as many.
    """

    num_now: int
    num_before: int
    hours_now: int
    hours_before: int


@dataclass(frozen=True, slots=True)
class PlannedSignals:
    """Signals that need the same kind of data.

    Attributes:
        titles: What is watched.
        threshold: What is reported as a change.
        needed: How much data a conclusion needs.
        missing: What is missing now, such as "needs 60 more answers"; empty where nothing is.
        is_off: Whether it is not watched at all, which `missing` explains.
    """

    titles: str
    threshold: str
    needed: str
    missing: str
    is_off: bool = False


def traffic_counts(
    context: Context, project_id: str, model: str, settings: AlertSettings, *, normal_since: float = 0.0
) -> TrafficCounts:
    """How much traffic of a model the index knows of, by whole hours."""
    now = context.access.now()
    since = now - settings.window_hours * 3600.0
    # Whole hours: the index counts exchanges by hour, so that the first hour may hold a little more.
    begin, window = hour_of(min(since, stretch_begins(now, normal_since))), hour_of(since)
    by_hour: dict[str, int] = {}
    for file in context.traffic.list(project_id, since=min(since, stretch_begins(now, normal_since))):
        for hour, num in file.num_by_hour.get(model, {}).items():
            if hour >= begin:
                by_hour[hour] = by_hour.get(hour, 0) + num
    # Hours are ISO texts of equal length, so that comparing texts compares times.
    inside = {hour: num for hour, num in by_hour.items() if hour >= window}
    before = {hour: num for hour, num in by_hour.items() if hour < window}
    return TrafficCounts(
        num_now=sum(inside.values()),
        num_before=sum(before.values()),
        hours_now=sum(num >= FEWEST_AN_HOUR for num in inside.values()),
        hours_before=sum(num >= FEWEST_AN_HOUR for num in before.values()),
    )


def planned_signals(
    context: Context, project_id: str, model: str, settings: AlertSettings
) -> tuple[TrafficCounts, list[PlannedSignals]]:
    """All that will be watched of a model, and what is missing for each."""
    own = model_settings(context, project_id, model)
    counts = traffic_counts(context, project_id, model, settings, normal_since=own.normal_since)
    window = f"in the last {settings.window_hours} hours"
    keep = traffic_policy(context, project_id).keep
    no_text = "" if keep in ("sampled", "full") else "needs texts: the traffic log stores none (Settings, Traffic)"
    return counts, [*_of_traffic(counts, window, no_text), *_of_settings(own, counts, window, no_text)]


def _of_traffic(counts: TrafficCounts, window: str, no_text: str) -> list[PlannedSignals]:
    """What every model is watched for."""
    exchanges = _exchanges_missing(counts, window)
    return [
        PlannedSignals(
            "Latency, first token, speed and cost",
            f"higher or lower than in the same hours before, {_TESTED}",
            f"{FEWEST_HOURS_NOW} hours {window} and {FEWEST_HOURS_BEFORE} before, each with {FEWEST_AN_HOUR} answers",
            _hours_missing(counts),
        ),
        PlannedSignals(
            "Failed and refused requests, length of prompts and answers",
            f"moved against the time before, {_TESTED}",
            f"{FEWEST_NOW} answers {window} and {FEWEST_BEFORE} before",
            exchanges,
        ),
        PlannedSignals(
            "Topics, languages and new words of prompts; refusals, toxic words and personal data in answers",
            f"moved against the time before, {_TESTED}",
            f"the texts of {FEWEST_NOW} answers {window} and of {FEWEST_BEFORE} before",
            no_text or exchanges,
            is_off=bool(no_text),
        ),
        PlannedSignals(
            "Prompts and answers against the training rows",
            "a population stability index (PSI) above 0.25 for sure",
            f"the texts of {FEWEST_TEXTS} answers {window}, and the training rows",
            no_text or _more(FEWEST_TEXTS - counts.num_now),
            is_off=bool(no_text),
        ),
    ]


def _of_settings(own: WatchSettings, counts: TrafficCounts, window: str, no_text: str) -> list[PlannedSignals]:
    """What an operator can add for a model."""
    has_suite = own.suite is not None or own.suite_file_id is not None
    # Both sides of the comparison need as many: the smaller one decides what is missing.
    num_judged = min(counts.num_now, counts.num_before)
    return [
        PlannedSignals(
            "Scores of a judge",
            "a difference of the mean scores from before",
            f"{own.num_judged} rated answers {window} and as many before",
            "no judge is set" if own.judge is None else no_text or _more(own.num_judged - num_judged),
            is_off=own.judge is None or bool(no_text),
        ),
        PlannedSignals(
            "Results of a suite",
            "worse than the last or the best result before, or better than the last, on the same rows",
            f"two results, one every {own.suite_every_hours:g} hours",
            "" if has_suite else "no suite is set",
            is_off=not has_suite,
        ),
        PlannedSignals(
            f"Groups of people{': ' + ', '.join(own.groups) if own.groups else ''}",
            "another share of refusals, toxic words or cut answers than all others",
            f"the texts of {FEWEST_OF_GROUP} answers of each group and of the others",
            (no_text or _more(2 * FEWEST_OF_GROUP - counts.num_now)) if own.groups else "no group is set",
            is_off=not own.groups or bool(no_text),
        ),
    ]


def _exchanges_missing(counts: TrafficCounts, window: str) -> str:
    parts = []
    if counts.num_now < FEWEST_NOW:
        parts.append(f"{counted(FEWEST_NOW - counts.num_now, 'more answer')} {window}")
    if counts.num_before < FEWEST_BEFORE:
        parts.append(f"{FEWEST_BEFORE - counts.num_before:,} more before")
    return f"needs {' and '.join(parts)}" if parts else ""


def _hours_missing(counts: TrafficCounts) -> str:
    parts = []
    if counts.hours_now < FEWEST_HOURS_NOW:
        parts.append(f"{counted(FEWEST_HOURS_NOW - counts.hours_now, 'more hour')} with {FEWEST_AN_HOUR} answers now")
    if counts.hours_before < FEWEST_HOURS_BEFORE:
        parts.append(f"{FEWEST_HOURS_BEFORE - counts.hours_before} more before")
    return f"needs {' and '.join(parts)}" if parts else ""


def _more(num: int) -> str:
    return f"needs {counted(num, 'more answer')}" if num > 0 else ""
