"""`luthier evals import`, of a file and of stdin."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main

EVAL: dict[str, Any] = {
    "name": "Short",
    "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
    "testing_criteria": [
        {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "b", "operation": "eq"}
    ],
}


def test_a_suite_is_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text('{"item": {"q": "a"}}\n')
    options = ["--data", str(rows), "--prompt", "q", "--out", str(out)]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(EVAL)))
    assert main(["evals", "import", "-", *options, "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["suites"]
    assert made["suite"] == str(out / "short.yaml")
    assert (made["num_rows"], made["graders"], made["notes"]) == (1, ["same"], [])
    file = tmp_path / "eval.json"
    file.write_text(json.dumps(EVAL))
    assert main(["evals", "import", str(file), *options, "--force"]) == 0
    assert "luthier eval MODEL --suite" in capsys.readouterr().out
    assert main(["evals", "import", str(tmp_path / "none.json")]) == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_progress_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    """Each eval is counted, and the answer alone is on stdout."""
    file, rows, out = tmp_path / "evals.json", tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text(json.dumps([EVAL, EVAL | {"name": "Long"}]))
    rows.write_text('{"item": {"q": "a"}}\n')
    options = ["--data", str(rows), "--prompt", "q", "--out", str(out), *(["--json"] if as_json else [])]
    assert main(["evals", "import", str(file), *options]) == 0
    shown = capsys.readouterr()
    assert "Importing evals: 0/2 evals (0%)" in shown.err
    assert "Importing evals: 2/2 evals (100%)" in shown.err
    assert "Importing evals" not in shown.out
    if as_json:
        assert len(json.loads(shown.out)["suites"]) == 2


def test_a_file_in_another_encoding_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eval.json").write_bytes(json.dumps(EVAL | {"name": "Kürze"}, ensure_ascii=False).encode("cp1252"))
    assert main(["evals", "import", str(tmp_path / "eval.json")]) == 2
    assert "has byte 0xfc, and is not UTF-8" in capsys.readouterr().err


def test_a_line_separator_within_a_row_ends_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """U+2028 is a character of JSON texts like others; editors of Windows begin a file with a byte order mark."""
    file, rows, out = tmp_path / "eval.json", tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text(json.dumps(EVAL), encoding="utf-8-sig")
    rows.write_text('{"item": {"q": "a\u2028b"}}\n{"item": {"q": "c"}}\n', encoding="utf-8-sig")
    assert main(["evals", "import", str(file), "--data", str(rows), "--prompt", "q", "--out", str(out), "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["suites"]
    assert made["num_rows"] == 2
