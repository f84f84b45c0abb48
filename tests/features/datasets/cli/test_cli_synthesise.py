"""`luthier data synthesise`."""

from __future__ import annotations

import itertools
import json
import signal
import threading
from pathlib import Path

import pytest
from tests.clock import wait_until
from tests.fixtures.forked_children import SessionForkServer
from tests.vacuous import nonempty

from luthier.ml.inference.openai.http import DEFAULT_CONCURRENCY
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
        text = luthier(*arguments, "--force").out
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
    for file in nonempty((tmp_path / "home").rglob("*")):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def test_a_kill_loses_only_what_was_under_way(  # type: ignore[no-untyped-def]
    luthier, home: Path, tmp_path: Path, fork_server: SessionForkServer
) -> None:
    """SIGKILL in the middle of the first batch: the next run asks for the rest, and never twice for what was kept."""
    texts = [f"The front of instrument {n} is spruce." for n in range(30)]
    rows, output = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    goes_on, numbers, num_answered = threading.Event(), itertools.count(), 20

    def answer(asked: str) -> str:
        if next(numbers) >= num_answered:  # the first ones are answered, and those behind them wait
            goes_on.wait(600)
        number = asked.split("instrument ")[1].split(" ")[0]
        return json.dumps({"question": f"What is the front of instrument {number}?", "answer": "The front is spruce."})

    server = OpenAIServer(answer=answer)
    with serving(server) as url:
        arguments = ["data", "synthesise", str(rows), "--teacher", f"{url}#m", "-o", str(output), "--json"]
        with fork_server.module("luthier", *arguments) as process:
            wait_until(lambda: len(server.requests) == num_answered + DEFAULT_CONCURRENCY)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert not output.exists()
        num_before = len(server.requests)
        goes_on.set()
        document = luthier(*arguments).document
    usage = document["teacher_usage"]
    assert document["num_pairs"] == 30
    assert usage["num_cached_requests"] >= num_before - 2 * DEFAULT_CONCURRENCY > 0
    assert usage["num_requests"] + usage["num_cached_requests"] == 30
    assert len(server.requests) - num_before == usage["num_requests"]
