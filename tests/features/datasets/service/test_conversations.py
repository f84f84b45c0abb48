"""Exports of conversations among files that are added: rows with roles, and what was left out, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.features.datasets.conftest import ME, add, work_once
from tests.ml.data.documents.test_archives import zipped

from luthier.core.errors import ConflictError, DataError, RequestError
from luthier.features.datasets import imports
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.conversations import convert_exports
from luthier.features.datasets.rows import rows_page
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

_SHOP = "support@shop.example"


def _mail(sender: str, to: str, own: str, answers: str, text: str) -> str:
    more = f"In-Reply-To: <{answers}@x>\n" if answers else ""
    return (
        f"From x Tue Mar  5 08:00:00 2024\nFrom: {sender}\nTo: {to}\nSubject: Meter\nMessage-ID: <{own}@x>\n{more}"
        f"Date: Tue, 05 Mar 2024 0{own}:00:00 +0000\n\n{text}\n\n"
    )


def archive(*pairs: tuple[str, str]) -> bytes:
    """An archive of the shop: of each customer a question and its answer."""
    mails = []
    for number, (customer, question) in enumerate(pairs):
        mails.append(_mail(customer, _SHOP, f"{2 * number + 1}", "", question))
        mails.append(_mail(_SHOP, customer, f"{2 * number + 2}", f"{2 * number + 1}", f"Answer.\n\n> {question}"))
    return "".join(mails).encode()


ARCHIVE = archive(("a@a.example", "One?"), ("b@b.example", "Two?"))
TICKET = {
    "id": 1,
    "requester_id": 5,
    "comments": [
        {"author_id": 5, "body": "Broken.", "public": True},
        {"author_id": 6, "body": "SECRET", "public": False},
        {"author_id": 6, "body": "Replaced.", "public": True},
    ],
}
SLACK = {
    "users.json": '[{"id": "U1", "name": "anna"}, {"id": "U2", "name": "ben"}]',
    "channels.json": '[{"id": "C1", "name": "help"}]',
    "help/2024-03-05.json": json.dumps(
        [
            {"type": "message", "user": "U1", "text": "How, <@U2>?", "ts": "1.0", "thread_ts": "1.0"},
            {"type": "message", "user": "U2", "text": "So.", "ts": "2.0", "thread_ts": "1.0"},
        ]
    ),
}


def _found(job: Job) -> dict[str, Any]:
    noted: dict[str, Any] = job.document["found"]
    return noted


def _rows(context: Context, dataset_id: str) -> list[list[dict[str, str]]]:
    version = dataset_versions.get_version(context, ME, dataset_id)
    return [json.loads(row["cells"]["messages"]["text"]) for row in rows_page(context, ME, version)["rows"]]


def test_mails_tickets_and_chats_become_one_dataset_with_roles(home: Context) -> None:
    sent = {
        "all/in.mbox": ARCHIVE,
        "all/tickets.json": json.dumps({"tickets": [TICKET]}).encode(),
        "all/team.zip": zipped(SLACK),
        "all/read.txt": b"A text.",
    }
    assert add(home, sent, name="Support").job is not None
    job = work_once(home)
    assert (job.status, job.error) == ("succeeded", None)
    passages, rows = _found(job)["datasets"]
    assert (passages["num_rows"], rows["num_rows"]) == (1, 4)
    assert [[turn["content"] for turn in row] for row in _rows(home, rows["dataset_id"])] == [
        ["One?", "Answer."],
        ["Two?", "Answer."],
        ["How, @ben?", "So."],
        ["Broken.", "Replaced."],
    ]
    by_name = {one["name"]: one for one in _found(job)["files"]}
    assert by_name["all/tickets.json"]["warnings"] == [
        "messages of the assistant: id 6 1; of the user: id 5 1",
        "left out, private notes: 1",
    ]
    assert by_name["all/in.mbox"]["warnings"][0].startswith(f"messages of the assistant: {_SHOP} 2; of the user: ")
    assert by_name["all/team.zip"]["num_rows"] == 1


@pytest.mark.parametrize("name", ["tickets.json", "tickets.jsonl"])
def test_a_file_of_tickets_alone_is_read_by_the_job(home: Context, name: str) -> None:
    added = add(home, {name: json.dumps(TICKET).encode()}, name="Tickets")
    assert added.version is None
    rows = _found(work_once(home))["datasets"][0]
    assert _rows(home, rows["dataset_id"]) == [
        [{"role": "user", "content": "Broken."}, {"role": "assistant", "content": "Replaced."}]
    ]


def test_an_archive_whose_owner_is_not_clear_is_read_as_documents_unless_it_is_chosen(home: Context) -> None:
    sent = {"two.mbox": archive(("a@a.example", "One?"))}
    add(home, sent, name="Unclear")
    job = work_once(home)
    assert [one["kind"] for one in _found(job)["datasets"]] == ["passages"]
    files = _found(job)["files"]
    assert [one["name"] for one in files] == ["two.mbox/00001.eml", "two.mbox/00002.eml"]
    assert "who answers in two.mbox is not clear" in files[0]["warnings"][0]
    add(home, sent, name="Chosen", assistants=["@shop.example"])
    rows = _found(work_once(home))["datasets"][0]
    assert (rows["kind"], rows["num_rows"]) == ("rows", 1)


def test_too_many_people_who_answer_are_refused(home: Context) -> None:
    with pytest.raises(RequestError, match="people who answer"):
        add(home, {"a.mbox": ARCHIVE}, assistants=[str(n) for n in range(imports.MAX_ASSISTANTS + 1)])


def test_exports_of_several_files_become_one_file(home: Context, tmp_path: Path) -> None:
    (tmp_path / "in.mbox").write_bytes(ARCHIVE)
    (tmp_path / "team.zip").write_bytes(zipped(SLACK | {"help/picture.png": "x", "bad.mbox": "no mail"}))
    output = tmp_path / "rows.jsonl"
    done = convert_exports(home, [tmp_path / "in.mbox", tmp_path / "team.zip"], output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["source"].partition(",")[0] for row in rows] == ["in.mbox", "in.mbox", "team.zip"]
    assert [one.name for one in done.converted] == ["in.mbox", "team.zip"]
    assert [one.file for one in done.failed] == ["team.zip/bad.mbox"]
    assert done.num_other_files == 1
    with pytest.raises(ConflictError):
        convert_exports(home, [tmp_path / "in.mbox"], output)
    with pytest.raises(DataError, match="no mail archive"):
        convert_exports(home, [tmp_path / "team.zip"], output, assistants=["nobody"], force=True)
    assert len(output.read_text().splitlines()) == 3, "an output is replaced by a whole one alone"
