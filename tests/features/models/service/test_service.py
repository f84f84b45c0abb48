"""Base models as one list of what is known and what is here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.hub_server import COMMIT, Hub, read_files, serving

from luthier.core.errors import NotFoundError
from luthier.features.models import service as models
from luthier.platform.home.context import Context


def test_the_catalogue_is_listed_before_anything_is_pulled(context: Context) -> None:
    views = {view.name: view for view in models.list_models(context)}
    assert views["smollm2-135m-instruct"].licence == "Apache-2.0"
    assert all(view.path is None and view.sha256 is None for view in views.values())
    assert models.show_model(context, "smollm2-135m-instruct") == views["smollm2-135m-instruct"]


def test_the_catalogue_says_what_it_takes_to_train_a_model(context: Context) -> None:
    views = {view.name: view for view in models.list_models(context)}
    one = views["gpt-oss-20b"]
    assert (one.num_parameters, one.is_gated, one.is_pinned) == (20914757184, False, False)
    assert one.num_active_parameters is not None
    assert one.num_active_parameters < one.num_parameters / 4
    assert one.template_options == {"reasoning_effort": ("low", "medium", "high")}
    assert "revision" in one.unchecked
    assert one.training_memory is not None
    assert one.training_memory.qlora_bytes is not None
    assert views["llama-3.1-8b-instruct"].is_gated
    with_figures = [view for view in views.values() if view.training_memory is not None]
    assert len(with_figures) >= 42


def test_the_commit_that_came_is_recorded_and_shown(
    context: Context, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"name": "ours", "title": "Ours", "licence": "CC0-1.0", "licence_url": "https://example.org"}
    entry |= {"num_parameters": 1, "context_length_tokens": 1, "has_chat_template": True, "hub": "org/tiny"}
    (tmp_path / "own.yaml").write_text(json.dumps([entry]))
    monkeypatch.setenv("LUTHIER_CATALOG", str(tmp_path / "own.yaml"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(Hub(read_files(tiny_model) | {"modeling_own.py": b"raise SystemExit"})) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        pulled = models.pull_model(context, "ours")
    assert (pulled.hub, pulled.is_pinned, pulled.commit) == ("org/tiny", False, COMMIT)
    assert pulled.never_fetched == ("modeling_own.py",)
    assert models.show_model(context, "ours") == pulled
    assert pulled in models.list_models(context)
    assert models.remove_model(context, "ours") == pulled


def test_a_folder_is_pulled_listed_shown_and_forgotten(context: Context, tiny_model: Path) -> None:
    pulled = models.pull_model(context, str(tiny_model))
    assert pulled.path == str(tiny_model)
    assert pulled in models.list_models(context)
    assert models.show_model(context, str(tiny_model)) == pulled
    assert models.remove_model(context, str(tiny_model)) == pulled
    assert (tiny_model / "config.json").is_file()
    with pytest.raises(NotFoundError):
        models.show_model(context, str(tiny_model))


def test_unknown_names_are_refused(context: Context) -> None:
    with pytest.raises(NotFoundError, match="smoll"):
        models.show_model(context, "smoll")
    with pytest.raises(NotFoundError, match="was not pulled"):
        models.show_model(context, "hub:org/name@main")
