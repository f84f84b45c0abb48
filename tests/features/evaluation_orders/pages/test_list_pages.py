"""The list of evaluations, and one with its figures and samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import luthier.platform.ui
from luthier.core.access import Caller
from luthier.core.evaluation import (
    Comparison,
    Evaluation,
    Forgetting,
    Metric,
    Sample,
    SystemResult,
    Verdict,
    VerdictWord,
)
from luthier.core.evaluation_plan import Bar
from luthier.features.datasets.service import create_dataset, keep_rows
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.testing.records import add_run, make_evaluation, make_plan

Browser = Callable[..., TestClient]
ID = "eval-20261126-120000-aaaaaa"
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202e'


def metric(value: float) -> Metric:
    return Metric(value=value, low=value - 0.05, high=value + 0.05, unit="fraction", higher_is_better=True)


def sample(row: int, output: str, score: float) -> Sample:
    return Sample(
        row_id=f"held_out.jsonl:{row}",
        prompt=f"question {row} {HOSTILE}",
        reference="the front is spruce",
        output=output,
        num_new_tokens=3,
        finish_reason="length" if row == 4 else "stop",
        scores={"exact_match": score},
    )


def system(name: str, value: float, samples: list[Sample], adapter: str | None = None) -> SystemResult:
    figures = {"exact_match": metric(value), "rouge_l": metric(0.5)}
    return SystemResult(
        name=name,
        model="/models/tiny",
        adapter=adapter,
        num_samples=len(samples),
        metrics=figures,
        samples=tuple(samples),
        seconds=1.0,
    )


def comparison(metric: str, word: VerdictWord) -> Comparison:
    return Comparison(
        baseline="base",
        candidate="tuned",
        metric=metric,
        difference=0.2,
        low=0.1,
        high=0.3,
        p_value=0.001,
        verdict=word,
    )


def judged(run_id: str | None, num_rows: int = 25) -> Evaluation:
    """Row 1: tuned worse; 2: better; 3: empty; 4: cut off; the others the same."""
    before = [
        sample(n, "the front is spruce" if n == 1 else f"wood {n}", float(n == 1)) for n in range(1, num_rows + 1)
    ]
    after = list(before)
    after[0] = sample(1, f"the back is maple {HOSTILE}", 0.0)
    after[1] = sample(2, "the front is spruce", 1.0)
    after[2] = sample(3, " ", 0.0)
    return Evaluation(
        evaluation_id=ID,
        created_at="2026-11-26T12:00:00+00:00",
        run_id=run_id,
        held_out_file="/secret/folder/held_out.jsonl",
        held_out_sha256="ab" * 32,
        num_rows=num_rows,
        systems=(system("base", 0.1, before), system("tuned", 0.3, after, "/secret/adapter")),
        comparisons=(comparison("exact_match", "better"), comparison("rouge_l", "not distinguishable")),
        verdict=Verdict(
            word="better", metric="exact_match", headline=f"Better. {HOSTILE}", caveats=("2 rows leaked.",)
        ),
        seconds=2.0,
    )


@pytest.fixture
def shown(home: Context, browser: Browser) -> TestClient:
    home.evaluations.save(judged(add_run(home, "a")))
    return browser("read")


def rows_of(page: str) -> list[str]:
    found = re.findall(r'<h3 id="row-\d+">Row ([\d,]+) <span class="small mono wrap">([^<]*)</span></h3>', page)
    assert all(row_id.endswith(f":{line.replace(',', '')}") for line, row_id in found)
    return [row_id for _, row_id in found]


def test_an_empty_list_says_how_an_evaluation_is_made(browser: Browser) -> None:
    page = browser("read").get("/evaluations").text
    assert "Nothing has been evaluated yet" in page
    assert 'class="button primary"' not in page
    page = browser("read", "train").get("/evaluations").text
    assert page.count('class="button primary"') == 1
    assert '<a class="button primary" href="/start">' in page


def test_held_out_rows_have_the_name_of_their_dataset(home: Context, browser: Browser) -> None:
    rows = keep_rows(home, Caller(), [b'{"prompt": "a", "completion": "b"}\n'], "rows.jsonl")
    create_dataset(home, Caller(), "Client mails", rows)
    file = f"jobs/job-20261125-093000-aaaaaa/files/{rows.file_id}.jsonl"
    home.evaluations.save(judged(add_run(home, "a")).model_copy(update={"held_out_file": file}))
    one = browser("read")
    assert "of Client mails</span>" in one.get("/evaluations").text
    head = one.get(f"/evaluations/{ID}").text.partition("verdict-first")[0]
    assert "of Client mails, evaluated" in head
    assert rows.file_id not in head


def test_the_list_is_found_in_by_words_and_verdict(home: Context, shown: TestClient) -> None:
    home.evaluations.save(make_evaluation("eval-20261125-093000-bbbbbb"))
    page = shown.get("/evaluations").text
    assert page.index("eval-20261125-093000-bbbbbb") < page.index(ID), "newest first"
    assert "secret" not in page
    assert "<script>alert" not in page
    assert ID in shown.get("/evaluations?q=HELD_out").text
    assert "None fits" in shown.get("/evaluations?q=nothing").text
    better = shown.get("/evaluations?verdict=better").text
    assert ID in better
    assert "bbbbbb" not in better
    # The switch of languages leads back to this address.
    assert ID not in shown.get(f"/evaluations?after={ID}").text.replace(f"/evaluations?after={ID}", "")


def test_one_shows_its_verdict_and_marks_what_is_surely_best(shown: TestClient) -> None:
    page = shown.get(f"/evaluations/{ID}").text
    assert '<span class="badge good">better</span> Better.' in page
    assert "2 rows leaked." in page
    assert page.count('figure best">') == 1, "ROUGE-L is not distinguishable"
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "secret" not in page
    assert page.count("data-chart=") == 2, "differences and exact match; ROUGE-L is the same of both"


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("", [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("order=best", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("better=candidate", [2]),
        ("better=baseline", [1]),
        ("kind=changed", [1, 3, 2]),
        ("kind=empty", [3]),
        ("kind=cut+off", [4]),
        ("kind=failed", []),
        ("low=0.5", [2]),
        ("high=0,5&better=baseline", [1]),
        ("q=MAPLE+back", [1]),
        ("q=question+17", [17]),
        ("page=3", [22, 23, 24, 25, 2]),
        ("page=99", [22, 23, 24, 25, 2]),
    ],
)
def test_samples_are_found_by_filter_and_search(shown: TestClient, query: str, rows: list[int]) -> None:
    page = shown.get(f"/evaluations/{ID}?{query}").text
    assert rows_of(page) == [f"held_out.jsonl:{row}" for row in rows]


def test_ends_of_a_range_are_read_in_the_language_of_the_page(shown: TestClient) -> None:
    for language, low, rows in (("en", "1.000", [2]), ("de", "1,000", [2]), ("de", "1.000", []), ("en", "1,000", [])):
        page = shown.get(f"/evaluations/{ID}?low={low}", headers={"Accept-Language": language}).text
        found = re.findall(r'<h3 id="row-\d+">[^<]*<span class="small mono wrap">held_out\.jsonl:(\d+)<', page)
        assert [int(row) for row in found] == rows, (language, low)


def test_words_are_marked_against_the_reference_or_the_other_system(shown: TestClient) -> None:
    page = shown.get(f"/evaluations/{ID}?better=baseline").text
    assert "the <del>front</del><ins>back</ins> is <del>spruce</del><ins>maple" in page
    page = shown.get(f"/evaluations/{ID}?better=candidate&marks=baseline").text
    assert "<ins>the front is spruce</ins>" in page or "<ins>the</ins>" in page
    assert "<ins>" not in shown.get(f"/evaluations/{ID}?better=baseline&marks=none").text.split("<article")[1]


def test_text_that_the_reference_lacks_does_not_look_good(shown: TestClient) -> None:
    """Invented words are the fault, missing ones were right; and no mark is told by its colour alone."""
    css = (Path(luthier.platform.ui.__file__).parent / "static" / "css" / "56-evaluate.css").read_text(encoding="utf-8")
    rules = dict(re.findall(r"& (\.against-\w+ (?:ins|del)) \{ ([^}]*) \}", css))
    invented, missing = rules[".against-reference ins"], rules[".against-reference del"]
    assert "--bad" in invented
    assert "--good" not in invented
    assert "--bad" not in missing
    assert "wavy" in invented, "underlined, too"
    assert "dashed" in missing
    assert '.against-reference del::before { content: "["' in css, "in brackets, too"
    neutral = rules[".against-system ins"] + rules[".against-system del"]
    assert not {"--good", "--bad"} & set(re.findall(r"--\w+", neutral)), "of two systems none is right by itself"
    page = shown.get(f"/evaluations/{ID}?better=baseline").text
    assert 'class="text words-of marked against-reference"' in page
    assert "not in the reference, wavy underline: <ins>word</ins>" in page
    assert "missing from the answer, in brackets: <del>word</del>" in page
    page = shown.get(f"/evaluations/{ID}?better=candidate&marks=baseline").text
    assert "only in this answer, underlined: <ins>word</ins>" in page
    assert "against-reference" not in page


@pytest.mark.parametrize("query", ["low=much", "better=me", "kind=odd", "order=no", "metric=nope", "high=nan"])
def test_a_filter_that_cannot_be_is_told(shown: TestClient, query: str) -> None:
    answer = shown.get(f"/evaluations/{ID}?{query}")
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert "Better." in answer.text, "the rest of the page stands"


def test_htmx_gets_the_samples_alone_but_the_whole_page_when_going_back(shown: TestClient) -> None:
    piece = shown.get(f"/evaluations/{ID}?kind=empty", headers={"HX-Request": "true"}).text
    assert "<html" not in piece
    assert rows_of(piece) == ["held_out.jsonl:3"]
    back = {"HX-Request": "true", "HX-History-Restore-Request": "true"}
    assert "<html" in shown.get(f"/evaluations/{ID}?kind=empty", headers=back).text


def test_other_projects_and_those_who_may_not_read(home: Context, shown: TestClient, browser: Browser) -> None:
    create_project(home, "other")
    other = browser("read", project="other")
    assert other.get(f"/evaluations/{ID}").status_code == 404
    assert ID not in other.get("/evaluations").text
    assert other.get("/evaluations/eval-1").status_code == 404
    assert browser("infer").get("/evaluations").status_code == 403
    home.runs.delete("run-20261125-093000-aaaaaa")
    assert shown.get(f"/evaluations/{ID}").status_code == 404, "it goes with its run, though it was held in memory"


def test_what_was_forgotten_is_told(home: Context, browser: Browser) -> None:
    whole = judged(None)
    forgetting = Forgetting(
        held_out_file="/secret/general.jsonl",
        held_out_sha256="0",
        num_rows=40,
        systems=tuple(one.model_copy(update={"samples": ()}) for one in whole.systems),
        comparisons=(comparison("rouge_l", "worse"),),
        word="worse",
        sentence="General text was forgotten.",
    )
    home.evaluations.save(whole.model_copy(update={"forgetting": forgetting}))
    page = browser("read").get(f"/evaluations/{ID}").text
    assert "General text was forgotten." in page
    assert "40 general rows of general.jsonl" in page
    assert '<span class="badge bad">worse</span>' in page


def test_one_system_alone_and_none_with_samples(home: Context, browser: Browser) -> None:
    alone = system("base", 0.1, [sample(1, "a", 1.0), sample(2, "b", 0.0)])
    bare = {"comparisons": (), "verdict": None}
    home.evaluations.save(judged(None).model_copy(update=bare | {"systems": (alone,)}))
    page = browser("read").get(f"/evaluations/{ID}").text
    assert "A verdict needs at least two systems" in page
    assert "best</span>" not in page
    assert rows_of(page) == ["held_out.jsonl:2", "held_out.jsonl:1"]
    unscored = alone.model_copy(update={"samples": ()})
    other = judged(None).model_copy(update=bare | {"systems": (unscored,), "evaluation_id": "eval-2"})
    home.evaluations.save(other)
    assert "evaluated by likelihood alone" in browser("read").get("/evaluations/eval-2").text


def test_tool_calls_of_an_answer_are_shown_beside_its_text(home: Context, browser: Browser) -> None:
    calls = (
        {"id": "c1", "type": "function", "function": {"name": "price", "arguments": '{"wood": "<b>Fichte</b>"}'}},
        {},
    )
    calling = system("base", 0.1, [sample(1, "", 0.0).model_copy(update={"tool_calls": calls}), sample(2, "b", 0.0)])
    assert ["tool_calls" in one.model_dump() for one in calling.samples] == [True, False]
    home.evaluations.save(judged(None).model_copy(update={"comparisons": (), "verdict": None, "systems": (calling,)}))
    page = browser("read").get(f"/evaluations/{ID}").text
    assert page.count("Tool calls:") == 1
    assert "price {&#34;wood&#34;: &#34;&lt;b&gt;Fichte&lt;/b&gt;&#34;}" in page


def test_labels_have_a_confusion_table_and_the_bar_is_said(home: Context, browser: Browser) -> None:
    found = make_evaluation("eval-20261125-093000-cccccc")
    assert found.verdict is not None
    bar = Bar(metric="exact_match", value=0.9)
    verdict = found.verdict.model_copy(update={"good_enough": "no", "bar": bar})
    home.evaluations.save(found.model_copy(update={"labels": ("o", "r <b>"), "verdict": verdict}))
    page = browser("read").get(f"/evaluations/{found.evaluation_id}").text
    assert "not distinguishable, not good enough" in page
    assert page.count('<table class="confusion">') == 2
    assert "r &lt;b&gt;" in page
    assert "r <b>" not in page


def test_the_data_of_a_run_is_chosen_to_evaluate_what_it_has_kept_back(
    home: Context, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick run has evaluated a part of its held-out rows: all of them are the first that more rows can be."""
    lines = [f'{{"prompt": "p{n}", "completion": "c{n}"}}\n'.encode() for n in range(30)]
    own, other = (keep_rows(home, Caller(), lines[:num], f"{num}.jsonl") for num in (20, 30))
    create_dataset(home, Caller(), "Letters", own)
    create_dataset(home, Caller(), "Newer ones", other)
    run_id = add_run(home, "a")
    plan = make_plan(train_sha256=own.sha256)
    held_out = plan.data.train.model_copy(update={"split": "held_out"})
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"held_out": held_out})})
    monkeypatch.setattr(type(home.runs), "plan", lambda *_: plan)
    page = browser("train").get(f"/evaluations/new?model={run_id}").text
    assert re.search(rf'<option value="{own.file_id}" selected>', page)
    assert not re.search(rf'<option value="{other.file_id}" selected>', page)
    nobody = browser("train").get("/evaluations/new?model=run-20261125-093000-ffffff")
    assert nobody.status_code == 200
