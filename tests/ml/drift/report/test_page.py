"""The page of a look."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from luthier.core.records.monitoring import Signal, WatchReport
from luthier.features.monitoring.service import text_checks
from luthier.ml.drift.report.page import headline, render_watch, write_watch_page
from luthier.ml.drift.signals.signal_report import Compared, Watched, watch_rows
from luthier.platform.home.context import Context
from luthier.testing.traffic import Change, last_prompts, made_traffic, with_prompts

HOSTILE = '</script><img src=x onerror="alert(1)">\u202e\x00 {{ 7 * 7 }} '


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    num = made_traffic(16, 5.0, seed=3).height
    frame = made_traffic(16, 5.0, seed=3, change=Change(at=num - 400, moved=0.4, refusals=True))
    frame = with_prompts(frame, [HOSTILE + one for one in last_prompts(frame)])
    until = float(frame["at"].max()) + 1  # type: ignore[arg-type]
    with Context.open(tmp_path_factory.mktemp("home")) as context:
        return watch_rows(
            frame.with_columns(pl.col("answer") + HOSTILE),
            project_id="default",
            model=f"shop{HOSTILE}",
            since=until - 3 * 86_400,
            until=until,
            checks=text_checks(context),
            compared=Compared(),
            num_dropped=7,
        )


def test_a_page_says_what_has_changed_with_examples_and_is_the_same_each_time(watched: Watched) -> None:
    page = render_watch(watched)
    assert page == render_watch(watched)
    for part in ("Answers that refuse", "exchanges that show it", "Unknown: no prices are set", "False alarms a month"):
        assert part in page
    assert "The log had to drop 7 exchanges" in page
    assert page.count('<svg class="drawn"') >= 3
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_people_wrote_stays_text(watched: Watched) -> None:
    page = render_watch(watched)
    assert "<img" not in page
    assert "&lt;/script&gt;&lt;img" in page
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "{{ 7 * 7 }}" in page


def test_a_page_is_written_whole_into_a_new_folder(watched: Watched, tmp_path: Path) -> None:
    path = write_watch_page(tmp_path / "new" / "look.html", watched)
    assert path.read_text(encoding="utf-8") == render_watch(watched)


def test_a_headline_never_says_that_all_is_well_where_little_is_known() -> None:
    def report(*states: str) -> WatchReport:
        signals = tuple(
            Signal(name=f"s{n}", title=f"S{n}", group="input", unit="", value=None, state=state)
            for n, state in enumerate(states)
        )
        return WatchReport(
            project_id="p", model="m", since=0, until=1, num_exchanges=0, num_with_text=0, signals=signals
        )

    assert headline(report("unknown", "unknown")) == "There is too little data to see whether anything has changed."
    assert headline(report("steady", "unknown")) == "1 signals are steady; for 1 there is too little data."
    assert headline(report(*["changed"] * 5)) == "Changed: S0, S1, S2 and 2 more."
