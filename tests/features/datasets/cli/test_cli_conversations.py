"""`luthier data conversations`: rows of exports, with who answers and what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.features.datasets.service.test_conversations import ARCHIVE, TICKET, archive


def test_roles_and_what_was_left_out_are_shown(luthier: Any, tmp_path: Path) -> None:
    (tmp_path / "tickets.jsonl").write_text(json.dumps(TICKET) + "\n")
    output = tmp_path / "rows.jsonl"
    done = luthier("data", "conversations", tmp_path, "-o", output)
    assert done.code == 0, done.err
    assert "rows.jsonl: 1 conversation" in done.out
    assert "messages of the assistant: id 6 1; of the user: id 5 1" in done.out
    assert "private notes: 1" in done.out
    assert [turn["content"] for turn in json.loads(output.read_text())["messages"]] == ["Broken.", "Replaced."]


def test_json_and_who_answers(luthier: Any, tmp_path: Path) -> None:
    mails, output = tmp_path / "in.mbox", tmp_path / "rows.jsonl"
    mails.write_bytes(ARCHIVE)
    done = luthier("data", "conversations", mails, "-o", output, "--json")
    (one,) = done.document["exports"]
    assert (one["kind"], one["chosen"], one["num_rows"]) == ("mbox", ["support@shop.example", "@shop.example"], 2)
    mails.write_bytes(archive(("a@a.example", "One?")))
    assert luthier("data", "conversations", mails, "-o", output, "--force").code == 2
    again = luthier("data", "conversations", mails, "-o", output, "--force", "--assistant", "@shop.example", "--json")
    assert again.document["num_rows"] == 1


def test_other_files_are_refused(luthier: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    done = luthier("data", "conversations", tmp_path / "a.txt", "-o", tmp_path / "rows.jsonl")
    assert done.code == 2
    assert "no export with conversations" in done.err
