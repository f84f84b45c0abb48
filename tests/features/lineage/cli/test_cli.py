"""`luthier data forget` without `--yes` shows what would be removed, also where no run has used it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fixtures.service import chat_row

from luthier.core.access import Caller
from luthier.features.datasets import service as dataset_versions
from luthier.platform.home.context import Context

ME = Caller()
SECRET = "Ann Example lives at 4 Mill Lane"


def test_a_preview_names_the_versions_and_removes_nothing(luthier, home: Path) -> None:  # type: ignore[no-untyped-def]
    secret = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": SECRET}]}
    held, other = (json.dumps(row).encode() + b"\n" for row in (secret, chat_row(1)))
    with Context.open(home) as context:
        file = dataset_versions.keep_rows(context, ME, [held, other], "rows.jsonl")
        dataset, _ = dataset_versions.create_dataset(context, ME, "orders", file)
    seen = luthier("data", "forget", SECRET, "--json").document
    assert seen["versions"] == [{"dataset_id": dataset.dataset_id, "version": 1, "num_rows": 1}]
    assert (seen["saw"], seen["num_reviews"], seen["num_feedback"]) == ([], 0, 0)
    text = luthier("data", "forget", SECRET).out
    assert "orders: 1 row of version 1 would be removed" in text
    assert "do it with --yes" in text
    assert luthier("data", "forget", SECRET, "--yes", "--json").document["versions"] == [
        {"dataset_id": dataset.dataset_id, "version": 2, "num_removed": 1}
    ]
    text = luthier("data", "forget", SECRET).out
    assert "orders: version 1 keeps 1 row" in text
    assert "there is nothing to remove" in text
