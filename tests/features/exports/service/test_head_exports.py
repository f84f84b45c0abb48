"""Runs with a task head: exported, proved and bundled in the formats that hold a head, refused in all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.task_heads import add_head_run

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.features.exports import requests
from luthier.features.exports.service import export
from luthier.features.serving.targets import served_export
from luthier.ml.export.bundle import verify
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context


def test_a_classifier_is_exported_and_proved(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    sources.pull(str(tiny_model), context.home, SilentProgress())
    run_id, _, _ = add_head_run(context, "tiny", "a", kind="classify", labels=("bug", "praise"))
    folder = tmp_path / "out"
    made = export(context, run_id, to="sentence_transformers", output=folder, num_prompts=4)
    assert made.head_parity is not None
    assert (made.is_proved, made.parity, made.head_parity.num_inputs_same_tokens) == (True, None, 4)
    assert "apply softmax" in " ".join(made.warnings)
    assert json.loads((folder / "task_head.json").read_text())["labels"] == ["bug", "praise"]
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "library_name: sentence-transformers" in card
    assert "**The proof holds**" in card
    assert verify(folder).is_whole
    with pytest.raises(RequestError, match="serve the run itself"):
        served_export(context, folder)
    for to in ("gguf", "merged", "adapter"):
        with pytest.raises(RequestError, match="no place for its task head"):
            export(context, run_id, to=to, output=tmp_path / to)
    with pytest.raises(RequestError, match="which writes text"):
        export(context, str(tiny_model), to="sentence_transformers", output=tmp_path / "base")
    assert [view.name for view in requests.formats("embed")] == ["sentence_transformers", "onnx"]
    with pytest.raises(RequestError, match="gguf"):
        requests.start(context, Caller(), run_id, "gguf")
    assert requests.start(context, Caller(), run_id, "sentence_transformers").source == run_id
