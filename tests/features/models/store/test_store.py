"""Tuned models and permitted checkpoints on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import insert

from luthier.core.errors import NotFoundError
from luthier.features.models.store import TunedModel, TunedModelStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import checkpoint_permissions


def a_model(name: str, project_id: str = "default") -> TunedModel:
    return TunedModel(
        model_id=name, project_id=project_id, job_id="j", run_id="r", base_model="tiny", adapter_path="/x"
    )


def test_a_project_has_its_own_and_what_it_was_permitted(database: Database) -> None:
    AccessStore(database).add_project("proj-other", "other")
    store = TunedModelStore(database)
    for name in ("a", "b", "c"):
        store.add(a_model(name))
    values = [
        {"permission_id": f"cp-{name}-{project}", "model_id": name, "project_id": project, "created_at": 0.0}
        for name, project in (("a", "proj-other"), ("b", "proj-other"), ("a", "default"))
    ]
    with database.write() as connection:
        connection.execute(insert(checkpoint_permissions), values)
    assert [model.model_id for model in store.list("default")] == ["c", "b", "a"]
    assert store.permitted("default") == []
    assert store.list("proj-other") == []
    assert [model.model_id for model in store.permitted("proj-other")] == ["b", "a"]
    assert store.get("proj-other", "a").project_id == "default"
    with pytest.raises(NotFoundError):
        store.get("proj-other", "c")
    with pytest.raises(NotFoundError):
        store.delete("proj-other", "a")
    store.delete("default", "a")
    assert [model.model_id for model in store.permitted("proj-other")] == ["b"]
    store.add(a_model("a"))
    assert [model.model_id for model in store.permitted("proj-other")] == ["b"], "permissions end with their model"
