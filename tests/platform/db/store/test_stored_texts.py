"""Texts in tables are found page by page, on both databases, and by the project that they belong to."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import insert, select

from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.stored_texts import FORGOTTEN, find_stored_texts, forget_stored_text
from luthier.platform.db.tables import evaluations, jobs, rating_items, rating_panels, runs


def holds(value: Any, is_id: bool) -> bool:
    return value == "secret" if is_id else "secret" in str(value)


def test_more_records_than_one_page_has_are_found_and_blanked(database: Database) -> None:
    AccessStore(database).add_project("proj-b", "b")
    with database.write() as connection:
        for panel_id, project_id in (("panel-a", "default"), ("panel-b", "proj-b"), ("panel-c", "default")):
            panel = {"panel_id": panel_id, "project_id": project_id, "name": panel_id, "document": "{}"}
            connection.execute(insert(rating_panels).values(**panel, created_at=1.0))
            answers = [{"system": "a", "text": "x"}]
            items = [
                {
                    "panel_id": panel_id,
                    "item": number,
                    "document": json.dumps(
                        {"item": number, "row_id": "r", "prompt": f"secret {number}" if number % 2 else "p"}
                        | {"answers": answers}
                    ),
                }
                for number in range(130)
            ]
            connection.execute(insert(rating_items), items)
    found = find_stored_texts(database, "default", holds)
    assert [one.key for one in found] == [(p, n) for p in ("panel-a", "panel-c") for n in range(1, 130, 2)]
    assert len(find_stored_texts(database, "proj-b", holds)) == 65
    with database.write() as connection:
        assert all(forget_stored_text(connection, one, holds) for one in found)
    assert find_stored_texts(database, "default", holds) == []
    with database.read() as connection:
        query = select(rating_items.c.document).where(rating_items.c.panel_id == "panel-c", rating_items.c.item == 1)
        assert json.loads(connection.execute(query).scalar() or "")["prompt"] == FORGOTTEN
    assert len(find_stored_texts(database, "proj-b", holds)) == 65


def test_records_of_runs_belong_to_the_project_of_the_job_else_to_that_of_the_run(database: Database) -> None:
    AccessStore(database).add_project("proj-b", "b")
    run = {
        "status": "succeeded", "base_model": "m", "method": "lora", "plan_hash": "h", "created_at": "1",
        "updated_at": "1", "step": 1, "num_steps": 1, "stopped_because": "secret",
    }  # fmt: skip
    job = {
        "job_id": "job-1", "kind": "train", "document": "{}", "run_id": "run-1", "status": "succeeded", "attempt": 1,
        "num_crashes": 0, "step": 0, "crash_step": 0, "not_before": 0.0, "created_at": 0.0, "updated_at": 0.0,
        "project_id": "proj-b",
    }  # fmt: skip
    with database.write() as connection:
        for run_id, project_id in (("run-1", None), ("run-2", "proj-b"), ("run-3", None)):
            connection.execute(insert(runs).values(**run, run_id=run_id, project_id=project_id))
        connection.execute(insert(jobs).values(**job))
        document = json.dumps({"samples": "secret"})
        for number, (run_id, project_id) in enumerate([("run-1", None), (None, "proj-b"), (None, None)]):
            its = {"evaluation_id": f"eval-{number}", "run_id": run_id, "project_id": project_id, "document": document}
            connection.execute(insert(evaluations).values(**its))

    def shown(project_id: str) -> list[str]:
        return sorted(one.shown_id for one in find_stored_texts(database, project_id, holds))

    assert shown("default") == ["eval-2", "run-3"]
    assert shown("proj-b") == ["eval-0", "eval-1", "run-1", "run-2"]
    # A document that would no longer be one of an evaluation stays, and counts as not forgotten.
    (stored,) = [one for one in find_stored_texts(database, "default", holds) if one.shown_id == "eval-2"]
    with database.write() as connection:
        assert not forget_stored_text(connection, stored, holds)
        query = select(evaluations.c.document).where(evaluations.c.evaluation_id == "eval-2")
        assert connection.execute(query).scalar() == document
