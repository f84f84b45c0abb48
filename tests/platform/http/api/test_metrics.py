"""Figures for Prometheus: what was asked, what there is to do, and who may look."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from luthier.core.errors import WorkError
from luthier.core.stream import Served, TextRequest
from luthier.core.system.files import file_lock
from luthier.platform.home.context import Context
from luthier.platform.http import metrics as measures
from luthier.platform.jobs.records import Job

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def figures(text: str) -> Figures:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def test_requests_are_counted_by_route_and_never_by_address(visitor) -> None:  # type: ignore[no-untyped-def]
    asked = visitor(address="127.0.0.1")
    for number in range(20):
        asked.get(f"/nowhere/{number}")
    asked.request("BREW", "/healthz")
    asked.get("/healthz")
    found = figures(asked.get("/metrics").text)
    name = "luthier_http_requests_total"
    assert found[name, labelled(method="GET", route="unmatched", status="404")] == 20
    assert found[name, labelled(method="GET", route="/healthz", status="200")] == 1
    assert {dict(labels)["method"] for key, labels in found if key == name} == {"GET", "other"}
    assert not [labels for _, labels in found if "nowhere" in str(labels)]
    assert found["luthier_http_request_seconds_count", labelled(method="GET", route="unmatched")] == 20
    assert found["luthier_http_requests_in_flight", ()] == 1, "the one that asks"
    assert [labels for key, labels in found if key == "luthier_build_info"]


def test_long_answers_are_told_apart_by_their_time(home: Context) -> None:
    counted = measures.Metrics(home)
    for seconds in (0.2, 45.0, 45.0, 90.0, 1000.0):
        counted.count("POST", "/v1/chat/completions", 200, seconds)
    found = figures(generate_latest(counted.registry).decode())
    where = {"method": "POST", "route": "/v1/chat/completions"}
    ends = ("0.25", "10.0", "30.0", "60.0", "120.0", "300.0", "+Inf")
    name = "luthier_http_request_seconds_bucket"
    assert [found[name, labelled(le=end, **where)] for end in ends] == [1, 1, 1, 3, 4, 4, 5]


def test_the_state_of_the_home(visitor, home: Context) -> None:  # type: ignore[no-untyped-def]
    for number in range(3):
        home.jobs.submit(Job(job_id=f"job-{number}", kind="train", document={}, run_id=f"run-{number}"))
    home.jobs.claim("far-away")
    home.jobs.ask("job-1", "cancel")
    with file_lock(home.settings.jobs_folder / "worker-near.lock", what="w", timeout_seconds=0):
        found = figures(visitor(address="127.0.0.1").get("/metrics").text)
    jobs = {dict(labels)["status"]: value for (key, labels), value in found.items() if key == "luthier_jobs"}
    assert jobs == {"queued": 1, "running": 1, "paused": 0, "succeeded": 0, "failed": 0, "cancelled": 1}
    assert found["luthier_workers_alive", ()] == 2
    assert 0 <= found["luthier_queue_oldest_seconds", ()] < 60
    assert found["luthier_disk_free_bytes", ()] > 0
    assert found["luthier_tokens_total", ()] == 0
    assert found["luthier_webhook_deliveries", labelled(status="pending")] == 0
    assert found["luthier_database_up", ()] == 1


def test_answers_by_engine_and_a_scrape_starts_no_client(visitor, home: Context) -> None:  # type: ignore[no-untyped-def]
    asked = visitor(address="127.0.0.1")
    name = "luthier_serving_requests_total"
    assert [labels for key, labels in figures(asked.get("/metrics").text) if key == name] == []
    assert "inference_client" not in home.__dict__
    client = home.inference_client
    model = Served(path="/model", sha256="a")
    for _ in range(2):
        client.pick(model, [TextRequest(text="a")])
    client.pick(model, [TextRequest(text="a")], "transformers")
    found = figures(asked.get("/metrics").text)
    assert found[name, labelled(engine="transformers", reason="only")] == 2
    assert found[name, labelled(engine="transformers", reason="pinned")] == 1


def test_a_database_that_is_away_is_a_figure(visitor, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def away(_: Context) -> None:
        raise WorkError("no answer", expected="one", do="wait")

    monkeypatch.setattr(measures, "measured", away)
    found = figures(visitor(address="127.0.0.1").get("/metrics").text)
    assert found["luthier_database_up", ()] == 0


def test_from_elsewhere_it_takes_a_key_that_may_read(visitor) -> None:  # type: ignore[no-untyped-def]
    assert visitor().get("/metrics").status_code == 401
    assert visitor("infer").get("/metrics").status_code == 403
    assert visitor("read").get("/metrics").status_code == 200
    near = visitor(address="127.0.0.1")
    assert near.get("/metrics", headers={"X-Forwarded-For": "198.51.100.1"}).status_code == 401, "a proxy hands it on"
