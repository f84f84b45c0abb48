"""`luthier data synthesise`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.testing.openai_server import OpenAIServer, serving

KEY = "sk-never-to-be-seen"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "The front is spruce."}) + "\n" + json.dumps({"text": "It rains."}) + "\n")
    return file


def test_what_was_written_refused_and_used_is_told(luthier, rows: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "pairs.jsonl"
    server = OpenAIServer(answer=lambda _: '{"question": "Which wood?", "answer": "The front is spruce."}')
    with serving(server) as url:
        arguments = ("data", "synthesise", rows, "--teacher", f"{url}#m", "-o", output)
        document = luthier(*arguments, "--json", "--price-input", "1", "--price-output", "2").document
        text = luthier(*arguments).out
    assert (document["num_pairs"], document["refused"]) == (1, {"low_support": 1})
    assert document["teacher_usage"]["num_requests"] == len(server.requests) == 2
    assert document["cost_usd"] > 0
    for words in (
        f"{output}: 1 pair from 2 rows of {rows}",
        f"refused        1, listed in {output}.refused.jsonl",
        "  low_support  1",
        "0 prompt + 0 new in 0 requests; from the cache",
        "no prices were given, so no cost is claimed",
        "none: overlap of words alone decides",
    ):
        assert words in text


def test_a_wrong_key_stands_nowhere(luthier, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("LUTHIER_TEACHER_API_KEY", KEY)
    with serving(OpenAIServer(key="another")) as url:
        done = luthier("data", "synthesise", rows, "--teacher", f"{url}#m", "-o", tmp_path / "p.jsonl", "--json")
    assert done.code == 2
    assert "HTTP 401" in done.document["error"]["came"]
    assert KEY not in done.out + done.err
    for file in (tmp_path / "home").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
