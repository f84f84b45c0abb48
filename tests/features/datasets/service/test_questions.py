"""Questions from passages: by whom, for how much, what is left out, and what a teacher that goes away leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import update
from tests.features.datasets.conftest import ME, work_once
from tests.fixtures.batch_provider import KEY, Provider

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, FileQuotaError, NotFoundError, RequestError
from luthier.features.datasets import data_jobs, questions, synthesis_job
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.columns import ColumnChoice, choose
from luthier.features.datasets.prices import Prices
from luthier.features.datasets.store import DatasetVersion
from luthier.ml.inference.models import sources
from luthier.ml.inference.openai import http
from luthier.platform.db.tables import jobs
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


@pytest.fixture
def provider(context: Context, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """The configured model: at a provider with a Batch API, at half the price."""
    made = Provider()
    made.say = reply
    monkeypatch.setattr(httpx2, "Client", partial(httpx2.Client, transport=httpx2.MockTransport(made)))
    monkeypatch.setenv("LUTHIER_TEACHER_API_KEY", KEY)
    context.settings = Settings(
        home=context.home,
        teacher="https://provider.example/v1#writer",
        teacher_usd_per_million_prompt_tokens=1.0,
        teacher_usd_per_million_new_tokens=10.0,
        teacher_batch_api=True,
        teacher_batch_discount_percent=50,
    )
    return made


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
    monkeypatch.setattr(synthesis_job, "SYNTHESIS_TOKENS", 8)
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
def test_a_full_project_begins_nothing_and_keeps_what_was_begun(context: Context, version: DatasetVersion) -> None:
    questions.start(context, ME, version, "server", max_passages=2)
    context.access.set_file_quota(ME.project_id, context.files.used_bytes()[ME.project_id])
    with pytest.raises(FileQuotaError, match="for the files of the project default"):
        questions.start(context, ME, version, "server", max_passages=2)
    assert work_once(context).status == "succeeded"
    assert len(context.datasets.list(ME.project_id)) == 2


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
    with pytest.raises(RequestError, match="prompt_completion, not passages"):
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
def test_a_row_that_cannot_be_read_is_named_whatever_the_column(context: Context, server: OpenAIServer) -> None:
    blocks = [json.dumps({"Body": passage(1)}).encode() + b"\n", b"{\n", json.dumps({"Body": passage(2)}).encode()]
    file = dataset_versions.keep_rows(context, ME, blocks, "passages.jsonl")
    made = dataset_versions.create_dataset(context, ME, "Bodies", file)[1]
    choose(context, ME, made, ColumnChoice("text", "Body"))
    questions.start(context, ME, dataset_versions.get_version(context, ME, made.dataset_id), "server")
    job = work_once(context)
    assert job.error is not None
    assert "1 of 3 rows of" in job.error["came"]
    assert server.requests == []


@pytest.mark.usefixtures("teacher")
def test_other_columns_of_a_table_need_no_value_that_json_has(context: Context, tmp_path: Path) -> None:
    table = pa.table({"Body": [passage(1), passage(2)], "score": [1.0, float("nan")]})
    pq.write_table(table, tmp_path / "bodies.parquet")
    file = dataset_versions.keep_rows(context, ME, [(tmp_path / "bodies.parquet").read_bytes()], "bodies.parquet")
    made = dataset_versions.create_dataset(context, ME, "Bodies", file)[1]
    choose(context, ME, made, ColumnChoice("text", "Body"))
    questions.start(context, ME, dataset_versions.get_version(context, ME, made.dataset_id), "server")
    assert [one["provenance"]["passage"] for one in pairs_of(context, work_once(context))] == [passage(1), passage(2)]


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


def look_again(context: Context) -> Job:
    """The next attempt of a job that rests."""
    with context.database.write() as connection:
        connection.execute(update(jobs).values(not_before=0.0))
    return work_once(context)


def test_the_batch_api_is_a_choice_of_its_own_with_its_price(context: Context, provider: Provider) -> None:
    ordinary, batches = questions.teachers(context)
    assert (ordinary.value, ordinary.prices, ordinary.uses_batch_api) == ("server", Prices(1.0, 10.0), False)
    assert (batches.value, batches.prices, batches.uses_batch_api) == ("server-batches", Prices(0.5, 5.0), True)
    assert (batches.name, batches.is_here) == ("writer at provider.example", False)
    context.settings = context.settings.model_copy(update={"teacher_batch_api": False})
    assert [one.value for one in questions.teachers(context)] == ["server"]
    assert provider.live == []


def test_a_batch_at_a_provider_is_waited_for_in_the_queue_and_paid_for_once(
    context: Context, version: DatasetVersion, provider: Provider
) -> None:
    provider.num_looks = 2
    asked = questions.start(context, ME, version, "server-batches")
    waiting = work_once(context)
    assert (waiting.job_id, waiting.status, waiting.num_crashes) == (asked.job_id, "queued", 0)
    assert waiting.not_before - waiting.updated_at == pytest.approx(30.0)
    shown = data_jobs.show_job(context, ME, asked.job_id)
    # One was sent by itself before the file: it shows a wrong key at once.
    assert (shown.progress.answered, shown.progress.requests, len(provider.live)) == (1, NUM - 1, 1)
    assert "Waiting for batch_0 of https://provider.example/v1: 1 of 19 requests" in shown.events[0].message
    # The lane is free for other work meanwhile.
    assert context.jobs.claim("here", ("infer", "remote")) is None
    spent = shown.progress.cost_usd
    assert spent is not None
    assert spent > 0
    waiting = look_again(context)
    assert waiting.not_before - waiting.updated_at == pytest.approx(60.0)
    done = look_again(context)
    found = done.document["found"]
    assert (done.status, found["num_pairs"], found["refused"]) == ("succeeded", 19, {"unsupported_number": 1})
    assert set(provider.asked.values()) == {1}
    assert (len(provider.asked), len(provider.live), provider.files) == (NUM - 1, 1, {})
    # Twenty prompts and their answers at the price of a batch, those of the first attempt included.
    words = [len(passage(number).split()) for number in range(1, NUM + 1)]
    assert found["cost_usd"] > spent
    assert found["cost_usd"] > sum(words) * 0.5 / 1e6
    assert pairs_of(context, done)[0]["provenance"]["passage"] == passage(1)


def test_pairs_of_several_rounds_come_by_a_batch_for_each(
    context: Context, version: DatasetVersion, provider: Provider
) -> None:
    provider.num_looks = 1
    questions.start(context, ME, version, "server-batches", pairs_per_passage=2, max_passages=4)
    job = work_once(context)
    num_looks = 0
    while job.status == "queued":
        num_looks += 1
        assert num_looks < 10
        job = look_again(context)
    assert job.status == "succeeded"
    assert len(provider.batches) == 2
    assert set(provider.asked.values()) == {1}


def test_a_waiting_job_is_paused_and_continued_without_a_second_batch(
    context: Context, version: DatasetVersion, provider: Provider
) -> None:
    provider.num_looks = 1
    asked = questions.start(context, ME, version, "server-batches")
    work_once(context)
    data_jobs.pause(context, ME, asked.job_id)
    assert context.jobs.get(asked.job_id).status == "paused"
    with pytest.raises(ConflictError, match="with 0 passages done"):
        data_jobs.keep_made(context, ME, asked.job_id)
    data_jobs.go_on(context, ME, asked.job_id)
    done = work_once(context)
    assert (done.status, len(provider.batches)) == ("succeeded", 1)


def test_what_a_cancelled_batch_had_answered_is_in_the_cost(
    context: Context, version: DatasetVersion, provider: Provider
) -> None:
    provider.num_looks, provider.statuses = 1, ["cancelled"]
    asked = questions.start(context, ME, version, "server-batches")
    work_once(context)
    assert look_again(context).status == "failed"
    data_jobs.go_on(context, ME, asked.job_id)
    done = work_once(context)
    # All answers but the first, which was sent by itself, came with the batch that was cancelled.
    words = [len(passage(number).split()) for number in range(1, NUM + 1)]
    assert (done.status, len(provider.batches)) == ("succeeded", 1)
    assert done.document["found"]["cost_usd"] > sum(words) * 0.5 / 1e6


def test_a_provider_that_refuses_the_file_fails_the_job_with_its_reason(
    context: Context, version: DatasetVersion, provider: Provider
) -> None:
    provider.statuses = ["failed"]
    questions.start(context, ME, version, "server-batches")
    job = work_once(context)
    assert job.status == "failed"
    assert job.error is not None
    assert "has failed as a whole: bad file" in job.error["came"]
    assert KEY not in json.dumps(job.error)


def test_what_a_batch_cannot_have_is_refused(context: Context, version: DatasetVersion, provider: Provider) -> None:
    with pytest.raises(RequestError, match="which gets all passages at once"):
        questions.start(context, ME, version, "server-batches", budget_usd=1.0)
    questions.start(context, ME, version, "server-batches")
    context.settings = context.settings.model_copy(update={"teacher_batch_api": False})
    job = work_once(context)
    assert job.error is not None
    assert "the Batch API of writer at provider.example is no longer configured" in job.error["came"]
    assert provider.live == []
