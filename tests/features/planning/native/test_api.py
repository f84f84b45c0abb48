"""/api/v1/plans and /api/v1/audits: what the commands say, for files by id and models by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.ports import SilentProgress
from luthier.features.files.references import plan_of
from luthier.platform.auth.service import create_project
from luthier.platform.files.service import add_file
from luthier.platform.home.context import Context


@pytest.fixture
def rows(home: Context, tmp_path: Path, tiny_model: Path) -> str:
    """The id of a file of the project `default`; the home has pulled a model that is called `tiny`."""
    from luthier.ml.inference.models import sources

    sources.pull(str(tiny_model), home.home, SilentProgress())
    lines = [
        {"messages": [{"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": f"Then {n + 1}."}]}
        for n in range(24)
    ]
    lines[3] = lines[2]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return add_file(home, "default", path, filename="mine.jsonl", purpose="fine-tune").file_id


def recipe(rows: str, **more: Any) -> dict[str, Any]:
    return {"recipe": {"base_model": "tiny", "data": {"train": rows, "held_out": 0.25}, **more}}


def test_a_plan_with_its_quote_and_without_a_path(visitor, rows: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = visitor("train")
    answer = asked.post("/api/v1/plans", json=recipe(rows))
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert set(plan) == {"hash", "values", "predicted", "plan"}
    assert plan["plan"]["data"]["train"]["num_examples"] > 10
    assert plan["predicted"]["hours"] >= 0
    assert plan["plan"]["recipe"]["data"]["train"] == rows
    assert plan["plan"]["recipe"]["base_model"] == "tiny"
    assert str(tmp_path) not in answer.text
    assert '"/' not in answer.text
    wrong = asked.post("/api/v1/plans", json=recipe(rows, method={"name": "lorra"}))
    assert wrong.status_code == 400
    assert "did you mean 'lora'" in wrong.json()["error"]["message"] or "lora" in wrong.json()["error"]["message"]
    assert str(tmp_path) not in wrong.text


def test_a_plan_names_no_folder_of_a_tracker(home: Context, rows: str) -> None:
    places = ["/srv/curves", "sqlite:////srv/mlflow.db", "https://host"]

    def ask(_: Context, question: str, asked: dict[str, Any]) -> dict[str, Any]:
        assert (question, set(asked)) == ("plan", {"recipe", "compares"})
        tracking = [{"name": "mlflow", "location": place} for place in places]
        return {"plan": {"tracking": tracking, "recipe": {"tracking": None}}}

    found = plan_of(home, "default", recipe(rows)["recipe"], ask=ask)
    assert [one["location"] for one in found["plan"]["tracking"]] == [None, None, "https://host"]


@pytest.mark.parametrize(
    "data",
    [
        {"train": "/etc/passwd"},
        {"train": "file-20260101-000000-abcdef"},
        {"train": "../mine.jsonl"},
        {"train": 0.5},
        {"train": None, "validation": "/etc/passwd"},
        {"held_out": "~/x.jsonl"},
        {"replay": {"file": "/etc/passwd"}},
        {"replay": {"held_out": "file-x"}},
    ],
)
def test_what_stands_for_a_file_must_be_the_id_of_one(visitor, rows: str, data: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    body = recipe(rows)
    body["recipe"]["data"] |= {name: value for name, value in data.items() if value is not None}
    answer = visitor("train").post("/api/v1/plans", json=body)
    assert answer.status_code == 400
    assert "expected: the id of a file of this project" in answer.json()["error"]["message"]


def test_nor_is_a_model_named_by_a_path(visitor, rows: str, tiny_model: Path) -> None:  # type: ignore[no-untyped-def]
    body = recipe(rows)
    for name in (str(tiny_model), "./tiny", "hub:someone/something", 5, None):
        body["recipe"]["base_model"] = name
        assert visitor("train").post("/api/v1/plans", json=body).status_code == 400
    teacher = {"name": "distillation", "teacher": str(tiny_model)}
    answer = visitor("train").post("/api/v1/plans", json=recipe(rows, objective=teacher))
    assert answer.status_code == 400
    assert "objective.teacher" in answer.json()["error"]["message"]


def test_another_projects_file_is_not_there(visitor, home: Context, rows: str) -> None:  # type: ignore[no-untyped-def]
    create_project(home, "b")
    other = visitor("train", project="b")
    assert other.post("/api/v1/plans", json=recipe(rows)).status_code == 400
    assert other.post("/api/v1/audits", json={"file_id": rows}).status_code == 400
    assert visitor("read").post("/api/v1/plans", json=recipe(rows)).status_code == 403


def test_an_audit_of_a_file(visitor, rows: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = visitor("train")
    answer = asked.post("/api/v1/audits", json={"file_id": rows, "only": ["exact_duplicate"]})
    assert answer.status_code == 200, answer.text
    audit = answer.json()
    assert (audit["file"], audit["num_rows"]) == (rows, 24)
    assert [finding["check"] for finding in audit["findings"]] == ["exact_duplicate"]
    assert str(tmp_path) not in answer.text
    unknown = asked.post("/api/v1/audits", json={"file_id": rows, "only": ["no_such_check"]})
    assert unknown.status_code in (400, 404)
    assert "no_such_check" in unknown.json()["error"]["message"]
