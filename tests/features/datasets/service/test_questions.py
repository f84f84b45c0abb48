"""Questions from passages: by whom, for how much, what is left out, and what a teacher that goes away leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.features.datasets.conftest import ME, work_once

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.features.datasets import data_jobs, questions, synthesis_job
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.columns import ColumnChoice, choose
from luthier.features.datasets.store import DatasetVersion
from luthier.features.datasets.syntheses import Prices
from luthier.ml.inference.models import sources
from luthier.ml.inference.openai import http
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.jobs.records import Job
from luthier.testing.openai_server import OpenAIServer, Trouble, serving

NUM = 20
HALF_SUPPORTED = 3
UNSUPPORTED = 5


def passage(number: int) -> str:
    return f"The front of instrument {number} has spruce from the high Alps, cut in winter."


def reply(asked: str) -> str:
    number = int(re.findall(r"instrument (\d+) ", asked)[0])
    answer = f"Instrument {number} has spruce from the Alps."
    if number == HALF_SUPPORTED:
        answer = f"Instrument {number} has spruce from the high Alps, magnificent timber."
    if number == UNSUPPORTED:
        answer = f"Instrument {number + 1000} has spruce."
    return json.dumps({"question": f"Which wood is the front of instrument {number}?", "answer": answer})


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down is not asked again for 15 seconds."""
    monkeypatch.setattr(http, "NUM_ATTEMPTS", 1)


@pytest.fixture
def server() -> OpenAIServer:
    return OpenAIServer(answer=reply)


@pytest.fixture
def teacher(server: OpenAIServer, context: Context) -> Iterator[str]:
    """The configured model: a server of this machine with prices. Gives its address."""
    with serving(server) as url:
        context.settings = Settings(
            home=context.home,
            teacher=f"{url}#writer",
            teacher_usd_per_million_prompt_tokens=1.0,
            teacher_usd_per_million_new_tokens=10.0,
        )
        yield url


def rows_of(numbers: range) -> list[dict[str, Any]]:
    return [{"text": passage(n), "provenance": {"file": f"{n}.md", "page": None}} for n in numbers]


def keep(context: Context, rows: list[dict[str, Any]], name: str = "Wood") -> DatasetVersion:
    blocks = [(json.dumps(row) + "\n").encode() for row in rows]
    file = dataset_versions.keep_rows(context, ME, blocks, "passages.jsonl")
    return dataset_versions.create_dataset(context, ME, name, file)[1]


@pytest.fixture
def version(context: Context) -> DatasetVersion:
    return keep(context, rows_of(range(1, NUM + 1)))


def pairs_of(context: Context, job: Job) -> list[dict[str, Any]]:
    found = job.document["found"]
    made = dataset_versions.get_version(context, ME, found["dataset_id"], found["version"])
    lines = dataset_versions.path_of(context, ME, made).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.usefixtures("teacher")
def test_pairs_come_with_their_passage_and_with_what_to_check(context: Context, version: DatasetVersion) -> None:
    questions.start(context, ME, version, "server")
    job = work_once(context)
    assert (job.status, job.error) == ("succeeded", None)
    found = job.document["found"]
    assert (found["num_pairs"], found["num_refused"], found["refused"]) == (19, 1, {"unsupported_number": 1})
    assert "not in the passage: 1005" in found["refused_shown"][0]["explanation"]
    pairs = pairs_of(context, job)
    assert pairs[0]["provenance"]["passage"] == passage(1)
    assert pairs[0]["provenance"]["warnings"] == []
    assert "of the answer's words are not in the passage: magnificent, timber" in pairs[2]["provenance"]["warnings"][0]
    made = dataset_versions.get_version(context, ME, found["dataset_id"])
    assert made.details["warned"] == [HALF_SUPPORTED]
    assert (made.origin, made.details["of"]["name"], made.author) == ("questions", "Wood", "Ada")
    assert context.datasets.get("default", made.dataset_id).name == "Wood questions"


@pytest.mark.usefixtures("teacher")
def test_a_teacher_that_goes_away_in_the_middle_leaves_what_it_wrote_and_is_continued(
    context: Context, version: DatasetVersion, server: OpenAIServer
) -> None:
    server.refuse = lambda body: Trouble(500, "down") if f"instrument {NUM - 2} " in str(body["messages"]) else None
    asked = questions.start(context, ME, version, "server")
    job = work_once(context)
    assert job.status == "failed"
    assert job.error is not None
    assert "writer at 127.0.0.1" in job.error["came"]
    assert "15 pairs from 16 of 20 passages are kept, and nothing is requested twice" in job.error["do"]
    num_asked = len(server.requests)
    server.refuse = lambda _: None
    data_jobs.go_on(context, ME, asked.job_id)
    done = work_once(context)
    assert (done.job_id, done.status, done.document["found"]["num_pairs"]) == (asked.job_id, "succeeded", 19)
    assert len(server.requests) - num_asked <= 4, "only what was missing is requested"


