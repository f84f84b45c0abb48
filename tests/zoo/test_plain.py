"""What the zoo measures others by: the reach of adapters, of the language model alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.zoo import plain
from tests.zoo.families import make_family

from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning.adapter import reach


# the language model is a part of the body, another one's causal model by itself, or has another name
@pytest.mark.parametrize("name", ["llava", "llama4", "smolvlm"])
def test_towers_and_what_joins_them_count_on_neither_side(name: str, tmp_path: Path) -> None:
    folder = make_family(name, tmp_path / "model")
    structure = read_structure(str(folder))
    every = [layer.name for layer in structure.linear_layers]
    outside = {layer.name for layer in structure.outside_layers}
    assert outside
    share, num = plain.reach(folder, every)
    # the measure of plain transformers goes by its own idea of the decoder; of these sizes both count every tensor
    assert num == structure.num_matrix_parameters
    assert share == pytest.approx(reach(structure, every).share)
    assert plain.reach(folder, sorted(outside)) == (0.0, num)


def test_the_connector_of_smolvlm_is_no_part_of_its_language_model(tmp_path: Path) -> None:
    folder = make_family("smolvlm", tmp_path / "model")
    structure = read_structure(str(folder))
    assert "model.connector.modality_projection.proj" in {layer.name for layer in structure.outside_layers}
    assert plain.reach(folder, [layer.name for layer in structure.linear_layers])[0] == 1.0
    model = plain.plain_model(folder)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched
    assert not any("connector" in name for name in touched), "text does not go through it"
