"""The pages from documents to rows: jobs and their results, questions, columns, bulk decisions, the next step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.features.datasets.conftest import add, work_once
from tests.fixtures.pages import shown
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.features.datasets import questions
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetVersion
from luthier.features.run_drafts.choices import rows_of, shape_of
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings

Browser = Callable[..., TestClient]
ME = Caller(name="Ada")
TRAIN = ("read", "train")
HX = {"HX-Request": "true"}
SCRIPT = "<script>alert(1)</script>"


def words(answer: Any) -> str:
    assert answer.status_code in (200, 404, 409, 422), answer.text[:500]
    return " ".join(unescape(re.sub("<[^>]*>", " ", answer.text)).split())


def keep(home: Context, rows: list[dict[str, Any]], name: str, **given: Any) -> DatasetVersion:
    blocks = [(json.dumps(row) + "\n").encode() for row in rows]
    file = dataset_versions.keep_rows(home, ME, blocks, "rows.jsonl")
    return dataset_versions.create_dataset(home, ME, name, file, **given)[1]


def passages(home: Context, number: int = 3) -> DatasetVersion:
    rows = [{"text": f"Passage {n}.", "provenance": {"file": "a.pdf", "page": n}} for n in range(1, number + 1)]
    return keep(home, rows, "Passages")


def pairs(home: Context) -> DatasetVersion:
    rows = [
        {
            "prompt": f"Question {n}?",
            "completion": f"Answer {n}.",
            "provenance": {
                "file": "a.pdf",
                "page": n,
                "section": None,
                "passage": f"Passage {n} {SCRIPT}",
                "warnings": ["20% of the answer's words are not in the passage: odd"] if n == 2 else [],
            },
        }
        for n in range(1, 5)
    ]
    details = {"of": {"name": "Passages", "version": 1}, "found": {"teacher": "tiny"}, "warned": [2]}
    return keep(home, rows, "Pairs", origin="questions", details=details)


@pytest.fixture
def configured(home: Context) -> str:
    """A teacher with prices, which nothing asks."""
    home.settings = Settings(
        home=home.home,
        teacher="http://127.0.0.1:9/v1#writer",
        teacher_usd_per_million_prompt_tokens=0.5,
        teacher_usd_per_million_new_tokens=2.0,
    )
    return "server"


@pytest.mark.usefixtures("configured")
def test_an_import_shows_what_became_of_each_file_and_offers_questions(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    job = add(home, {"good.txt": b"Spruce from the Alps.", "empty.txt": b"", f"{SCRIPT}.exe": b"MZ"}, name="Wood").job
    assert job is not None
    page = f"/datasets/jobs/{job.job_id}"
    waiting = one.get(page)
    assert "Waiting for a worker" in words(waiting)
    assert "Add 3 files as Wood" in words(one.get("/datasets"))
    mark = re.search(r"after=([^\"]+)", waiting.text)
    assert mark is not None
    assert one.get(f"{page}?after={mark[1]}", headers=HX).status_code == 204, "nothing has happened since"
    work_once(home)
    found = one.get(page)
    text = words(found)
    assert "3 files, 2 not used" in text
    assert "empty.txt not read it is empty (0 bytes)" in text
    assert "good.txt passages 1 passage" in text
    assert SCRIPT not in found.text
    assert "Spruce from the Alps." in text, "a preview of the passages"
    assert "writer at 127.0.0.1:9, 0.50 + 2.00 USD per million tokens" in text
    assert re.search(r"1 request · 1 passage · about .* tokens of prompts .*: about 0\.0\d+ to 0\.0\d+ USD", text)
    assert '<button class="primary">Generate questions</button>' in found.text
    assert one.get(page, headers=HX).text.lstrip().startswith("<div"), "HTMX gets the state alone"


def test_a_failed_import_is_continued_and_a_waiting_one_cancelled(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    add(home, {"a.txt": b"", "b.txt": b""}, name="Empty")
    job = work_once(home)
    page = f"/datasets/jobs/{job.job_id}"
    text = words(one.get(page))
    assert "none of the 2 files could be used" in text
    assert "a.txt not read it is empty" in text
    assert "Waiting for a worker" in words(shown(one, one.post(f"{page}/continue")))
    assert "Cancelled." in words(shown(one, one.post(f"{page}/cancel")))
    again = one.post(f"{page}/cancel")
    assert (again.status_code, "can be cancelled" in words(again)) == (409, True)
    assert one.post(f"{page}/pause").status_code == 409
    assert one.post(f"{page}/keep").status_code == 409


@pytest.mark.usefixtures("configured")
def test_questions_are_estimated_and_ordered_with_a_budget(home: Context, browser: Browser) -> None:
    version, one = passages(home), browser(*TRAIN)
    page = f"/datasets/{version.dataset_id}/questions"
    text = words(one.get(page))
    assert "3 requests · 3 passages" in text
    assert "6 requests · 3 passages" in words(one.get(f"{page}?pairs=2&teacher=server"))
    assert "1 request · 1 passage" in words(one.get(f"{page}?passages=1"))
    sent = {"version": 1, "teacher": "server", "pairs": "2", "passages": "", "budget": "0.25"}
    answer = one.post(page, data=sent)
    assert answer.status_code == 303
    (job,) = home.jobs.list()
    order = questions.order_of(job)
    assert (order.pairs_per_passage, order.max_passages, order.budget_usd) == (2, None, 0.25)
    assert (order.teacher, order.price_output_usd) == ("http://127.0.0.1:9/v1#writer", 2.0)
    two = browser(*TRAIN)
    again = two.post(page, data=sent)
    assert again.headers["location"] == answer.headers["location"], "who orders the same gets what waits already"
    assert "The same questions were ordered before" in words(shown(two, again))
    assert len(home.jobs.list()) == 1, "nothing is paid for twice"
    state = shown(one, answer)
    assert "Questions from Passages" in words(state)
    assert "Pause" in words(state)
    assert "Paused." in words(shown(one, one.post(f"/datasets/jobs/{job.job_id}/pause")))
    assert two.post(page, data=sent).headers["location"] != answer.headers["location"], "a paused job is no answer"


@pytest.mark.usefixtures("configured")
def test_the_batch_api_is_offered_with_its_price_and_shows_how_far_it_is(home: Context, browser: Browser) -> None:
    batches = {"teacher_batch_api": True, "teacher_batch_discount_percent": 50.0}
    home.settings = home.settings.model_copy(update=batches)
    version, one = passages(home), browser(*TRAIN)
    page = f"/datasets/{version.dataset_id}/questions"
    text = words(one.get(page))
    assert "writer at 127.0.0.1:9, 0.50 + 2.00 USD per million tokens" in text
    assert "writer at 127.0.0.1:9, by its Batch API within a day, 0.25 + 1.00 USD per million tokens" in text
    estimates = re.findall(r"(By its Batch API|writer at 127\.0\.0\.1:9): 3 requests .*?: about ([\d.]+) to", text)
    assert {name: float(low) for name, low in estimates} == {
        "writer at 127.0.0.1:9": pytest.approx(2 * float(dict(estimates)["By its Batch API"]), abs=1e-4),
        "By its Batch API": pytest.approx(float(dict(estimates)["By its Batch API"])),
    }
    wrong = one.post(page, data={"version": 1, "teacher": "server-batches", "budget": "1"})
    assert "for a Batch API, which gets all passages at once" in words(wrong)
    answer = one.post(page, data={"version": 1, "teacher": "server-batches"})
    (job,) = home.jobs.list()
    assert questions.order_of(job).uses_batch_api
    assert "Waiting for a worker" in words(shown(one, answer))
    taken = home.jobs.claim("here", ("infer", "remote"))
    assert taken is not None
    figures = {"answered": 2.0, "requests": 3.0, "cost_usd": 0.01}
    home.job_events.append(job.job_id, "progress-1-1", "Waiting for batch_1", data=figures)
    home.jobs.give_back(job.job_id, taken.attempt, rest_seconds=30.0, is_waiting=True)
    waiting = words(one.get(f"/datasets/jobs/{job.job_id}"))
    assert "2 of 3 requests answered, 0.0100 USD so far" in waiting
    assert "Other jobs continue meanwhile" in waiting
    assert "The batch continues at the provider" in unescape(one.get(f"/datasets/jobs/{job.job_id}").text)
    assert "Cancelled." in words(shown(one, one.post(f"/datasets/jobs/{job.job_id}/cancel")))


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pairs": "many"}, "'many' questions a passage"),
        ({"budget": "cheap"}, "'cheap' as the budget"),
        ({"teacher": "http://attacker.example/v1#m"}, "no model 'http://attacker.example/v1#m'"),
    ],
)
def test_a_form_of_questions_that_cannot_be_is_shown_again(
    home: Context, browser: Browser, given: dict[str, str], message: str
) -> None:
    version, one = passages(home), browser(*TRAIN)
    sent = {"version": 1, "teacher": "server", "pairs": "1", "passages": "2", "budget": ""} | given
    answer = one.post(f"/datasets/{version.dataset_id}/questions", data=sent)
    assert answer.status_code == 422
    assert message in words(answer)
    assert 'name="passages" inputmode="numeric" maxlength="10" value="2"' in answer.text
    assert home.jobs.list() == []


def test_without_a_model_the_page_says_what_brings_one(home: Context, browser: Browser) -> None:
    version = passages(home)
    text = words(browser(*TRAIN).get(f"/datasets/{version.dataset_id}/questions"))
    assert "No model to write questions yet" in text
    assert "LUTHIER_TEACHER" in text


def test_finished_questions_lead_to_their_review(home: Context, browser: Browser) -> None:
    version, one = passages(home), browser(*TRAIN)
    home.settings = Settings(home=home.home, teacher="http://127.0.0.1:9/v1#writer")
    job = questions.start(home, ME, version, "server")
    taken = home.jobs.claim("w", ("infer", "remote"))
    assert taken is not None
    made = pairs(home)
    found = {
        "num_pairs": 4, "num_passages": 3, "num_passages_left": 2, "stopped_by_budget": True, "num_refused": 1,
        "refused": {"low_support": 1}, "cost_usd": 0.0123, "num_prompt_tokens": 900, "num_new_tokens": 80,
        "refused_shown": [{"prompt": SCRIPT, "completion": "", "explanation": "too little", "reason": "low_support"}],
        "teacher": "writer", "dataset_id": made.dataset_id, "version": 1, "name": "Pairs",
    }  # fmt: skip
    home.jobs.finish(job.job_id, taken.attempt, "succeeded", None, found)
    answer = one.get(f"/datasets/jobs/{job.job_id}")
    text = words(answer)
    assert "4 pairs · 3 passages · by writer, for 0.0123 USD" in text
    assert "The budget was reached: 2 passages are left." in text
    assert "1 pair left out" in text
    assert "low support 1" in text
    assert SCRIPT not in answer.text
    review = f'href="/datasets/{made.dataset_id}/annotate?version=1">Review</a>'
    assert review in answer.text
    desk = words(one.get(f"/datasets/{made.dataset_id}/annotate?version=1"))
    assert "Passage 1" in desk
    assert "Passage a.pdf, page 1" in desk


def test_a_stopped_job_offers_its_pairs(home: Context, browser: Browser) -> None:
    version, one = passages(home), browser(*TRAIN)
    home.settings = Settings(home=home.home, teacher="http://127.0.0.1:9/v1#writer")
    job = questions.start(home, ME, version, "server")
    taken = home.jobs.claim("w", ("infer", "remote"))
    assert taken is not None
    figures = {"done": 2.0, "total": 3.0, "made": 2.0, "seconds_left": 4.0, "cost_usd": None}
    home.job_events.append(job.job_id, "progress-1-1", "Writing questions", data=figures)
    running = words(one.get(f"/datasets/jobs/{job.job_id}"))
    assert "2 of 3 passages, 2 pairs" in running
    assert "about 4.0 s left" in running
    error = {"type": "WorkError", "came": "writer stopped to answer", "expected": "answers", "do": "then continue"}
    home.jobs.finish(job.job_id, taken.attempt, "failed", error)
    stopped = words(one.get(f"/datasets/jobs/{job.job_id}"))
    assert "writer stopped to answer" in stopped
    assert "Continue" in stopped
    assert "Use the 2 pairs so far" in stopped
    answer = one.post(f"/datasets/jobs/{job.job_id}/keep")
    newest = home.jobs.list()[0]
    assert answer.headers["location"] == f"/datasets/jobs/{newest.job_id}"
    assert questions.order_of(newest).max_passages == 2


def test_columns_are_chosen_over_the_first_rows(home: Context, browser: Browser) -> None:
    one = browser(*TRAIN)
    version = add(home, {"f.csv": f"FRAGE;Antwort\nWer?;{SCRIPT}\n".encode()}).version
    assert version is not None
    page = f"/datasets/{version.dataset_id}/columns"
    answer = one.get(f"{page}?version=1")
    assert "The columns are not recognised by their names." in words(answer)
    assert '<option value="Antwort" selected>' in answer.text
    assert SCRIPT not in answer.text
    assert "Choose columns" in words(one.get(f"/datasets/{version.dataset_id}"))
    wrong = one.post(page, data={"version": 1, "use": "question", "first": "FRAGE", "second": "FRAGE"})
    assert (wrong.status_code, "the column 'FRAGE' for both" in words(wrong)) == (422, True)
    sent = {"version": 1, "use": "question", "first": "FRAGE", "second": "Antwort"}
    text = words(shown(one, one.post(page, data=sent)))
    assert "Read as prompt_completion" in text
    assert "Train on it" in text
    assert "Choose columns" not in text
    data = rows_of(home, ME, version.dataset_id, 1).data
    assert data["columns"] == {"prompt": "FRAGE", "completion": "Antwort"}, "the recipe of a new run has them"
    assert shape_of(home, ME, version.file_id) == "prompt_completion"


@pytest.mark.parametrize(
    ("rows", "steps"),
    [
        ([{"text": "t", "provenance": {"file": "a"}}], ["Train on it", "Generate questions"]),
        ([{"text": "t"}], ["Generate questions", "Train on it"]),
        ([{"prompt": "p", "completion": "c"}], ["Train on it"]),
        ([{"Frage": "p", "Antwort": "c"}], ["Choose columns"]),
    ],
)
def test_a_dataset_has_one_main_next_step(
    home: Context, browser: Browser, rows: list[dict[str, Any]], steps: list[str]
) -> None:
    version = keep(home, rows, "Rows")
    page = browser(*TRAIN).get(f"/datasets/{version.dataset_id}").text
    head = page.partition("New version")[2].partition("</nav>")[0]
    found = re.findall(r'<a class="button( primary)?" href="[^"]*">([^<]*)</a>', head)
    assert [name for _, name in nonempty(found)] == steps
    assert [name for is_main, name in found if is_main] == steps[-1:]
    assert "New version" not in browser("read").get(f"/datasets/{version.dataset_id}").text


def test_all_rows_are_accepted_at_once_and_can_be_trained_on(home: Context, browser: Browser) -> None:
    version, one = pairs(home), browser(*TRAIN)
    page = f"/datasets/{version.dataset_id}/annotate"
    text = words(one.get(page))
    assert "Accept all Reject all 4 undecided rows" in text
    one.post(f"{page}/decide", data={"version": 1, "row": 1, "decision": "reject"})
    answer = one.post(f"{page}/all", data={"version": 1, "decision": "accept", "show": "undecided"})
    text = words(shown(one, answer))
    assert "3 rows are accepted" in text
    assert "All 4 rows are decided" in text
    decisions = {one.row: one.decision for one in home.datasets.decisions(version.dataset_id, 1)}
    assert decisions == {1: "reject", 2: "accept", 3: "accept", 4: "accept"}, "a decision that was there stays"
    undone = one.post(f"{page}/all", data={"version": 1, "decision": "undo", "show": "accepted"})
    assert "3 rows are undecided again" in words(shown(one, undone))


def test_all_rows_with_a_warning_are_thrown_out_at_once(home: Context, browser: Browser) -> None:
    version, one = pairs(home), browser(*TRAIN)
    page = f"/datasets/{version.dataset_id}/annotate"
    warned = one.get(f"{page}?show=warned")
    text = words(warned)
    assert "With a warning 1" in text
    assert "To check 20% of the answer's words are not in the passage: odd" in text
    assert "1 undecided row with a warning" in text
    assert "Passage 2 <script>" in text
    assert SCRIPT not in warned.text
    one.post(f"{page}/all", data={"version": 1, "decision": "reject", "show": "warned"}, headers=HX)
    assert {one.row: one.decision for one in home.datasets.decisions(version.dataset_id, 1)} == {2: "reject"}
    one.post(f"{page}/version", data={"version": 1, "note": "without odd ones"})
    newest = dataset_versions.get_version(home, ME, version.dataset_id)
    assert (newest.number, newest.num_rows, newest.details.get("warned")) == (2, 3, None)


def test_two_people_at_one_pair_see_each_other_and_bulk_replaces_nobody(home: Context, browser: Browser) -> None:
    version = pairs(home)
    page = f"/datasets/{version.dataset_id}/annotate"
    ada, ben = browser(*TRAIN), browser(*TRAIN)
    assert "Question 1?" in words(ada.get(page))
    home.datasets.decide(version.dataset_id, 1, _decision(1, "reject", "Cem"))
    news = words(ben.get(f"{page}/news?version=1&row=1"))
    assert "Cem" in news, "the second person is shown that the row was decided meanwhile"
    sent = {"version": 1, "row": 1, "decision": "accept", "seen": ""}
    text = words(shown(ben, ben.post(f"{page}/decide", data=sent)))
    assert "Cem had rejected it in the meantime" in text
    home.datasets.decide(version.dataset_id, 1, _decision(3, "reject", "Cem"))
    ada.post(f"{page}/all", data={"version": 1, "decision": "accept", "show": "all"})
    decisions = {one.row: (one.decision, one.author) for one in home.datasets.decisions(version.dataset_id, 1)}
    assert decisions[3] == ("reject", "Cem")
    assert len(decisions) == 4


def _decision(row: int, decision: Any, author: str) -> Any:
    from luthier.features.datasets.store import RowDecision

    return RowDecision(row=row, decision=decision, author=author)


@pytest.mark.usefixtures("configured")
def test_the_scope_train_is_needed_and_other_projects_find_nothing(home: Context, browser: Browser) -> None:
    version, made = passages(home), pairs(home)
    job = questions.start(home, ME, version, "server")
    reader, stranger = browser("read"), browser("admin", project=create_project(home, "strangers").project_id)
    forms = [
        f"/datasets/jobs/{job.job_id}/cancel",
        f"/datasets/jobs/{job.job_id}/pause",
        f"/datasets/jobs/{job.job_id}/continue",
        f"/datasets/jobs/{job.job_id}/keep",
        f"/datasets/{version.dataset_id}/questions",
        f"/datasets/{version.dataset_id}/columns",
        f"/datasets/{made.dataset_id}/annotate/all",
    ]
    sent = {"version": 1, "teacher": "server", "decision": "accept", "first": "text", "use": "text"}
    for address in forms:
        assert reader.post(address, data=sent).status_code == 403, address
        assert stranger.post(address, data=sent).status_code == 404, address
    for address in (f"/datasets/jobs/{job.job_id}", f"/datasets/{version.dataset_id}/columns"):
        assert reader.get(address).status_code == 200, address
        assert stranger.get(address).status_code == 404, address
    assert reader.get(f"/datasets/{version.dataset_id}/questions").status_code == 403
    assert home.jobs.get(job.job_id).status == "queued"
    assert home.datasets.decisions(made.dataset_id, 1) == []