@pytest.mark.usefixtures("teacher")
def test_a_model_that_writes_nothing_usable_is_shown_with_what_it_wrote(
    context: Context, version: DatasetVersion, server: OpenAIServer
) -> None:
    server.answer = lambda asked: "I cannot do that."
    questions.start(context, ME, version, "server", max_passages=3)
    job = work_once(context)
    assert job.status == "failed"
    assert job.error is not None
    assert "wrote no pair that its passage supports: unparsable 3" in job.error["came"]
    assert (job.document["found"]["num_refused"], len(job.document["found"]["refused_shown"])) == (3, 3)


def test_a_model_of_this_machine_writes_and_no_path_of_it_is_shown(
    context: Context, version: DatasetVersion, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis_job, "MAX_NEW_TOKENS", 8)
    sources.pull(str(tiny_model), context.home, context.progress)
    (found,) = questions.teachers(context)
    assert (found.value, found.is_here, found.address) == (f"model:{tiny_model.name}", True, "")
    questions.start(context, ME, version, found.value, max_passages=2)
    job = work_once(context)
    assert job.status == "failed", "it knows no words yet"
    assert job.error is not None
    assert job.error["came"].startswith(f"{tiny_model.name} wrote no pair that its passage supports")
    assert str(tiny_model) not in json.dumps([job.error, job.document["found"]])
    listed = context.settings.jobs_folder / job.job_id / "pairs.jsonl.refused.jsonl"
    assert str(tiny_model) not in listed.read_text(encoding="utf-8")


@pytest.mark.usefixtures("teacher")
def test_a_stop_in_the_middle_pauses_it_and_keeps_what_was_answered(
    context: Context, version: DatasetVersion, server: OpenAIServer
) -> None:
    def stopped(asked: str) -> str:
        if f"instrument {NUM} " in asked:
            os.kill(os.getpid(), signal.SIGTERM)  # as a worker does where somebody pauses the job
        return reply(asked)

    server.answer = stopped
    job = questions.start(context, ME, version, "server")
    assert work_once(context).status == "paused"
    server.answer = reply
    data_jobs.go_on(context, ME, job.job_id)
    done = work_once(context)
    assert (done.status, done.document["found"]["num_pairs"]) == ("succeeded", 19)
    asked = [re.findall(r"instrument (\d+) ", str(body["messages"][-1]["content"]))[0] for _, body in server.requests]
    assert [asked.count(str(number)) for number in range(1, 17)] == [1] * 16, "nothing is asked again"


@pytest.mark.usefixtures("teacher")
def test_the_pairs_so_far_become_a_dataset_without_the_teacher(
    context: Context, version: DatasetVersion, server: OpenAIServer
) -> None:
    server.refuse = lambda body: Trouble(500, "down") if f"instrument {NUM - 2} " in str(body["messages"]) else None
    asked = questions.start(context, ME, version, "server")
    work_once(context)
    num_asked = len(server.requests)
    made = data_jobs.keep_made(context, ME, asked.job_id)
    done = work_once(context)
    assert (done.job_id, done.status, done.document["found"]["num_pairs"]) == (made.job_id, "succeeded", 15)
    assert len(server.requests) == num_asked
    with pytest.raises(ConflictError, match="is succeeded"):
        data_jobs.keep_made(context, ME, made.job_id)


@pytest.mark.usefixtures("teacher")
def test_a_budget_ends_it_before_the_passages_that_may_cost_more(context: Context, version: DatasetVersion) -> None:
    questions.start(context, ME, version, "server", max_passages=8)
    first = work_once(context).document["found"]["cost_usd"]
    # The first eight are known now, and the next eight cost about as much as they did.
    questions.start(context, ME, version, "server", budget_usd=first * 1.5)
    found = work_once(context).document["found"]
    assert found["stopped_by_budget"]
    assert (found["num_passages"], found["num_passages_left"]) == (16, 4)
    assert 0 < found["cost_usd"] <= first * 1.5


@pytest.mark.usefixtures("teacher")
def test_a_continued_job_counts_what_it_has_spent_before(
    context: Context, version: DatasetVersion, server: OpenAIServer
) -> None:
    questions.start(context, ME, version, "server", max_passages=8)
    first = work_once(context).document["found"]["cost_usd"]
    server.refuse = lambda body: Trouble(500, "down") if f"instrument {NUM - 2} " in str(body["messages"]) else None
    asked = questions.start(context, ME, version, "server", budget_usd=first * 5)
    assert work_once(context).status == "failed"
    server.refuse = lambda _: None
    data_jobs.go_on(context, ME, asked.job_id)
    found = work_once(context).document["found"]
    assert found["num_passages"] == NUM
    # Passages 9 to 16 were paid by the first attempt, 17 to 20 by both.
    assert 0.9 * first < found["cost_usd"] < 5 * first


