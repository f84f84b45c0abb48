"""Names of base models in the API: never a path."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.features.models.service import pull_model
from luthier.features.serving import targets
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models, find_base_model
from luthier.testing.records import add_run
from luthier.testing.tiny import make_tiny_model

FRIEND = Caller(project_id="proj-friend", scopes=("infer",), key_id="key-1")


def test_a_model_of_the_layers_of_a_folder_is_known_without_its_path(context: Context, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "deep", layers=3)
    pull_model(context, f"layers:2@{folder}")
    assert not any("/" in name for name in base_models(context))
    assert find_base_model(context, "layers:2@deep") == f"layers:2@{folder}"
    assert find_base_model(context, "deep") == str(folder)


def test_no_other_project_uses_a_student_made_of_the_layers_of_a_run(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, shared = f"layers:2@{add_run(context, 'a')}", "layers:2@hub:maker/model@main"
    local = [SimpleNamespace(name=name, source="layers", path="/m", sha256="0") for name in (student, shared)]
    monkeypatch.setattr(sources, "local_models", lambda _home: local)
    assert find_base_model(context, student, "default") == student
    assert find_base_model(context, shared, FRIEND.project_id) == shared
    with pytest.raises(NotFoundError) as refused:
        find_base_model(context, student, FRIEND.project_id)
    assert student not in refused.value.expected
    assert set(targets.local_base_models(context, "default")) == {student, shared}
    assert set(targets.local_base_models(context, FRIEND.project_id)) == {shared}
    assert targets.served_target(context, Caller(), student).path == "/m"
    with pytest.raises(NotFoundError, match="does not exist"):
        targets.served_target(context, FRIEND, student)


def test_a_model_of_the_hub_is_found_without_the_revision_of_its_default_branch(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("hub:maker/model@main", "hub:maker/other@v2", "hub:maker/both@main", "hub:maker/both")
    local = [SimpleNamespace(name=name, source="hub", path=f"/{name}", sha256="0") for name in names]
    monkeypatch.setattr(sources, "local_models", lambda _home: local)
    found = {name: find_base_model(context, name) for name in ("hub:maker/model", "hub:maker/both", *names)}
    assert found == {name: name for name in names} | {"hub:maker/model": "hub:maker/model@main"}
    assert targets.served_target(context, Caller(), "hub:maker/model").path == "/hub:maker/model@main"
    with pytest.raises(NotFoundError, match="hub:maker/other"):
        find_base_model(context, "hub:maker/other")
