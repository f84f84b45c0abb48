"""Token vectors read from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.core.errors import ModelSourceError
from luthier.ml.baselines.nearest import nearest_by_embeddings
from luthier.ml.baselines.rows import TaskRow
from luthier.ml.inference.models.token_table import TokenTable, token_table
from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table") / "tiny"
    make_tiny_model(place)
    return place


def test_vectors_are_those_of_the_loaded_model(folder: Path) -> None:
    table = TokenTable(folder)
    ids = table.token_ids(["Which is it?", ""])
    assert ids[0]
    assert ids[1] == []
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight
    assert np.array_equal(table.vectors(ids[0]), weights[ids[0]].detach().numpy())


def test_it_serves_the_nearest_row(folder: Path) -> None:
    rows = [TaskRow("How long does delivery take?", "Three days."), TaskRow("Do you ship to Norway?", "Yes.")]
    assert nearest_by_embeddings(rows, ["Do you ship to Norway?"], TokenTable(folder)) == ["Yes."]


def test_half_a_surrogate_has_tokens_like_a_question_mark(folder: Path) -> None:
    table = TokenTable(folder)
    assert table.token_ids(["a\ud800"]) == table.token_ids(["a?"])


def test_weights_without_such_a_table_have_none(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = {name: one for name, one in load_file(folder / "model.safetensors").items() if "embed" not in name}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelSourceError, match="no table of token vectors"):
        TokenTable(tmp_path)
    assert token_table(tmp_path) is None
    assert token_table(tmp_path / "nowhere") is None
