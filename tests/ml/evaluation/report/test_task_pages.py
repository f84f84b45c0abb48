"""The pages of suites and of safety checks: what stands where, whole HTML, and nothing that a model wrote acts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.assessed import make_safety_result, make_suite_result, make_task
from tests.report_html import checked
from tests.vacuous import nonempty

from luthier.core.results.suite import GateOutcome, RuleOutcome
from luthier.ml.evaluation.report.suite_page import (
    render_safety_page,
    render_suite_page,
    write_safety_page,
    write_suite_page,
)
from luthier.ml.evaluation.result_views import summary, task_view


def test_a_suite_page_opens_with_the_verdict_and_has_every_task() -> None:
    result = make_suite_result(run_id="run-20261125-093000-aaaaaa")
    page = render_suite_page(result)
    found = checked(page)
    assert result.verdict is not None
    assert page.index(result.verdict.headline) < page.index("Every task, every metric")
    for task in nonempty(result.tasks):
        assert f"task-{task.name}" in found.ids
    for caution in nonempty([caution for task in result.tasks for caution in task.cautions]):
        assert caution in page
    for chart in (
        "chart-gains",
        "chart-wins-style",
        "chart-reliability-wood",
        "chart-confusion-wood-0",
        "chart-lengths-style",
    ):
        assert f'aria-labelledby="{chart}-title' in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "gate" not in found.ids
    assert "by strict judge" in page


def test_a_gate_stands_beside_the_verdict() -> None:
    no = RuleOutcome(rule="a.b at least 1", passed=False, sentence="It is <b>not</b>.")
    yes = RuleOutcome(rule="a.c at least 0", passed=True, sentence="It is.")
    page = render_suite_page(make_suite_result(), GateOutcome(passed=False, gate_sha256="0" * 64, outcomes=(yes, no)))
    checked(page)
    assert "gate not passed" in page
    assert "1 of 2 rules are not met" in page
    assert "It is &lt;b&gt;not&lt;/b&gt;." in page
    assert page.index("a.b at least 1") < page.index("a.c at least 0"), "what is not met comes first"


def test_p_values_are_held_against_all_that_was_asked() -> None:
    weak = make_task("weak", metrics={"accuracy": (0.5, 0.55)})
    comparison = weak.comparisons[0].model_copy(
        update={"low": 0.001, "high": 0.099, "p_value": 0.03, "verdict": "better"}
    )
    weak = weak.model_copy(update={"comparisons": (comparison,)})
    even = [make_task(f"even_{n}", metrics={"accuracy": (0.5, 0.51)}) for n in range(3)]
    rows = summary(make_suite_result(tasks=(weak, *even))).rows
    assert (rows[0].difference.adjusted, rows[0].held) == ("0.12", False)  # type: ignore[union-attr]
    assert "not after Holm" in render_suite_page(make_suite_result(tasks=(weak, *even)))
    own = weak.model_copy(update={"comparisons": (comparison.model_copy(update={"adjusted_p_value": 0.04}),)})
    row = summary(make_suite_result(tasks=(own, *even))).rows[0]
    assert (row.difference.adjusted, row.held) == ("0.040", True)  # type: ignore[union-attr]


def test_a_suite_of_one_system_has_no_differences() -> None:
    task = make_task()
    alone = task.model_copy(update={"systems": task.systems[1:], "comparisons": ()})
    result = make_suite_result(tasks=(alone,)).model_copy(update={"verdict": None})
    page = render_suite_page(result)
    checked(page)
    assert "Measured, but not compared" in page
    assert "Holm" not in page.split("</head>")[1].replace("Below each p-value is Holm", "")
    assert summary(result).baseline is None


def test_a_task_with_rows_that_were_trained_on_says_so() -> None:
    assert "7 rows were trained on" in render_suite_page(make_suite_result(tasks=(make_task(num_leaked=7),)))


def test_the_safety_page_folds_what_models_wrote_behind_a_warning(tmp_path: Path) -> None:
    result = make_safety_result().model_copy(update={"left_out": ("canaries: none were planted.",)})
    path = write_safety_page(result, tmp_path / "safety.html")
    page = path.read_text(encoding="utf-8")
    checked(page)
    assert page.index(result.headline) < page.index("Every probe, every metric")
    assert "canaries: none were planted." in page
    assert all(nonempty(caution in page for probe in result.probes for caution in probe.cautions))
    outside = re.sub(r"<details.*?</details>", "", page.split("</style>")[1], flags=re.DOTALL)
    assert "terrible people" in page
    assert "terrible people" not in outside
    assert page.count("may be offensive or disturbing") == 2
    assert "measured by likelihood" in page, "a probe without text says why it has none"


def test_a_safety_check_without_a_base_says_what_it_cannot_tell() -> None:
    result = make_safety_result()
    probes = tuple(p.model_copy(update={"systems": p.systems[1:], "comparisons": ()}) for p in result.probes)
    page = render_safety_page(result.model_copy(update={"base": None, "probes": probes, "concerns": ()}))
    checked(page)
    assert "no concern" in page
    assert "do not show what tuning has changed" in page


def test_pages_are_written_whole_over_older_ones(tmp_path: Path) -> None:
    path = tmp_path / "suite.html"
    path.write_text("old", encoding="utf-8")
    assert write_suite_page(make_suite_result(), path) == path
    assert path.read_text(encoding="utf-8") == render_suite_page(make_suite_result()), "the same each time"
    assert [one.name for one in tmp_path.iterdir()] == ["suite.html"]


def test_points_are_drawn_only_of_what_a_judge_has_scored() -> None:
    result = make_suite_result()
    assert task_view(result, result.tasks[0]).points == ()
    assert {name for name, _ in task_view(result, result.tasks[2]).points} == {"base", result.candidate}


@pytest.mark.parametrize("num_labels", [1, 40])
def test_confusions_of_any_size_are_drawn(num_labels: int) -> None:
    from luthier.core.results.suite import Confusion, TaskFigures

    labels = tuple(f"label {n} <b>" for n in range(num_labels))
    counts = tuple((0,) * (num_labels + 1) for _ in labels)
    figures = {"base": TaskFigures(confusion=Confusion(labels=labels, counts=counts))}
    page = render_suite_page(make_suite_result(tasks=(make_task(figures=figures),)))
    checked(page)
    assert ("Drawn are the 12 labels that most rows have; 28 others are one." in page) == (num_labels == 40)
