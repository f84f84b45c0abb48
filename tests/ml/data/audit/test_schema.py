"""Rows that cannot be used, files without a shape, duplicate ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.schema import check
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.files.untrusted_input import MAX_LINE_BYTES


def test_a_good_file_has_no_findings(audited: Callable[..., AuditRequest]) -> None:
    assert check(audited({"text": "one", "id": 1}, {"text": "two", "id": 2})) == []


def test_rows_that_cannot_be_read_or_mapped_are_errors(audited: Callable[..., AuditRequest]) -> None:
    request = audited(
        {"prompt": "a", "completion": "b"},
        "{broken",
        {"prompt": "a", "completion": 3},
        {"prompt": "c", "completion": "d"},
    )
    (finding,) = check(request)
    assert (finding.severity, finding.count, finding.fraction, finding.lines) == ("error", 2, 0.5, (2, 3))
    assert [example.row for example in finding.examples] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert "field 'completion' is a number" in finding.examples[1].note


def test_a_line_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.write('{"text": "one"}\n{"text": "')
        for _ in range(MAX_LINE_BYTES // 2**20 + 1):
            file.write("a" * 2**20)
        file.write('"}\n{"text": "two"}\n')
    (finding,) = check(AuditRequest(build_table(path)))
    assert finding.lines == (2,)
    assert "is a line of" in finding.examples[0].note


def test_a_file_without_one_shape_is_an_error_about_the_file(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited({"text": "a"}, {"prompt": "a", "completion": "b"}))
    assert (finding.severity, finding.count, finding.details) == ("error", 0, {"sort": "shape"})
    assert "mixes shapes" in finding.message
    assert finding.examples[0].row == "rows.jsonl:2"
    (finding,) = check(audited({"foo": "a"}))
    assert "no known shape" in finding.message
    assert "rename the fields" in finding.fix


def test_an_id_that_stands_twice_is_a_warning_and_no_row_is_to_be_removed_for_it(
    audited: Callable[..., AuditRequest],
) -> None:
    (finding,) = check(audited(*({"text": text, "id": row_id} for text, row_id in [("a", 7), ("b", 8), ("c", 7)])))
    assert (finding.severity, finding.count, finding.lines) == ("warning", 1, ())
    assert finding.examples[0].row == "rows.jsonl:3"
    assert finding.examples[0].note == "the id '7' is also on line 1"


def test_a_conversation_in_which_nothing_is_learned_is_named(audited: Callable[..., AuditRequest]) -> None:
    def turns(weight: int) -> dict[str, object]:
        answer = {"role": "assistant", "content": "hello", "weight": weight}
        return {"messages": [{"role": "user", "content": "hi"}, answer]}

    findings = check(audited(turns(1), turns(0)))
    assert [finding.lines for finding in findings] == [(2,)]
    assert json.loads(findings[0].model_dump_json())["count"] == 1


def test_marks_of_missing_values_are_counted_and_no_row_is_to_be_removed_for_them(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    answers = [f"answer {at}" for at in range(5)]
    prompts = ["Where is it?", "NULL", "\\N", "NULL", "SELECT null", "The word NULL?"]
    rows = "".join(f"{prompt},{answer}\n" for prompt, answer in zip(prompts, [*answers, "last"], strict=True))
    path.write_text(f"prompt,completion\n{rows}", encoding="utf-8")
    (finding,) = check(AuditRequest(build_table(path)))
    assert (finding.severity, finding.count, finding.lines) == ("warning", 3, ())
    assert finding.details == {"sort": "null_marker", "markers": {"NULL": 2, "\\N": 1}}
    assert "NULL (2), \\N (1)" in finding.message
    assert [example.row for example in finding.examples] == ["export.csv:2", "export.csv:3", "export.csv:4"]


def test_the_input_of_an_instruction_and_a_plain_text_are_looked_at_too(audited: Callable[..., AuditRequest]) -> None:
    (finding,) = check(audited({"instruction": "Translate.", "input": "NULL", "output": "x"}))
    assert finding.details["markers"] == {"NULL": 1}
    (finding,) = check(audited({"text": "\\N"}, {"text": "a text"}))
    assert finding.details["markers"] == {"\\N": 1}
