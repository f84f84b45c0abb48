"""/api/v1/plans of rows that teach a task head little or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.head_rows import CASES

from luthier.core.ports import SilentProgress
from luthier.platform.files.service import add_file
from luthier.platform.home.context import Context


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_refused_or_has_a_note(
    visitor: Callable[..., TestClient], home: Context, name: str, tmp_path: Path, tiny_model: Path
) -> None:
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), home.home, SilentProgress())
    case, data = CASES[name], {}
    for side, rows in (("train", case.train), ("held_out", case.held_out)):
        if rows:
            path = tmp_path / f"{side}.jsonl"
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            data[side] = add_file(home, "default", path, filename=path.name, purpose="fine-tune").file_id
    recipe = {"base_model": "tiny", "objective": case.objective, "data": data}
    answer = visitor("train").post("/api/v1/plans", json={"recipe": recipe})
    assert answer.status_code == (400 if case.is_refused else 200), answer.text
    document: dict[str, Any] = answer.json()
    if case.is_refused:
        said = document["error"]["message"]
        assert "expected: " in said
        assert str(tmp_path) not in said
    else:
        said = " ".join(document["plan"]["objective"]["task_head_notes"])
    assert case.said in said
