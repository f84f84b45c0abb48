from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.evaluation import Evaluation
from luthier.core.events import Event, StepDone
from luthier.core.run import Fit
from luthier.ml.charts.svg import INKS
from luthier.ml.evaluation.report.charts import curve_charts, curves, smooth, smooth_window
from luthier.ml.evaluation.report.evaluation_results import interval_charts
from luthier.ml.evaluation.result_views import roles

Events = Callable[..., tuple[Event, ...]]


def all_charts(events: tuple[Event, ...], evaluation: Evaluation) -> list[Any]:
    found = roles(evaluation)
    assert found is not None
    return [*curve_charts(curves(events)), *interval_charts(evaluation, found)]


def test_the_same_input_gives_the_same_bytes(events_of: Events, evaluation_of: Callable[..., Evaluation]) -> None:
    first, again = (all_charts(events_of(), evaluation_of()) for _ in range(2))
    assert first == again
    assert len(first) == 4 + 4


def test_charts_are_xml_with_a_name_a_description_and_themed_colours(
    events_of: Events, evaluation_of: Callable[..., Evaluation]
) -> None:
    ids: list[str] = []
    for chart in nonempty(all_charts(events_of(), evaluation_of())):
        root = ElementTree.fromstring(str(chart.svg))
        assert root.attrib["role"] == "img"
        assert [child.tag for child in root][:2] == ["title", "desc"]
        assert all(nonempty(child.text for child in root[:2]))
        colours = {e.attrib["class"] for e in root.iter() if "class" in e.attrib} - {"drawn"}
        assert colours & {"c-ink", "c-muted"}
        assert colours <= {f"c-{ink}" for ink in INKS}
        painted = {e.attrib[k] for e in root.iter() for k in ("fill", "stroke") if k in e.attrib}
        assert painted <= {"currentColor", "none"}
        assert not re.search(r"#0001|#[0-9a-f]{6}\b", chart.svg), "a colour that does not follow the theme"
        assert "http" not in chart.svg
        assert "<style" not in chart.svg
        assert "<text" in chart.svg
        own = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        referred = re.findall(r'(?:href="#|url\(#)([^")]+)', chart.svg)
        assert set(referred) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_a_chart_says_in_words_what_it_shows(events_of: Events, evaluation_of: Callable[..., Evaluation]) -> None:
    loss, *_ = all_charts(events_of(), evaluation_of())
    steps = [e for e in events_of() if isinstance(e, StepDone)]
    assert f"from {steps[0].loss:.3f} to {steps[-1].loss:.3f}" in loss.caption
    assert "best, step" in loss.svg


def test_dollars_and_angle_brackets_in_a_system_name_stay_text(evaluation_of: Callable[..., Evaluation]) -> None:
    evaluation = evaluation_of(10)
    named = evaluation.systems[0].model_copy(update={"name": "$x_1$ <b> & co"})
    charts = all_charts((), evaluation.model_copy(update={"systems": (named, *evaluation.systems[1:])}))
    assert all(nonempty("$x_1$ &lt;b&gt; &amp; co" in chart.svg for chart in charts))


def test_no_step_no_curves_and_one_step_is_enough(events_of: Events) -> None:
    assert curve_charts(curves(())) == []
    assert len(curve_charts(curves(events_of(1)))) == 4


def test_many_steps_become_few_points_that_keep_the_mean() -> None:
    events = [
        StepDone(
            step=s,
            epoch=0.0,
            loss=float(s),
            learning_rate=1e-4,
            gradient_norm=1.0,
            num_tokens=100,
            num_trained_tokens=10,
            seconds=0.5,
        )
        for s in range(1, 2501)
    ]
    found = curves(events)
    assert found.steps_a_point == 7
    assert len(found.loss) == 358
    assert found.steps[-1] == 2500
    assert found.loss[0] == pytest.approx(4.0)
    assert np.allclose(found.tokens_per_second, 200.0)
    assert "mean of 7 steps" in curve_charts(found)[0].caption


def test_a_step_trained_again_counts_once(events_of: Events) -> None:
    events = events_of(20, ended=False)
    again = [e.model_copy(update={"loss": 9.0}) for e in events if isinstance(e, StepDone) and e.step > 15]
    found = curves([*events, *again])
    assert list(found.steps) == list(range(1, 21))
    assert list(found.loss[15:]) == [9.0] * 5


def test_smoothing_leaves_a_constant_alone_and_short_runs_unsmoothed() -> None:
    assert smooth_window(10) == 1
    assert smooth_window(180) % 2 == 1
    assert np.allclose(smooth(np.full(50, 2.5), 9), 2.5)


def test_what_was_learned_by_heart_is_shaded_and_said(events_of: Events) -> None:
    fit = Fit(kind="overfitted", seen="It rose.", best_step=126, last_step=180)
    plain, shaded = (curve_charts(curves(events_of()), fit=found)[0] for found in (None, fit))
    assert "Shaded: steps 126 to 180" in shaded.caption
    assert "Shaded" not in plain.caption
    assert str(shaded.svg).count("<polygon") == str(plain.svg).count("<polygon") + 1
    settled = curve_charts(curves(events_of()), fit=fit.model_copy(update={"kind": "settled"}))[0]
    assert settled == plain


def test_a_smoothed_loss_is_drawn_plain(events_of: Events) -> None:
    events = tuple(
        e.model_copy(update={"measures": {"plain_loss": 0.5 * e.loss}}) if isinstance(e, StepDone) else e
        for e in events_of()
    )
    found = curves(events)
    np.testing.assert_allclose(found.loss, 0.5 * curves(events_of()).loss)
    assert "without label smoothing" in curve_charts(found)[0].caption
