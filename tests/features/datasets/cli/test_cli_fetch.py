from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.hub_server import COMMIT, Hub, serving

from luthier.ml.data.files import bounded_folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub({"train.jsonl": b'{"text": "one"}\n'}, repo="org/qa", kind="dataset")
    with serving(served) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


def test_a_source_is_fetched_once_and_refreshed_when_asked_for(luthier: Any, hub: Hub) -> None:
    first = luthier("data", "fetch", "hub:org/qa", "--json").document
    assert (first["revision"], first["before"], first["was_there"]) == (COMMIT, None, False)
    (file,) = first["files"]
    assert Path(file["path"]).read_bytes() == hub.files["train.jsonl"]
    assert file["num_bytes"] == 16
    assert luthier("data", "fetch", "hub:org/qa", "--json").document["was_there"]
    hub.files["train.jsonl"], hub.commit = b'{"text": "two"}\n', "f" * 40
    again = luthier("data", "fetch", "hub:org/qa")
    assert "Already on this machine; --refresh looks" in again.out
    newer = luthier("data", "fetch", "hub:org/qa", "--refresh")
    assert "f" * 40 in newer.out
    assert COMMIT in newer.out, "what was there before is shown, too"
    assert "Already on this machine; no newer revision" in luthier("data", "fetch", "hub:org/qa", "--refresh").out


def test_a_path_is_no_remote_source(luthier: Any) -> None:
    done = luthier("data", "fetch", "rows.jsonl")
    assert done.code == 2
    assert "'rows.jsonl' is not a remote source" in done.err


@pytest.mark.usefixtures("hub")
def test_the_cache_is_shown_with_its_limits_and_cleared(luthier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = luthier("data", "fetch", "hub:org/qa", "--json").document["files"]
    downloads, mixtures = luthier("data", "cache", "--json").document["folders"]
    assert (downloads["num_entries"], downloads["num_bytes"], downloads["max_bytes"]) == (1, 16, 100 << 30)
    assert (mixtures["num_entries"], mixtures["max_bytes"]) == (0, 50 << 30)
    assert "downloaded data files" in luthier("data", "cache").out
    assert luthier("data", "cache", "--clear", "--json").document["folders"][0]["num_removed"] == 0, "used just now"
    monkeypatch.setattr(bounded_folder, "IN_USE_SECONDS", 0.0)
    cleared = luthier("data", "cache", "--clear", "--json").document["folders"][0]
    assert (cleared["num_removed"], cleared["num_removed_bytes"], cleared["num_entries"]) == (1, 16, 0)
    assert not Path(file["path"]).exists()
