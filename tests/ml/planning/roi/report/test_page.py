"""The page of a case: whole, self-contained, repeatable, and saying what the answer is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report_html import checked, words

from luthier.core.results.roi_result import MeasuredGains, RoiResult
from luthier.ml.charts.svg import drawn
from luthier.ml.planning.roi import worth
from luthier.ml.planning.roi.report import render_roi, write_roi_report
from luthier.ml.planning.roi.report.page import ways_spec

DOUBT = {
    "calls.per_month": {"low": 8_000, "typical": 10_000, "high": 15_000},
    "tuned.gain": {"low": 0.0, "typical": 0.1, "high": 0.2},
    "alternatives.better_prompt": {"gain": {"low": 0, "typical": 0.02, "high": 0.05}, "work_hours": 8},
}


@pytest.fixture
def result(make_case: Any) -> RoiResult:
    return worth(make_case(DOUBT))


def test_the_page_is_whole_refers_to_nothing_outside_and_repeats_byte_for_byte(result: RoiResult) -> None:
    html = render_roi(result, case=["case.yaml"])
    checked(html)
    assert html == render_roi(result, case=["case.yaml"])
    assert len(html.encode()) < 400_000


def test_answer_first_then_pictures_ways_money_inputs_and_limits(result: RoiResult) -> None:
    text = words(render_roi(result, case=["my case.yaml"], verdict="run-1"))
    parts = (
        result.headline,
        "What would have to change",
        "Worth in 12 months",
        "What it depends on",
        "Money over time",
        "Distribution of the draws",
        "Simpler options, with their prices",
        "Tuned worth more",
        "Not priced",
        "Where the money goes",
        "Every input",
        "10,000 draws, seed 0",
        "calls.per_month",
        "What it cannot know",
        "luthier worth 'my case.yaml' --verdict run-1 --html worth.html",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("changes", "badge"),
    [({}, "worth it"), ({"tuned.gain": 0.0}, "not worth it"), (DOUBT, "not settled"), ({"calls.per_month": 0}, "not")],
)
def test_every_answer_has_its_page(make_case: Any, changes: dict[str, Any], badge: str) -> None:
    html = render_roi(worth(make_case(changes)), case=["case.yaml"])
    assert f'<p class="badge">{badge}' in html
    assert ("chart-tornado" in html) == (changes is DOUBT)


def test_every_way_has_its_row_in_the_chart(make_case: Any, beside_baselines: MeasuredGains) -> None:
    other = {"gain": 0.01, "cost_per_call": 0}
    plain = ("better_prompt", "few_shot", "bigger_model", "without_model")
    changes = {"today.accuracy": None, "tuned.gain": None} | {f"alternatives.{name}": other for name in plain}
    chart = drawn(ways_spec(worth(make_case(changes), beside_baselines)))
    rows = ("Tuned model", "Better prompt", "Few-shot", "Bigger model", "Without a model", "Commonest answer")
    places = [chart.index(f">{row}<") for row in (*rows, "Linear classifier", "Doing nothing")]
    assert places == sorted(places)


def test_hostile_names_stay_text(make_case: Any) -> None:
    name = "</title><script>alert(1)</script>\u202e\x1b[2J"
    html = render_roi(worth(make_case({"name": name})), case=["<b>.yaml"])
    checked(html)
    assert "<script" not in html
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_the_page_reaches_the_disk_with_its_folder(tmp_path: Path, result: RoiResult) -> None:
    path = write_roi_report(tmp_path / "new" / "worth.html", result, case=["case.yaml"])
    assert path.read_text(encoding="utf-8") == render_roi(result, case=["case.yaml"], html=str(path))
    assert [one.name for one in path.parent.iterdir()] == ["worth.html"]
