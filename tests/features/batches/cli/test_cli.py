"""`luthier batches`: list, show with and without waiting, cancel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.access import Caller
from luthier.features.batches import cli, service
from luthier.features.batches.records import BatchFault, BatchRequest
from luthier.features.batches.store import BatchView
from luthier.platform.files import service as files
from luthier.platform.home.context import Context


def started(home: Path) -> BatchView:
    with Context.open(home) as context:
        with files.incoming_file(context) as incoming:
            incoming.write(json.dumps({"custom_id": "a"}).encode())
            stored = files.keep_file(context, "default", incoming, filename="in.jsonl", purpose="batch")
        asked = {"input_file_id": stored.file_id, "endpoint": "/v1/responses", "completion_window": "24h"}
        return service.start(context, Caller(), BatchRequest.model_validate(asked))


def test_batches_are_listed_shown_and_cancelled(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    assert "no batches yet" in luthier("batches", "list").out
    batch_id = started(home).batch.batch_id
    assert [one["batch_id"] for one in luthier("batches", "list", "--json").document] == [batch_id]
    assert "validating" in luthier("batches", "list").out
    with Context.open(home) as context:
        done = {"status": "in_progress", "num_total": 1200, "num_completed": 1000, "num_failed": 2}
        context.batches.change(batch_id, done)
    shown = luthier("batches", "show", batch_id)
    assert (shown.code, "1,002 of 1,200 done, 2 of them failed" in shown.out) == (0, True)
    assert "/v1/responses" in shown.out
    assert batch_id in luthier("jobs", "list").out or luthier("jobs", "list", "--json").document[0]["kind"] == "batch"
    assert luthier("batches", "cancel", batch_id, "--json").document["status"] == "cancelled"
    assert luthier("batches", "cancel", batch_id).code != 0
    assert luthier("batches", "show", "batch_none").code != 0


def test_waiting_ends_with_the_batch(  # type: ignore[no-untyped-def]
    luthier, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = started(home).batch.batch_id

    def end(_seconds: float) -> None:
        with Context.open(home) as context:
            fault = BatchFault(code="access_revoked", message="the key was revoked")
            context.batches.change(batch_id, {"status": "failed", "faults": (fault,)})

    monkeypatch.setattr(cli.time, "sleep", end)
    shown = luthier("batches", "show", batch_id, "--wait")
    assert shown.code == 1
    assert "the key was revoked" in shown.out
