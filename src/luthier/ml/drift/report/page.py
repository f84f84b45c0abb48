"""The HTML page of a monitoring check: what has changed and what to do, signals, charts, and example exchanges.

The charts show traffic and latency by the hour, and how strong the evidence of each change has become.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from luthier.core.records.monitoring import Signal, SignalState, WatchReport
from luthier.core.system.files import replace_text
from luthier.ml.charts import figures
from luthier.ml.charts.drawing import linear_ticks
from luthier.ml.charts.figures import Fact, number, rough
from luthier.ml.charts.page import Chart, page_environment
from luthier.ml.charts.spec import Axis, Mark, Plot, Series, Span, Tick, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.drift.evidence import Ints, false_alarms_a_month, needed_strength
from luthier.ml.drift.signals.columns import Rows, last_words
from luthier.ml.drift.signals.signal_report import Watched
from luthier.ml.drift.signals.signal_test import Tested
from luthier.ml.drift.thresholds import FALSE_ALARMS_A_MONTH, LOOK_BACK_DAYS, RENEWED_DAYS

_WIDTH: Final = 500
_HEIGHT: Final = 230
_FEWEST_HOURS: Final = 3
_MAX_STRENGTHS: Final = 4


def watch_charts(rows: Rows, tested: Sequence[Tested], since: float, num_signals: int) -> list[Chart]:
    """All charts in which there is something to see.

    Args:
        rows: the exchanges.
        tested: the signals with their evidence.
        since: where the window begins, which is shaded.
        num_signals: of the model in all.
    """
    if len(np.unique(rows.hours)) < _FEWEST_HOURS:
        return []
    charts = [_volume_chart(rows, since)]
    if (latency := _latency_chart(rows, since)) is not None:
        charts.append(latency)
    changed = [one for one in tested if one.signal.state == "changed" and len(one.hours) >= _FEWEST_HOURS]
    strongest = sorted(changed, key=lambda one: -one.log_strength[-1])[:_MAX_STRENGTHS]
    charts += [_strength_chart(one, since, num_signals) for one in strongest]
    return charts


def _volume_chart(rows: Rows, since: float) -> Chart:
    # Every hour, also those without exchanges, which count as 0.
    hours = np.arange(rows.hours[0], rows.hours[-1] + 1)
    all_, failed = np.zeros(len(hours)), np.zeros(len(hours))
    np.add.at(all_, rows.hours - hours[0], 1)
    np.add.at(failed, rows.hours - hours[0], rows.frame["status"].to_numpy() >= 400)
    text = (
        f"{len(rows.at):,} exchanges in {len(hours):,} hours, at most {number(all_.max(), 0)} in one; "
        f"{number(failed.sum(), 0)} were refused or failed."
    )
    series = [Series("all", points_of(hours / 24, all_), "base", "steps")]
    if failed.any():
        series.append(Series("refused or failed", points_of(hours / 24, failed), "tuned", "steps"))
    return report_chart(_plot("volume", "Exchanges an hour", Axis("", low=0.0), series, hours, since, text))


def _latency_chart(rows: Rows, since: float) -> Chart | None:
    seconds = np.where(rows.frame["status"].to_numpy() < 400, rows.frame["seconds"].to_numpy(), np.nan)
    hours = np.unique(rows.hours[np.isfinite(seconds)])
    if len(hours) < _FEWEST_HOURS:
        return None
    of_hour = [seconds[(rows.hours == hour) & np.isfinite(seconds)] for hour in hours]
    middle = np.array([np.quantile(values, 0.5) for values in of_hour])
    high = np.array([np.quantile(values, 0.95) for values in of_hour])
    text = f"Median {rough(float(np.median(middle)))} s; the highest 95th percentile of an hour {rough(high.max())} s."
    series = [
        Series("95th percentile", points_of(hours / 24, high), "tuned", radius_pixels=0.0),
        Series("median", points_of(hours / 24, middle), "base", radius_pixels=0.0),
    ]
    return report_chart(_plot("latency", "Latency by the hour, seconds", Axis("", low=0.0), series, hours, since, text))


def _strength_chart(tested: Tested, since: float, num_signals: int) -> Chart:
    signal = tested.signal
    # Natural logarithms to powers of ten, which are easier to read.
    needed = needed_strength(num_signals) / np.log(10)
    strength = tested.log_strength / np.log(10)
    chance = false_alarms_a_month(float(tested.log_strength[-1]), num_signals)
    text = (
        f"Evidence that this has changed, as a power of ten. Above the dashed line steady traffic comes at most "
        f"{FALSE_ALARMS_A_MONTH:g} times a month over all signals; with the current setting, {chance:.2g} times."
    )
    series = [Series("", points_of(tested.hours / 24, strength), "other-1", radius_pixels=0.0)]
    marks = [Mark(float(needed), "", "y")]
    y = Axis("", low=float(min(needed, strength.min())), high=float(max(needed, strength.max())))
    return report_chart(_plot(signal.name, signal.title, y, series, tested.hours, since, text, marks))


def _plot(
    name: str,
    title: str,
    y: Axis,
    series: Sequence[Series],
    hours: Ints,
    since: float,
    text: str,
    marks: Sequence[Mark] = (),
) -> Plot:
    """A plot over days, of which those since the window began are shaded."""
    first, last = float(hours[0]) / 24, float(hours[-1] + 1) / 24
    # The x axis counts days since 1970.
    begins = since / 86_400
    return Plot(
        f"chart-{name}",
        title,
        Axis("", low=first, high=last, ticks=_days(first, last)),
        y,
        series,
        marks=marks,
        caption=text,
        spans=[Span(max(first, begins), last)] if begins < last else (),
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )


def _days(first: float, last: float) -> list[Tick]:
    """Days, or, where there are too few of them, hours."""
    step = max(1, round((last - first) / 7))
    whole = [float(day) for day in range(math.ceil(first), math.floor(last) + 1, step)]
    return [(days, _day(days)) for days in (whole if len(whole) > 1 else linear_ticks(first, last))]


def _day(days: float) -> str:
    at = datetime.fromtimestamp(days * 86_400, UTC)
    return f"{at.day} {at:%b}" if at.hour == 0 else f"{at:%H:%M}"


TEMPLATES: Final = Path(__file__).parent / "templates"
_MAX_CHARACTERS: Final = 600
_TONES: Final[dict[SignalState, str]] = {"changed": "bad", "steady": "good", "unknown": "open"}
_GROUPS: Final = {
    "serving": "How it is served",
    "input": "What users ask",
    "output": "What it answers",
    "quality": "How good it is",
    "bias": "Groups of people",
}


@dataclass(frozen=True, slots=True)
class ExampleText:
    """An exchange that shows a change: its words, None where none were kept."""

    exchange_id: str
    when: str
    status: int
    seconds: str
    prompt: str | None
    answer: str | None


def write_watch_page(path: Path, watched: Watched) -> Path:
    """Write the page to `path`, whole or not at all, and return it. Makes missing folders.

    Raises:
        StorageFullError: the disk is full.
    """
    page = render_watch(watched)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page)
    return path


def render_watch(watched: Watched) -> str:
    """The page as one HTML document that refers to nothing outside itself. The same arguments give the same bytes."""
    report = watched.report
    environment = page_environment(TEMPLATES)
    changed = [one for one in report.signals if one.state == "changed"]
    texts = _texts(watched.rows, [name for one in changed for name in one.examples])
    return environment.get_template("watch.html.j2").render(
        report=report,
        since=moment(report.since),
        until=moment(report.until),
        headline=headline(report),
        badge=badge(report),
        tone="bad" if changed else "good" if any(one.state == "steady" for one in report.signals) else "open",
        key_figures=_key_figures(report),
        charts=watch_charts(watched.rows, watched.tested, report.since, watched.num_signals),
        groups=[(title, _rows(report, group)) for group, title in _GROUPS.items() if _rows(report, group)],
        changed=[(one, "" if one.since is None else moment(one.since), _chosen(one, texts)) for one in changed],
        tones=_TONES,
        bound=FALSE_ALARMS_A_MONTH,
        days=(RENEWED_DAYS, LOOK_BACK_DAYS),
    )


def badge(report: WatchReport) -> str:
    """The word on top."""
    counts = Counter(one.state for one in report.signals)
    return f"{counts['changed']} changed" if counts["changed"] else "steady" if counts["steady"] else "unknown"


def headline(report: WatchReport) -> str:
    """One sentence: what has changed; never that all is well where little is known."""
    counts = Counter(one.state for one in report.signals)
    changed = [one.title for one in report.signals if one.state == "changed"]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"Changed: {', '.join(changed[:3])}{more}."
    if not counts["steady"]:
        return "There is too little data to see whether anything has changed."
    return f"{counts['steady']} signals are steady; for {counts['unknown']} there is too little data."


def value_of(signal: Signal, value: float | None) -> str:
    """A figure of a signal in its unit; empty for none."""
    if value is None:
        return ""
    return figures.percent(value) if signal.unit == "fraction" else figures.rough(value)


def moment(at: float) -> str:
    """A time, seconds since 1970, as `25 November 2026, 09:30 UTC`."""
    bounded = min(max(at, 0.0), 253_402_300_799.0)  # of the years that can be written
    return figures.when(datetime.fromtimestamp(bounded, UTC).isoformat())


def _rows(report: WatchReport, group: str) -> list[dict[str, str]]:
    return [
        {
            "title": one.title,
            "unit": "" if one.unit == "fraction" else one.unit,
            "value": value_of(one, one.value),
            "interval": "" if one.low is None else f"{value_of(one, one.low)} to {value_of(one, one.high)}",
            "reference": value_of(one, one.reference),
            "state": one.state,
            "sentence": one.sentence,
            "chance": "" if one.p_value is None else "1 or more" if one.p_value >= 1 else f"{one.p_value:.1g}",
        }
        for one in report.signals
        if one.group == group
    ]


def _key_figures(report: WatchReport) -> list[Fact]:
    counts = Counter(one.state for one in report.signals)
    return [
        Fact("Exchanges", f"{report.num_exchanges:,}", f"{report.num_dropped:,} that the log had to drop"),
        Fact("With words", f"{report.num_with_text:,}", "kept by the project's policy"),
        Fact("Changed", f"{counts['changed']:,}", "signals"),
        Fact("Steady", f"{counts['steady']:,}", "signals"),
        Fact("Unknown", f"{counts['unknown']:,}", "too little data"),
    ]


def _chosen(signal: Signal, texts: dict[str, ExampleText]) -> list[ExampleText]:
    return [texts[name] for name in signal.examples if name in texts]


def _texts(rows: Rows, wanted: Sequence[str]) -> dict[str, ExampleText]:
    """The exchanges of some ids."""
    names = set(wanted)
    # Only the rows that are shown are turned into Python values: a frame may have millions.
    found = rows.frame.filter(rows.frame["exchange_id"].is_in(sorted(names)))
    return {
        row["exchange_id"]: ExampleText(
            row["exchange_id"],
            moment(row["at"]),
            row["status"],
            figures.duration(row["seconds"] or 0.0),
            None if row["messages"] is None else _cut(last_words(row["messages"])),
            _cut(row["answer"]),
        )
        for row in found.iter_rows(named=True)
    }


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
