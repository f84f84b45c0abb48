"""Runs over a published reranker: they start from its score, read pairs as it does, and are compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.features.training.service.test_search import MakeRecipe, make, run, triples
from tests.published_rerankers import make_reranker

from luthier.core.errors import RecipeError
from luthier.core.ports import SilentProgress
from luthier.features.evaluations.service import evaluate
from luthier.features.planning.service import prepare
from luthier.features.recipes.service import load_recipe
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.task_head import load_task_head
from luthier.ml.inference.task_model import TaskModel
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.ml.training.model import TrainableModel
from luthier.platform.home.context import Context

TRAINING = {"max_steps": 2, "precision": "float32", "num_threads": 1}


def recipe_over(make_recipe: MakeRecipe, base: Path, **sections: Any) -> Path:
    objective, data = {"name": "rank"}, {"train": "train.jsonl", "held_out": "test.jsonl"}
    asked: dict[str, Any] = {"objective": objective, "training": TRAINING, "data": data} | sections
    return make(make_recipe, triples, base_model=str(base), **asked)


def test_a_run_starts_from_the_score_and_reads_pairs_as_the_base_does(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path
) -> None:
    base = make_reranker(tiny_model, tmp_path / "reranker", "score", template=True)
    path = recipe_over(make_recipe, base)
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    notes = " ".join(prepared.plan.objective.task_head_notes)
    assert "starts as that of the base model" in notes
    assert "as the chat template of the base model writes query and document" in notes
    tokenizer, first = load_tokenizer(base), triples(0, 1)[0]
    for row, document in zip(prepared.train.units[0], (first["chosen"], first["rejected"]), strict=True):
        turns = [{"role": "query", "content": first["prompt"]}, {"role": "document", "content": document}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        assert list(row.input_ids[:-1]) == tokenizer(text, add_special_tokens=False)["input_ids"]
    layer = TrainableModel.load(prepared.plan).head_layer
    assert layer is not None
    own = load_file(base / "model.safetensors")["score.weight"]
    assert torch.equal(layer.weight.detach(), own)
    assert not layer.bias.any()

    outcome = run(context, path)
    folder = Path(outcome.as_json()["adapter_path"])
    head, tuned = load_task_head(folder)
    assert (head.kind, head.pair_format) == ("rank", "own")
    assert tuned is not None
    change = float((tuned.weight - own).norm() / own.norm())
    assert 0 < change < 0.1  # two steps from its own score, not from zero
    judged = evaluate(context, [outcome.record.run_id, str(base)], data=path.parent / "test.jsonl")
    assert [system.kind for system in judged.systems].count("head") == 2


@pytest.mark.parametrize("form", ["score", "yes_no"])
def test_a_reranker_trained_as_a_whole_is_read_from_its_own_folder(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path, form: Any
) -> None:
    base = make_reranker(tiny_model, tmp_path / "reranker", form)
    path = recipe_over(make_recipe, base, method={"name": "full"})
    outcome = run(context, path)
    folder = Path(outcome.as_json()["adapter_path"])
    pairs = [(row["prompt"], row["chosen"]) for row in triples(0, 3)]
    found = {}
    for place in (base, folder):
        engine = TransformersEngine.open(str(place), dtype="float32", for_task_head=True)
        found[place] = TaskModel.open(engine, str(place)).relevance(pairs, SilentProgress())
    assert not torch.equal(found[base], found[folder])
    assert torch.allclose(found[base], found[folder], atol=0.2)


@pytest.mark.parametrize("form", ["score", "yes_no"])
def test_text_is_not_learned_over_a_reranker(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path, form: Any
) -> None:
    path = recipe_over(make_recipe, make_reranker(tiny_model, tmp_path / "scores", form), objective={"name": "dpo"})
    with pytest.raises(RecipeError, match="a published reranker, for objective dpo"):
        prepare(context, load_recipe(path), base_dir=path.parent)
