"""Spans reach a collector over HTTP as the conventions have them; nothing of it is needed, nor stops an answer."""

from __future__ import annotations

import gzip
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import BusyError
from luthier.core.stream import Served
from luthier.features.serving.models import Routed
from luthier.features.traffic import service as traffic
from luthier.features.traffic.log import RequestRecord
from luthier.platform.home.context import Context

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ROUTED = Routed("support", "run-1", Served(path="/x", sha256="0"), is_canary=True)


class Collector:
    """Keeps the requests that come to a port of this machine."""

    def __init__(self) -> None:
        bodies = self.bodies = list[bytes]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                is_packed = self.headers.get("Content-Encoding") == "gzip"
                bodies.append(gzip.decompress(data) if is_packed else data)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> tuple[list[Any], dict[str, str]]:
        """All that came, and what is said of the service."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found, resource = list[Any](), dict[str, str]()
        for body in self.bodies:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource |= {one.key: one.value.string_value for one in group.resource.attributes}
                found += [span for scope in group.scope_spans for span in scope.spans]
        return found, resource


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    made = Collector()
    monkeypatch.setenv(ENDPOINT, made.url)
    yield made
    made.server.shutdown()
    made.server.server_close()


def told(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {one.key: plain(one.value) for one in span.attributes}


def test_an_answer_is_told_as_a_span(tmp_path: Path, collector: Collector) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Context.open(tmp_path / "home") as context:
        one = RequestRecord(context, Caller(), "support", "anna", "chatcmpl-7", trace_parent=parent)
        one.end(
            ROUTED,
            finish_reason="stop",
            num_prompt_tokens=5,
            num_new_tokens=9,
            first_at=one.began_at + 0.5,
            ended_at=one.began_at + 2,
        )
    (span,), resource = collector.spans()
    assert resource["service.name"] == "luthier"
    assert span.name == "chat support"
    assert told(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "luthier",
        "gen_ai.request.model": "support",
        "gen_ai.response.model": "run-1",
        "gen_ai.response.id": "chatcmpl-7",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 9,
        "luthier.project.id": "default",
        "luthier.canary": True,
    }
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == tuple(parent.split("-")[1:3])
    assert span.start_time_unix_nano == pytest.approx(one.at * 1e9, abs=1e4)
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(2e9, abs=1e4)
    assert b"anna" not in b"".join(collector.bodies)


def test_what_failed_says_why(tmp_path: Path, collector: Collector) -> None:
    with Context.open(tmp_path / "home") as context:
        busy = BusyError("all are busy", expected="room", do="wait")
        RequestRecord(context, Caller(), "m", operation="embeddings", trace_parent="nonsense").end(None, error=busy)
    (span,), _ = collector.spans()
    assert (span.name, told(span)["error.type"], span.status.code) == ("embeddings m", "busy", 2)


def test_without_a_collector_nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    with Context.open(tmp_path / "home") as context:
        assert context.traffic_recorder.spans is None


def test_without_the_extra_it_is_said_and_answers_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING), Context.open(tmp_path / "home") as context:
        RequestRecord(context, Caller(), "m").end(None)
        assert context.traffic_recorder.log.flush()
        assert traffic.exchanges(context, "default").height == 1
    assert "pip install 'luthier[otel]'" in caplog.text


def test_a_span_that_cannot_be_made_keeps_nothing_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def tell(self, *_: object) -> None:
            raise ValueError("broken")

        def close(self) -> None:
            pass

    with Context.open(tmp_path / "home") as context:
        monkeypatch.setattr(context.traffic_recorder, "spans", Broken())
        RequestRecord(context, Caller(), "m").end(None)
        assert context.traffic_recorder.log.flush()
        assert traffic.exchanges(context, "default").height == 1
    assert "no span was made" in caplog.text
