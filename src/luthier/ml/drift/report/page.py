"""The HTML page of a look: what has changed and what to do, all signals, and the exchanges that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from luthier.core.results.signal import Signal, SignalState, WatchReport
from luthier.ml.charts import figures
from luthier.ml.charts.fact import Fact
from luthier.ml.charts.page import page_environment, replace_text
from luthier.ml.drift.drift.evidence import FALSE_ALARMS_A_MONTH, LOOK_BACK_DAYS, RENEWED_DAYS
from luthier.ml.drift.report.charts import watch_charts
from luthier.ml.drift.signals.column import Rows, last_words
from luthier.ml.drift.signals.signal_report import Watched

TEMPLATES: Final = Path(__file__).parent / "templates"
_MAX_CHARACTERS: Final = 600
_TONES: Final[dict[SignalState, str]] = {"changed": "bad", "steady": "good", "unknown": "open"}
_GROUPS: Final = {
    "serving": "How it is served",
    "input": "What it is asked",
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
    """Write the page to `path`, whole or not at all, and return it. Makes missing folders. Raises StorageFullError."""
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
        return "Too little is known to tell whether anything has changed."
    return f"{counts['steady']} signals are steady; of {counts['unknown']} too little is known to tell."


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
        Fact("Unknown", f"{counts['unknown']:,}", "too little to tell"),
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
