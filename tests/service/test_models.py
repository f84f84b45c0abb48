"""Base models as one list of what is known and what is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import NotFoundError
from luthier.service import models
from luthier.service.context import Context


def test_the_catalogue_is_listed_before_anything_is_pulled(context: Context) -> None:
    views = {view.name: view for view in models.list_models(context)}
    assert views["smollm2-135m-instruct"].licence == "Apache-2.0"
    assert all(view.path is None and view.sha256 is None for view in views.values())
    assert models.show_model(context, "smollm2-135m-instruct") == views["smollm2-135m-instruct"]


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
