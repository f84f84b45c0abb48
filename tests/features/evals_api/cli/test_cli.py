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
    file.write_bytes(b'{"name": "\xff"}')
    capsys.readouterr()
    assert main(["evals", "import", str(file)]) == 2
    assert "is no UTF-8 text" in capsys.readouterr().err
