"""The report of a run with what it was evaluated by beside its held-out rows."""

from __future__ import annotations

import re

from tests.assessed import make_safety_result, make_suite_result

from luthier.core.results.suite import GateOutcome, RuleOutcome
from luthier.ml.evaluation.report import ReportData, render_report
from luthier.ml.evaluation.report.evaluation_results import assessed_of
from luthier.testing.records import make_plan, make_record, make_result


def test_suites_safety_and_gate_stand_in_the_report_with_their_pages() -> None:
    gate = GateOutcome(
        passed=False, gate_sha256="0" * 64, outcomes=(RuleOutcome(rule="a.b", passed=False, sentence="No <i>."),)
    )
    found = assessed_of([make_suite_result()], make_safety_result(), gate)
    page, document = render_report(
        ReportData(
            record=make_record(status="succeeded", result=make_result()),
            plan=make_plan(),
            events=(),
            evaluation=None,
            versions={},
            assessed=found,
        )
    )
    assert '<a href="suite-workshop.html">Suite workshop</a>' in page
    assert '<a href="safety.html">Safety</a>' in page
    assert "1 of 1 rules are not met" in page
    assert "No &lt;i&gt;." in page
    assert document["assessed"]["results"] == [make_suite_result().result_id, make_safety_result().result_id]


def test_without_results_there_is_no_section() -> None:
    assert assessed_of([], None, None) is None
    data = ReportData(record=make_record(), plan=make_plan(), events=(), evaluation=None, versions={})
    page, document = render_report(data)
    assert "Suites and safety" not in page
    assert document["assessed"] is None


def test_suites_whose_names_differ_in_signs_or_case_alone_have_pages_of_their_own() -> None:
    names = ["a_b", "a-b", "a b", "A b", "客服", "法律", "x" * 64, "x" * 65, "x" * 66, "y" * 400]
    found = assessed_of(
        [make_suite_result(f"suite-{place}", suite=name) for place, name in enumerate(names)], None, None
    )
    assert found is not None
    pages = [line.page for line in found.results]
    assert len(set(pages)) == len(names)
    assert pages[0] == "suite-a_b.html"
    assert pages[6] == f"suite-{'x' * 64}.html"
    assert all(re.fullmatch(r"suite-[a-z0-9_-]{1,80}\.html", page) for page in pages), "a name for a file and a link"
    assert [line.earlier_page for line in found.results[:4]] == [
        "",
        "suite-a_b.html",
        "suite-a_b.html",
        "suite-__b.html",
    ]
