from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from luthier.features.datasets.cli.describe import _show
from luthier.ml.data.diff.compare import diff


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    rows = [{"prompt": f"What is {n} plus one?", "completion": f"It is {n + 1}."} for n in range(12)]
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    old.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[2]["completion"] = "It is \x1b[31mthree."
    new.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    return old, new


def test_a_pipe_gets_lines_with_minus_and_plus(luthier: Any, versions: tuple[Path, Path]) -> None:
    done = luthier("data", "diff", *versions)
    assert done.code == 0, done.err
    assert "rows matched by the prompt of the row" in done.out
    assert "10 same, 1 changed, 0 added, 1 removed" in done.out
    assert "  - completion: It is 3.\n  + completion: It is ␛[31mthree.\n" in done.out
    assert "\n- old.jsonl:12\n  - prompt: What is 11 plus one?" in done.out
    assert "\x1b" not in done.out


def test_a_terminal_gets_one_line_in_colour(versions: tuple[Path, Path]) -> None:
    console = Console(force_terminal=True, width=200, color_system="standard", legacy_windows=False, _environ={})
    with console.capture() as captured:
        _show(console, diff(*versions))
    text = captured.get()
    assert "\x1b[9;31m3" in text  # struck through, red
    assert "\x1b[32m" in text
    assert "\x1b[31mthree" not in text.replace("\x1b[31m\x1b", "")


def test_exit_code_only_where_it_is_asked_for_and_rows_differ(luthier: Any, versions: tuple[Path, Path]) -> None:
    old, new = versions
    assert luthier("data", "diff", old, new).code == 0
    assert luthier("data", "diff", old, new, "--exit-code").code == 1
    assert luthier("data", "diff", old, old, "--exit-code").code == 0


def test_json_names_every_row(luthier: Any, versions: tuple[Path, Path]) -> None:
    document = luthier("data", "diff", *versions, "--json", "--examples", "0").document
    assert document["is_different"] is True
    assert document["changed"] == [{"old": "old.jsonl:3", "new": "new.jsonl:3"}]
    assert document["removed"] == ["old.jsonl:12"]
    assert document["examples"] == []
    assert {"name": "rows", "unit": "rows", "old": 12, "new": 11, "change": -1} in document["figures"]


def test_what_is_not_shown_is_said(luthier: Any, versions: tuple[Path, Path]) -> None:
    assert "and 2 more rows; --json names all of them" in luthier("data", "diff", *versions, "--examples", "0").out


def test_a_missing_file_is_a_wrong_request(luthier: Any, versions: tuple[Path, Path], tmp_path: Path) -> None:
    done = luthier("data", "diff", versions[0], tmp_path / "none.jsonl", "--json")
    assert done.code == 2
    assert done.document["error"]["type"] == "NotFoundError"
