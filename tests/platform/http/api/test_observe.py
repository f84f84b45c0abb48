"""One line a request, with what is needed to find it again and nothing that is secret."""

from __future__ import annotations

import json
import logging

import pytest

from luthier.platform.home.logs import JsonFormatter, TextFormatter


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    form = JsonFormatter("api")
    return [json.loads(form.format(record)) for record in caplog.records if record.name == "luthier.requests"]


def test_one_line_a_request(visitor, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    caplog.set_level(logging.INFO, logger="luthier")
    asked = visitor("read")
    asked.get("/metrics?token=sesame")
    asked.get("/nowhere/17?password=hunter2")
    asked.get("/healthz")
    asked.headers["Authorization"] = "Bearer sk-luthier-wrong"
    asked.get("/metrics")
    found = lines(caplog)
    assert [(line["method"], line["route"], line["path"], line["status"]) for line in found] == [
        ("GET", "unmatched", "/nowhere/17", 404),
        ("GET", "/metrics", "/metrics", 401),
    ]
    assert all(float(str(line["milliseconds"])) >= 0 for line in found)
    assert {"time", "level", "process", "request_id", "key_id"} <= set(found[0])
    # None of them is a word that a request's random number in base 16 can spell by chance.
    assert not any(secret in caplog.text for secret in ("sesame", "hunter2", "sk-luthier-wrong"))


def test_a_line_break_of_a_strangers_makes_no_line(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.makeLogRecord({"msg": "GET /a\n12:00:00 up all is well", "name": "x"})
    assert "\n" not in TextFormatter("api").format(record)
    assert "\n" not in JsonFormatter("api").format(record)


def test_the_trace_of_a_bug_is_there_in_both_forms() -> None:
    try:
        raise ValueError("oh")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "bug", "exc_info": (ValueError, error, error.__traceback__)})
    assert "ValueError: oh" in json.loads(JsonFormatter("api").format(record))["trace"]
    assert "ValueError: oh" in TextFormatter("api").format(record)