@pytest.mark.usefixtures("teacher")
def test_the_estimate_contains_what_it_then_takes(context: Context, version: DatasetVersion) -> None:
    writer = questions.find_teacher(context, "server")
    assert (writer.name.split(":")[0], writer.is_here, writer.prices) == (
        "writer at 127.0.0.1",
        True,
        Prices(1.0, 10.0),
    )
    guess = questions.estimate(context, ME, version, writer, max_passages=10)
    assert (guess.num_passages, guess.num_requests) == (10, 10)
    twice = questions.estimate(context, ME, version, writer, pairs_per_passage=2)
    assert twice.num_requests == 40
    assert guess.cost_usd is not None
    assert guess.cost_usd.low == pytest.approx((guess.prompt_tokens.low + 10 * guess.new_tokens.low) / 1e6)
    assert guess.prompt_tokens.low < guess.prompt_tokens.high
    assert questions.estimate(context, ME, version, None).cost_usd is None


def test_without_a_configured_model_only_those_of_this_machine_write(context: Context, version: DatasetVersion) -> None:
    assert questions.teachers(context) == []
    for value in ("server", "model:none", "http://attacker.example/v1#m", ""):
        with pytest.raises(RequestError, match="no model"):
            questions.start(context, ME, version, value)
    assert context.jobs.list() == []


def test_a_model_elsewhere_is_named_last_and_says_so(context: Context) -> None:
    context.settings = Settings(home=context.home, teacher="https://models.example/v1#large")
    (found,) = questions.teachers(context)
    assert (found.value, found.name, found.is_here, found.prices) == (
        "server",
        "large at models.example",
        False,
        None,
    )


@pytest.mark.usefixtures("teacher")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pairs_per_passage": 6}, "6 questions a passage"),
        ({"max_passages": 0}, "1 passage or more"),
        ({"budget_usd": 0.0}, "a budget of 0 USD"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    context: Context, version: DatasetVersion, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        questions.start(context, ME, version, "server", **given)


def test_a_budget_needs_prices(context: Context, version: DatasetVersion) -> None:
    context.settings = Settings(home=context.home, teacher="http://127.0.0.1:1/v1#m")
    with pytest.raises(RequestError, match="which has no price here"):
        questions.start(context, ME, version, "server", budget_usd=1.0)


def test_rows_that_are_no_passages_are_refused(context: Context) -> None:
    pairs = keep(context, [{"prompt": "q", "completion": "a"}], "Pairs")
    context.settings = Settings(home=context.home, teacher="http://127.0.0.1:1/v1#m")
    with pytest.raises(RequestError, match="prompt_completion, and no passages"):
        questions.start(context, ME, pairs, "server")


@pytest.mark.usefixtures("teacher")
def test_a_model_that_is_configured_no_more_gets_nothing(
    context: Context, version: DatasetVersion, server: OpenAIServer
) -> None:
    questions.start(context, ME, version, "server")
    context.settings = Settings(home=context.home, teacher="http://127.0.0.1:1/v1#other")
    job = work_once(context)
    assert job.status == "failed"
    assert job.error is not None
    assert "is no longer configured" in job.error["came"]
    assert server.requests == []


@pytest.mark.usefixtures("teacher")
def test_texts_of_another_column_are_passages_too(context: Context) -> None:
    made = keep(context, [{"Body": passage(n), "Nr": n} for n in (1, 2)], "Bodies")
    choose(context, ME, made, ColumnChoice("text", "Body"))
    version = dataset_versions.get_version(context, ME, made.dataset_id)
    questions.start(context, ME, version, "server")
    job = work_once(context)
    assert [one["provenance"]["passage"] for one in pairs_of(context, job)] == [passage(1), passage(2)]


@pytest.mark.usefixtures("teacher")
def test_another_project_sees_and_stops_nothing(context: Context, version: DatasetVersion) -> None:
    job = questions.start(context, ME, version, "server")
    other = Caller(project_id="proj-other")
    for act in (data_jobs.show_job, data_jobs.cancel, data_jobs.pause, data_jobs.go_on, data_jobs.keep_made):
        with pytest.raises(NotFoundError):
            act(context, other, job.job_id)  # type: ignore[operator]
    with pytest.raises(NotFoundError):
        questions.start(context, other, version, "server")
    data_jobs.pause(context, ME, job.job_id)
    assert context.jobs.get(job.job_id).status == "paused"
    with pytest.raises(ConflictError, match="with 0 passages done"):
        data_jobs.keep_made(context, ME, job.job_id)
    assert [one.job.job_id for one in data_jobs.list_jobs(context, ME)] == [job.job_id]
