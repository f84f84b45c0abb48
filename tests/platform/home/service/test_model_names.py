"""Names of base models in the API: never a path."""

from __future__ import annotations

from pathlib import Path

from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models, find_base_model
from luthier.testing.tiny import make_tiny_model


def test_a_model_of_the_layers_of_a_folder_is_known_without_its_path(context: Context, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "deep", layers=3)
    pull_model(context, f"layers:2@{folder}")
    assert not any("/" in name for name in base_models(context))
    assert find_base_model(context, "layers:2@deep") == f"layers:2@{folder}"
    assert find_base_model(context, "deep") == str(folder)
