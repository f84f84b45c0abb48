"""A repair as a whole: what it writes, and that it can be trusted to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import ConflictError, DataError, RequestError
from luthier.core.ids import sha256_bytes, sha256_file
from luthier.ml.data.audit import earlier_rows
from luthier.ml.data.audit.earlier_rows import EarlierRows
from luthier.ml.data.repair import run

Write = Callable[..., Path]


def pair(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def test_lines_that_are_kept_are_kept_byte_for_byte(tmp_path: Path, make: Any) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [
        b'{"completion":"caf\\u00e9", "prompt":"a?",  "n":1.50, "big":123456789012345678901234567890}',
        b'  {"prompt": "b?", "completion": "x", "half": "\\ud800"}  ',
        '{"prompt": "c?", "completion": "ü"}'.encode(),
    ]
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines))
    before = file.read_bytes()
    made = make(file)
    assert made.repaired.output.read_bytes() == b"".join(line + b"\n" for line in lines)
    assert file.read_bytes() == before
    assert [(e["line"], e["output_line"]) for e in made.fates] == [(1, 1), (3, 2), (5, 3)]
    for entry, line in zip(made.fates, lines, strict=True):
        assert entry["sha256_before"] == entry["sha256_after"] == sha256_bytes(line)
        assert (entry["check"], entry["reason"], entry["reasons"]) == (None, None, [])


def test_the_summary_says_what_was_done(jsonl: Write, make: Any) -> None:
    file = jsonl(pair("a?", "x"), pair("a?", "x"), pair("b?", "mail anna@acme-corp.com"), pair("c?", "z"))
    made = make(file)
    document = json.loads(made.repaired.summary.read_text(encoding="utf-8"))
    assert document == made.repaired.document
    assert document["sha256"] == sha256_file(file)
    assert document["output_sha256"] == sha256_file(made.repaired.output)
    assert document["fates"] == {"kept": 2, "changed": 1, "removed": 1}
    assert (document["num_rows"], document["num_rows_after"]) == (4, 3)
    counts = {action["id"]: action["num_rows"] for action in document["actions"]}
    assert (counts["exact_duplicate"], counts["personal_data"], counts["secret"]) == (1, 1, 0)
    assert document["grade_before"] != "A"
    assert (document["grade_after"], document["left"]) == ("A", [])


def test_the_same_repair_gives_the_same_bytes(jsonl: Write, make: Any, tmp_path: Path) -> None:
    file = jsonl(pair("a?", "mail anna@acme-corp.com"), pair("b?", "y"), pair("b?", "Y"))
    one, two = (make(file, output=tmp_path / name / "clean.jsonl") for name in ("one", "two"))
    for name in ("output", "manifest", "summary"):
        assert getattr(one.repaired, name).read_bytes() == getattr(two.repaired, name).read_bytes()


_KEY = "key AKIA" + "Q3WZVTGH7XZ4KLMN"
_TEXTS = st.sampled_from(
    [
        *("Blue.", "blue. ", "It is CafÃ© time", "It is Café time", "<p>left&nbsp;over</p>", "N/A", ""),
        *("Write to anna@acme-corp.com", "Call +1 415 867 5309 now", _KEY, "As an AI language model, I cannot."),
        *("and on and on and on " * 20, "zero\u200bwidth \x07bell"),
        *(" ".join(f"w{n}" for n in range(k, 40)) for k in range(4)),
    ]
)
_BROKEN = st.sampled_from(["{broken", "[1]", '"text"', "", '{"prompt": "p"}', '{"prompt": 1, "completion": "x"}'])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 6), _TEXTS) | _BROKEN, min_size=1, max_size=25))
def test_repairing_again_changes_nothing(
    make: Any, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str] | str]
) -> None:
    folder = tmp_path_factory.mktemp("again")
    file = folder / "rows.jsonl"
    # More rows without HTML than with: whether HTML is meant must not change when rows are removed.
    lines = [json.dumps(pair(f"always there, {n}?", f"This answer is in order, {n} of {n + 1}.")) for n in range(30)]
    lines += [row if isinstance(row, str) else json.dumps(pair(f"question {row[0]}?", row[1])) for row in rows]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    once = make(file, output=folder / "once.jsonl")
    assert [entry["line"] for entry in once.fates] == [n for n, line in enumerate(lines, start=1) if line.strip()]
    kept = [entry["output_line"] for entry in once.fates if entry["output_line"]]
    assert kept == list(range(1, len(once.lines) + 1))
    for entry in once.fates:
        same = entry["sha256_before"] == entry["sha256_after"]
        assert same == (entry["fate"] == "kept")
        assert bool(entry["reasons"]) == (entry["fate"] != "kept")
    again = make(once.repaired.output, output=folder / "again.jsonl")
    assert set(again.fate.values()) == {"kept"}
    assert again.lines == once.lines


def test_csv_json_and_nested_parquet_come_out_as_jsonl(tmp_path: Path, make: Any) -> None:
    rows = [pair("a?", "x"), pair("b?", "y"), pair("a?", "x")]
    csv, document, parquet = tmp_path / "r.csv", tmp_path / "r.json", tmp_path / "r.parquet"
    csv.write_text("prompt,completion\na?,x\nb?,y\na?,x\nragged\n", encoding="utf-8")
    document.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    pl.DataFrame([{**row, "meta": {"tags": ["t", "u"]}} for row in rows]).write_parquet(parquet)
    assert make(csv, output=tmp_path / "c.jsonl").fate == {1: "kept", 2: "kept", 3: "removed", 4: "removed"}
    assert make(document, output=tmp_path / "d.jsonl").rows == rows[:2]
    assert make(parquet, output=tmp_path / "p.jsonl").rows == [
        {**row, "meta": {"tags": ["t", "u"]}} for row in rows[:2]
    ]


def test_mapped_fields_keep_their_names(jsonl: Write, make: Any) -> None:
    file = jsonl({"q": "a?", "a": "anna@acme-corp.com"}, {"q": "b?", "a": "y"}, {"q": "b?", "a": "y"})
    made = make(file, mapping={"prompt": "q", "completion": "a"})
    assert made.rows == [{"q": "a?", "a": "person1@example.com"}, {"q": "b?", "a": "y"}]


def test_no_row_left_is_an_error_and_writes_nothing(jsonl: Write, make: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row of rows\.jsonl is left: 2 refusal"):
        make(jsonl(*(pair(q, "As an AI language model, I cannot.") for q in ("a?", "b?"))), only=["refusal"])
    assert list((tmp_path / "out").iterdir()) == []


def test_the_original_is_never_written_over(jsonl: Write, make: Any, tmp_path: Path) -> None:
    file = jsonl(pair("a?", "x"), pair("a?", "x"))
    before = file.read_bytes()
    (tmp_path / "soft.jsonl").symlink_to(file)
    os.link(file, tmp_path / "hard.jsonl")
    manifest_is_input = tmp_path / "x.jsonl.manifest.jsonl"
    os.link(file, manifest_is_input)
    for output in (file, tmp_path / "soft.jsonl", tmp_path / "hard.jsonl", tmp_path / "x.jsonl"):
        with pytest.raises(RequestError, match="the file that is read"):
            make(file, output=output, force=True)
    with pytest.raises(RequestError, match=r"ends in \.jsonl"):
        make(file, output=tmp_path / "clean.csv")
    assert file.read_bytes() == before


def test_an_earlier_repair_is_not_replaced_in_silence(jsonl: Write, make: Any) -> None:
    file = jsonl(pair("a?", "x"), pair("a?", "x"))
    made = make(file)
    written = made.repaired.output.read_bytes()
    with pytest.raises(ConflictError, match="already exists"):
        make(file, only=["secret"])
    assert made.repaired.output.read_bytes() == written
    assert len(make(file, only=["secret"], force=True).lines) == 2


def test_a_repair_that_was_stopped_can_be_done_again(
    jsonl: Write, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = jsonl(pair("a?", "x"), pair("a?", "x")), tmp_path / "out" / "clean.jsonl"
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if str(target).endswith(".manifest.jsonl"):
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            make(file)
    assert [path.name for path in output.parent.iterdir()] == ["clean.jsonl"]
    assert len(make(file).fates) == 2
    assert len(list(output.parent.iterdir())) == 3


def test_a_file_of_somebody_else_is_not_replaced(jsonl: Write, make: Any, tmp_path: Path) -> None:
    output = tmp_path / "other.jsonl"
    output.write_text("theirs\n", encoding="utf-8")
    with pytest.raises(ConflictError, match="already exists"):
        make(jsonl(pair("a?", "x")), output=output)
    assert output.read_text(encoding="utf-8") == "theirs\n"
    assert not output.with_name("other.jsonl.repair.json").exists()


def test_a_file_that_changes_meanwhile_is_noticed(
    jsonl: Write, make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = jsonl(pair("a?", "x"), pair("b?", "y"))
    real = run.write_rows_and_manifest

    def write(*arguments: Any) -> Any:
        done = real(*arguments)
        with file.open("a", encoding="utf-8") as more:
            more.write(json.dumps(pair("c?", "z")) + "\n")
        return done

    monkeypatch.setattr(run, "write_rows_and_manifest", write)
    with pytest.raises(DataError, match="was changed while it was read"):
        make(file)
    assert list((tmp_path / "out").iterdir()) == []


def test_values_that_json_does_not_have(tmp_path: Path, make: Any) -> None:
    file = tmp_path / "r.parquet"
    rows = [{**pair(f"q{n}?", f"a{n}"), "day": date(2026, 1, 1 + n), "raw": b"x" if n else None} for n in range(2)]
    pl.DataFrame(rows).write_parquet(file)
    made = make(file)
    assert made.rows == [{**pair("q0?", "a0"), "day": "2026-01-01", "raw": None}]
    assert made.reasons == {2: ["schema: cannot be written as JSON: raw bytes (bytes) is not a JSON value"]}


def test_rows_of_mixed_shapes_stay_and_are_told(jsonl: Write, make: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    made = make(jsonl(pair("a?", "x"), chat, chat))
    assert made.fate == {1: "kept", 2: "kept", 3: "removed"}
    assert [left["check"] for left in made.repaired.document["left"]] == ["schema"]


def test_rows_taken_from_the_first_table_give_the_same_repair_as_rows_that_are_all_read_again(
    jsonl: Write, make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = ["It is CafÃ© time", "It is Café time", "Write to anna@acme-corp.com", "and on and on and on " * 20, ""]
    rows: list[dict[str, Any] | str] = [pair(f"always there, {n}?", f"This is in order, {n}.") for n in range(30)]
    rows += [pair("question?", text) for text in texts]
    rows += ["{broken", json.dumps({"prompt": "p"}), json.dumps({"prompt": 1, "completion": "x"})]
    file = jsonl(*rows)
    file.write_bytes(file.read_bytes() + '{"prompt": "which?", "completion": "café"}\n'.encode("cp1252"))
    num_taken: list[int] = []
    real = EarlierRows.frames

    def frames(self: EarlierRows, *rest: Any) -> Any:
        num_taken.append(self.table.height - len(self.changed))
        return real(self, *rest)

    monkeypatch.setattr(EarlierRows, "frames", frames)
    one = make(file, output=tmp_path / "one" / "clean.jsonl")
    monkeypatch.setattr(earlier_rows, "_MOST_CHANGED", -1)
    two = make(file, output=tmp_path / "two" / "clean.jsonl")
    assert len(num_taken) == 1
    assert num_taken[0] >= 30
    assert {"kept", "changed", "removed"} == set(one.fate.values())
    for name in ("output", "manifest", "summary"):
        assert getattr(one.repaired, name).read_bytes() == getattr(two.repaired, name).read_bytes()
