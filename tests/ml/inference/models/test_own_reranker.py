"""Published rerankers: their scores are those of transformers for the pairs that their files describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.published_rerankers import NO, YES, make_reranker
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.ports import SilentProgress
from luthier.core.published_head import own_reranker
from luthier.core.task_head import is_task_model, read_task_head
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.own_reranker import describe_own_pairs
from luthier.ml.inference.models.task_head import load_task_head
from luthier.ml.inference.models.weights import describe, inventory
from luthier.ml.inference.task_model import TaskModel
from luthier.ml.inference.transformers_engine import TransformersEngine

PAIRS = [("Which wood?", "Spruce is light and stiff."), ("Which wood?", "The strings are old."), ("a", "b")]


def relevance(folder: Path) -> torch.Tensor:
    engine = TransformersEngine.open(str(folder), dtype="float32", for_task_head=True)
    return TaskModel.open(engine, str(folder)).relevance(PAIRS, SilentProgress())


def joined(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    return [tokenizer(query, document)["input_ids"] for query, document in PAIRS]


def written(folder: Path, *, system: str = "", opens: bool = False) -> list[list[int]]:
    """The ids of pairs as the template of a folder writes them, by transformers."""
    tokenizer = load_tokenizer(folder)
    first = [{"role": "system", "content": system}] if system else []
    turns = ([*first, {"role": "query", "content": q}, {"role": "document", "content": d}] for q, d in PAIRS)
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=opens) for one in turns]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@torch.no_grad()
def last_logits(folder: Path, rows: list[list[int]]) -> torch.Tensor:
    """[rows, tokens] of the model that writes."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])


@pytest.mark.parametrize("template", [False, True])
def test_a_layer_for_the_score_gives_the_relevance_that_transformers_computes(
    tiny: Path, tmp_path: Path, template: bool
) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", "score", template=template)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = written(folder) if template else joined(folder)
    with torch.no_grad():
        expected = torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows]).sigmoid()
    found = relevance(folder)
    assert torch.allclose(found.float(), expected, atol=1e-5)
    assert len(set(found.tolist())) == 3
    assert (read_task_head(folder).kind, read_task_head(folder).pair_format) == ("rank", "own")


@pytest.mark.parametrize("form", ["yes_no", "named", "yes"])
def test_the_logits_of_tokens_give_the_relevance(tiny: Path, tmp_path: Path, form: Any) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", form, template=True)
    logits = last_logits(folder, written(folder))
    expected = logits[:, YES].sigmoid() if form == "yes" else logits[:, [NO, YES]].softmax(-1)[:, 1]
    assert torch.allclose(relevance(folder).float(), expected, atol=1e-5)


def test_an_output_layer_of_its_own_is_read_where_it_is_not_tied(tiny: Path, tmp_path: Path) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", "yes_no", template=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    torch.manual_seed(3)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder)
    expected = last_logits(folder, written(folder))[:, [NO, YES]].softmax(-1)[:, 1]
    assert torch.allclose(relevance(folder).float(), expected, atol=1e-5)


def test_the_instruction_and_the_opening_are_those_of_the_files(tiny: Path, tmp_path: Path) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", "yes_no", template=True)
    settings = {"prompts": {"wood": "Find the wood."}, "default_prompt_name": "wood"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings), encoding="utf-8")
    inputs = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(inputs), encoding="utf-8")
    rows = written(folder, system="Find the wood.", opens=True)
    assert rows != written(folder)
    expected = last_logits(folder, rows)[:, [NO, YES]].softmax(-1)[:, 1]
    assert torch.allclose(relevance(folder).float(), expected, atol=1e-5)
    assert read_task_head(folder).facts["instruction"] == '"Find the wood."'


def test_a_template_of_pairs_alone_does_not_keep_a_model_from_being_pulled(tiny: Path, tmp_path: Path) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", "score", template=True)
    found = describe(folder, name="reranker", source="folder", licence="none", files=inventory(folder))
    assert found.architecture == "LlamaForSequenceClassification"
    assert not found.has_chat_template


def test_which_format_pairs_have_is_said(tiny: Path, tmp_path: Path) -> None:
    for template, phrase in ((True, "as the chat template of the base model writes"), (False, "chat_template.jinja")):
        folder = make_reranker(tiny, tmp_path / str(template), "score", template=template)
        scores = own_reranker(folder)
        assert scores is not None
        assert phrase in describe_own_pairs(load_tokenizer(folder), scores)


def test_a_reranker_does_not_write(tiny: Path, tmp_path: Path) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", "yes_no")
    assert is_task_model(folder)
    with pytest.raises(RequestError, match="/v1/rerank"):
        TransformersEngine.open(str(folder), dtype="float32")


def test_a_model_without_such_files_is_no_reranker(tiny: Path, tmp_path: Path) -> None:
    assert own_reranker(tiny) is None
    assert not is_task_model(tiny)
    assert own_reranker(tmp_path) is None
    folder = make_reranker(tiny, tmp_path / "classifier", "score")
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    model.save_pretrained(folder)
    assert own_reranker(folder) is None  # three classes are no relevance


@pytest.mark.parametrize(
    ("config", "tokens", "words"),
    [
        ({"final_logit_softcapping": 30.0}, None, "final_logit_softcapping"),
        ({}, {"true_token_id": "yes"}, "true_token_id 'yes'"),
        ({}, {"true_token_id": 3, "false_token_id": "no"}, "false_token_id 'no'"),
        ({}, {"true_token_id": 99_999}, "the token 99999"),
    ],
)
def test_scores_that_are_not_computed_here_are_refused(
    tiny: Path, tmp_path: Path, config: dict[str, Any], tokens: dict[str, Any] | None, words: str
) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", "yes_no")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | config
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    if tokens is not None:
        (folder / "1_LogitScore" / "config.json").write_text(json.dumps(tokens), encoding="utf-8")
    assert is_task_model(folder)
    with pytest.raises(ModelSourceError, match=words):
        load_task_head(folder)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"classifier_from_token": "yes"}, "classifier_from_token 'yes'"),
        ({"classifier_from_token": ["a", "b", "c"]}, "classifier_from_token"),
        ({"classifier_from_token": ["a", "b"], "method": "no_post_processing"}, "no_post_processing"),
        ({"classifier_from_token": ["no such wood", "b"]}, "tokens"),
    ],
)
def test_tokens_that_config_json_names_wrongly_are_refused(
    tiny: Path, tmp_path: Path, named: dict[str, Any], words: str
) -> None:
    folder = make_reranker(tiny, tmp_path / "reranker", "named")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del settings["method"]
    (folder / "config.json").write_text(json.dumps(settings | named), encoding="utf-8")
    with pytest.raises(ModelSourceError, match=words):
        load_task_head(folder)
