"""What is at an address before it is imported: the first rows of each format, with as few bytes as that takes."""

from __future__ import annotations

import gzip
import io
from typing import Any

import polars as pl
import pytest
from tests.features.datasets.conftest import jsonl, qa
from tests.fixtures.questions import answers_in_this_process
from tests.hub_server import COMMIT, Hub

from luthier.core.errors import BusyError, DataSourceError, NotFoundError, RequestError
from luthier.features.datasets import remote_imports, remote_preview
from luthier.features.datasets.imports import RemoteOrder
from luthier.platform.home.context import Context


def parquet(rows: int, group: int) -> bytes:
    stream = io.BytesIO()
    frame = pl.DataFrame(
        {"question": [f"What is {n}? {n * 7919:020}" for n in range(rows)], "answer": ["It is."] * rows}
    )
    frame.write_parquet(stream, row_group_size=group, compression="uncompressed")
    return stream.getvalue()


def cells(found: dict[str, Any], column: str) -> list[str]:
    return [row["cells"][column]["text"] for row in found["page"]["rows"]]


def test_the_first_rows_come_with_revision_licence_and_size(context: Context, qa_hub: Hub) -> None:
    found = remote_preview.look(context, "hub:org/qa")
    assert (found["revision"], found["licence"], found["num_files"]) == (COMMIT, "cc-by-4.0", 1)
    assert found["num_bytes"] == len(qa_hub.files["train.jsonl"])
    assert found["columns"] == ["question", "answer", "source"]
    assert cells(found, "question") == [f"What is {n}?" for n in range(10)]
    assert (found["shape"], found["page"]["has_more"], found["problem"]) == ("prompt_completion", True, None)
    assert list(context.settings.scratch_folder.iterdir()) == [], "nothing is left"


def test_every_column_of_a_wide_file_can_be_chosen(context: Context, qa_hub: Hub) -> None:
    qa_hub.files["train.jsonl"] = jsonl({f"column_{n}": n for n in range(60)})
    found = remote_preview.look(context, "hub:org/qa")
    assert (len(found["columns"]), found["num_columns"]) == (60, 60)
    qa_hub.files["train.jsonl"] = jsonl({f"column_{n}": n for n in range(201)})
    found = remote_preview.look(context, "hub:org/qa")
    assert (len(found["columns"]), found["num_columns"]) == (200, 201), "more cannot be named by an order"


def test_of_a_large_file_of_text_the_beginning_is_fetched(
    context: Context, qa_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_preview, "_TEXT_BYTES", 1000)
    found = remote_preview.look(context, "hub:org/qa")
    assert 0 < len(cells(found, "answer")) == 10
    qa_hub.files["train.jsonl"] = b'{"text": "%s"}' % (b"x" * 5000)
    long = remote_preview.look(context, "hub:org/qa")
    assert (long["page"], "no end of a line" in long["problem"]["came"]) == (None, True)


def test_a_packed_file_is_unpacked_as_far_as_it_is_shown(context: Context, qa_hub: Hub) -> None:
    qa_hub.files = {"train.csv.gz": gzip.compress(b"question,answer\n" + b"a,b\n" * 30)}
    assert cells(remote_preview.look(context, "hub:org/qa"), "answer") == ["b"] * 10
    qa_hub.files = {"train.csv.gz": b"no gzip"}
    assert "is damaged" in remote_preview.look(context, "hub:org/qa")["problem"]["came"]


def test_of_a_large_parquet_file_its_ends_are_fetched(
    context: Context, qa_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_preview, "_WHOLE_BYTES", 128 << 10)
    qa_hub.files = {"train.parquet": parquet(12_000, 1_000)}
    assert len(qa_hub.files["train.parquet"]) > 400_000
    found = remote_preview.look(context, "hub:org/qa")
    assert found["problem"] is None
    assert cells(found, "question")[1].startswith("What is 1?")
    asked = [asked for path, asked in qa_hub.requests if path.endswith(".parquet")]
    assert len(asked) == 2, "the directory at the end, and the beginning"
    qa_hub.files = {"train.parquet": parquet(12_000, 12_000)}
    assert "its first group of rows ends at byte" in remote_preview.look(context, "hub:org/qa")["problem"]["came"]
    qa_hub.files = {"train.parquet": b"x" * (129 << 10)}
    assert "does not end as a Parquet file does" in remote_preview.look(context, "hub:org/qa")["problem"]["came"]


def test_a_format_that_has_to_be_read_whole_says_so_where_it_is_large(
    context: Context, qa_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_hub.files = {"train.json": b'[{"text": "a"}]'}
    assert cells(remote_preview.look(context, "hub:org/qa"), "text") == ["a"]
    monkeypatch.setattr(remote_preview, "_WHOLE_BYTES", 8)
    assert "only known once all of it was read" in remote_preview.look(context, "hub:org/qa")["problem"]["came"]


def test_what_cannot_be_reached_is_an_error(context: Context, qa_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="has no split 'dev'"):
        remote_preview.look(context, "hub:org/qa[dev]")
    with pytest.raises(DataSourceError, match="not on the public internet"):
        remote_preview.look(context, "https://127.0.0.1:9/rows.jsonl")
    monkeypatch.setattr(remote_preview, "MAX_SECONDS", -1.0)
    with pytest.raises(DataSourceError, match="did not arrive within"):
        remote_preview.look(context, "hub:org/qa")


def test_a_preview_is_refused_before_a_process_is_started(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_imports, "WarmChild", None)
    with pytest.raises(RequestError, match="does not import from"):
        remote_imports.preview(context, RemoteOrder(address="s3://bucket/rows.jsonl"))
    for _ in range(2):
        remote_imports._previews.acquire()
    try:
        with pytest.raises(BusyError, match="2 previews are in progress"):
            remote_imports.preview(context, RemoteOrder(address="hub:org/qa"))
    finally:
        remote_imports._previews.release(2)


def test_a_row_of_the_preview_is_no_part_of_another_answer(context: Context, qa_hub: Hub) -> None:
    qa_hub.files["train.jsonl"] = jsonl(qa(1)) + b"\n"
    assert cells(remote_preview.look(context, "hub:org/qa"), "answer") == ["It is 1."]


def test_a_process_of_its_own_answers(context: Context, qa_hub: Hub) -> None:
    found = remote_imports.preview(context, RemoteOrder(address="hub:org/qa"))
    assert (found["revision"], cells(found, "answer")[0]) == (COMMIT, "It is 0.")


def test_a_refusal_of_the_other_side_is_no_failure_of_this_server(context: Context, qa_hub: Hub) -> None:
    qa_hub.gated_for = set()
    with answers_in_this_process(), pytest.raises(RequestError, match="is gated"):
        remote_imports.preview(context, RemoteOrder(address="hub:org/qa"))
