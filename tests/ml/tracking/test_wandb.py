"""W&B's offline runs, read back by its own records."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.ml.tracking.tracked_run import BEGAN, deliver_to


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    """Imported here: every process of a run collects this file, and one runs it."""
    pytest.importorskip("wandb", reason="needs luthier[wandb]")


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: a LevelDB log of protocol buffers, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, part = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        part += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def test_an_offline_run_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    run = deliver_to("wandb", tmp_path)
    files = sorted(run.folder.rglob("*.wandb"))
    assert len(files) == 2
    found = [record for file in files for record in records(file)]
    begun = [record.run for record in found if record.HasField("run")]
    assert {(one.project, one.run_id, one.display_name) for one in begun} == {("mails", run.tracker_run_id, run.run_id)}
    config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert config["training.learning_rate"] == 2e-4
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    assert [row["train/global_step"] for row in history] == [1, 2, 3, 4, 5]
    assert [row["train/loss"] for row in history] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert [row["_timestamp"] for row in history] == [BEGAN + step for step in range(1, 6)]
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in found
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["verdict"] == "better"
    artifacts = {record.request.log_artifact.artifact.type for record in found if record.HasField("request")}
    artifacts |= {record.artifact.type for record in found if record.HasField("artifact")}
    assert {"report", "model"} <= artifacts
