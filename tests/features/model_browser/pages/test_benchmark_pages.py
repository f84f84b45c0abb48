"""Formats of a model are compared by a page and a worker: one table whatever is killed, and no texts of rows in it."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import Browser, shown

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult
from luthier.core.records.export import FormatPrice, FormatTable, Spread
from luthier.features.datasets import service as dataset_versions
from luthier.features.exports.formats import orders
from luthier.features.exports.formats.measurements import TABLE
from luthier.features.exports.formats.tables import FormatRequest
from luthier.features.inbox.sources import job_address
from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

ADDRESS = "/exports/benchmarks"
SPEED = Spread(median=100.0, low=90.0, high=120.0)


def result(name: str, value: float) -> SystemResult:
    exact = Metric(value=value, low=value - 0.1, high=value + 0.1, unit="fraction", higher_is_better=True)
    sample = Sample(
        row_id="r1", prompt="a secret prompt", reference="r", output="o", num_new_tokens=1, finish_reason="stop"
    )
    return SystemResult(
        name=name, model="m", num_samples=9, metrics={"exact_match": exact}, seconds=1.0, samples=(sample,)
    )


def table_of(request: FormatRequest) -> FormatTable:
    change = Comparison(
        baseline="source", candidate="gguf:q4_k_m", metric="exact_match", difference=-0.3, low=-0.5, high=-0.1,
        p_value=0.01, verdict="worse",
    )  # fmt: skip
    measured: dict[str, Any] = {
        "num_bytes": 270_000_000,
        "peak_memory_bytes": 600_000_000,
        "prompt_tokens_per_second": SPEED,
        "new_tokens_per_second": SPEED,
    }
    prices = (
        FormatPrice(label="source", format=None, precision="bfloat16", quality=result("source", 0.5), **measured),
        FormatPrice(
            label="gguf:q4_k_m", format="gguf", precision="q4_k_m", quality=result("gguf:q4_k_m", 0.2),
            comparisons=(change,), is_recommended=False, losses=("exact match 0.2 instead of 0.5",), **measured,
        ),
        FormatPrice(label="onnx:int4", format="onnx", precision="int4", status="missing", reason="another model"),
    )  # fmt: skip
    return FormatTable(
        name=request.name, base_name="m", data_file=str(request.data), data_sha256="0" * 64,
        num_rows=request.num_rows, num_timed=2, num_rounds=3, num_threads=2, max_new_tokens=request.max_new_tokens,
        metric="exact_match", prices=prices, created_at="2026-01-01T00:00:00+00:00", machine={}, seconds=1.0,
        report_path=str(request.folder / "formats.html"),
    )  # fmt: skip


@pytest.fixture
def rows(home: Context, tiny_model: Path) -> str:
    """The id of a file of rows; the home has the model `tiny`."""
    pull_model(home, str(tiny_model))
    content = [f"{json.dumps({'prompt': str(n), 'completion': 'a'})}\n".encode() for n in range(9)]
    file = dataset_versions.keep_rows(home, Caller(), content, "held out.jsonl")
    return dataset_versions.create_dataset(home, Caller(), "Support", file)[1].file_id


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[FormatRequest]:
    """The requests that were measured."""
    found: list[FormatRequest] = []

    def measure(_: Context, request: FormatRequest) -> FormatTable:
        found.append(request)
        return table_of(request)

    monkeypatch.setattr(orders, "measure_formats", measure)
    return found


def order(one: TestClient, rows: str, **form: str) -> Any:
    return one.post(ADDRESS, data={"source": "tiny", "rows": rows} | form)


def job_id_of(answer: Any) -> str:
    return str(answer.headers["location"]).rpartition("/")[2]


def test_the_formats_of_a_model_are_ordered_measured_and_shown(
    home: Context, browser: Browser, rows: str, asked: list[FormatRequest]
) -> None:
    one = browser("read", "train")
    assert f'href="{ADDRESS}?source=tiny"' in one.get("/models/tiny").text
    assert f'<option value="{rows}"' in one.get(f"{ADDRESS}?source=tiny").text
    answer = order(one, rows, formats="gguf:q4_k_m, onnx:int4", num_rows="7", max_new_tokens="9")
    assert "Waiting for a worker" in shown(one, answer).text
    job_id = job_id_of(answer)
    job = home.jobs.get(job_id, "default")
    assert job_address(home, job) == f"{ADDRESS}/{job_id}"
    outcome = orders.carry_out(home, job)
    assert (outcome.status, outcome.error) == ("succeeded", None)
    (request,) = asked
    assert (request.formats, request.num_rows, request.max_new_tokens) == (("gguf:q4_k_m", "onnx:int4"), 7, 9)
    assert orders.carry_out(home, job).status == "succeeded", "an attempt that died before its last word"
    assert len(asked) == 1, "measures nothing again"
    view = orders.show_order(home, Caller(), job_id)
    assert view.table is not None
    assert (view.table.data_file, view.table.report_path) == ("held out.jsonl", None)
    assert "a secret prompt" not in view.table.model_dump_json()
    page = unescape(one.get(f"{ADDRESS}/{job_id}").text)
    for words in ("gguf:q4_k_m", "not recommended for this model", "exact match 0.2 instead of 0.5", "another model"):
        assert words in page
    assert re.search(r'<td class="number">270</td>|<td class="number">270<', page)
    assert str(home.home) not in page
    assert job_id in one.get(ADDRESS).text
    assert not (home.settings.jobs_folder / job_id / "formats").exists()


def test_a_table_that_was_written_and_not_stored_is_taken(
    home: Context, browser: Browser, rows: str, asked: list[FormatRequest]
) -> None:
    job_id = job_id_of(order(browser("read", "train"), rows))
    folder = home.settings.jobs_folder / job_id / "formats"
    folder.mkdir(parents=True)
    made = table_of(FormatRequest("tiny", Path("x.jsonl"), folder, num_rows=3))
    (folder / TABLE).write_text(made.model_dump_json(), encoding="utf-8")
    assert orders.carry_out(home, home.jobs.get(job_id, "default")).status == "succeeded"
    assert asked == []
    view = orders.show_order(home, Caller(), job_id)
    assert view.table is not None
    assert view.table.num_rows == 3


def test_what_fails_names_no_path_and_is_tried_again(
    home: Context, browser: Browser, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: Context, _: FormatRequest) -> FormatTable:
        raise RequestError(f"no rows in {context.home}/jobs", expected="rows", do="give some")

    monkeypatch.setattr(orders, "measure_formats", fail)
    one = browser("read", "train")
    job_id = job_id_of(order(one, rows))
    outcome = orders.carry_out(home, home.jobs.get(job_id, "default"))
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "no rows in" in outcome.error["came"]
    assert str(home.home) not in json.dumps(outcome.error)
    assert one.post(f"{ADDRESS}/{job_id}/cancel").status_code == 303
    assert home.jobs.get(job_id, "default").status == "cancelled"
    assert one.post(f"{ADDRESS}/{job_id}/cancel").status_code == 409


def test_wrong_orders_are_refused(home: Context, browser: Browser, rows: str) -> None:
    one = browser("read", "train")
    for form, words in (
        ({"formats": "gguf:none"}, "the format 'gguf:none'"),
        ({"num_rows": "99999999"}, "1 to 10,000"),
        ({"num_rows": "0"}, "1 to 10,000"),
        ({"num_rows": "many"}, "a whole number"),
        ({"max_new_tokens": "1"}, "2 to 4,096"),
        ({"rows": "file-none"}, "the id of a file of this project"),
    ):
        answer = one.post(ADDRESS, data={"source": "tiny", "rows": rows} | form)
        assert answer.status_code == 422, words
        assert words in unescape(answer.text)
    assert order(one, rows, source="/etc").status_code == 404
    friend = browser("read", "train", project=create_project(home, "friend").project_id)
    assert order(friend, rows).status_code == 422
    made = job_id_of(order(one, rows))
    assert friend.get(f"{ADDRESS}/{made}").status_code == 404
    assert friend.post(f"{ADDRESS}/{made}/cancel").status_code == 404
    assert made not in friend.get(ADDRESS).text
    viewer = browser("read")
    assert "<form" not in viewer.get(ADDRESS).text.partition("<main")[2].partition("</main>")[0]
    assert order(viewer, rows).status_code == 403
