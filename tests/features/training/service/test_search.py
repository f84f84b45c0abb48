"""Runs whose model searches documents: embeddings and rerankers, from recipe to verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.service import write_rows
from tokenizers import Tokenizer, processors
from transformers import AutoModel

from luthier.core.errors import DataError, OverlongError, RecipeError, RequestError
from luthier.core.events import CheckpointSaved, StepDone, ValidationDone
from luthier.core.ports import SilentProgress
from luthier.features.evaluations.service import evaluate
from luthier.features.evaluations.systems import _note_of_base, _task_model
from luthier.features.generation.engines import EnginePool
from luthier.features.models.resolve import find_candidate, open_judged
from luthier.features.planning.service import prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import TrainOutcome, resume, train
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.task_head import read_task_head
from luthier.ml.inference.task_model import TaskAnswers, TaskModel
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
Row = dict[str, Any]
RUN = "run-20260101-000000-abcdef"
_ANIMALS = ("otter", "owl", "heron", "badger", "lynx", "mole", "stoat", "vole", "wren", "swift", "kite", "newt")
_METRICS = ["ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr"]


def pairs(start: int, stop: int) -> list[Row]:
    return [
        {"prompt": f"where is the {_ANIMALS[n % 12]} {n}", "completion": f"{_ANIMALS[n % 12]} in nest {n}"}
        for n in range(start, stop)
    ]


def triples(start: int, stop: int) -> list[Row]:
    return [
        {
            "prompt": f"where is the {_ANIMALS[n % 12]} {n}",
            "chosen": f"{_ANIMALS[n % 12]} in nest {n}",
            "rejected": f"nobody knows {n}",
        }
        for n in range(start, stop)
    ]


def make(make_recipe: MakeRecipe, rows: Callable[[int, int], list[Row]], **sections: Any) -> Path:
    path = make_recipe(**({"evaluation": {}} | sections))
    for name, start, stop in (("train", 0, 48), ("valid", 48, 60), ("test", 60, 84)):
        write_rows(path.parent / f"{name}.jsonl", rows(start, stop))
    return path


def run(context: Context, recipe: Path, **more: Any) -> TrainOutcome:
    return train(context, load_recipe(recipe), base_dir=recipe.parent, **more)


@pytest.mark.parametrize("method", [{"name": "lora", "rank": 4, "dropout": 0.1}, {"name": "full"}])
def test_embeddings_learn_to_find_documents(context: Context, make_recipe: MakeRecipe, method: dict[str, Any]) -> None:
    objective = {"name": "embed", "dimensions": [16], "query_prompt": "query: "}
    rate = 0.002 if method["name"] == "full" else 0.01
    training = {"epochs": 8, "global_batch_size": 16, "micro_batch_tokens": 200, "learning_rate": rate}
    training |= {"precision": "float32", "num_threads": 1}
    recipe = make(make_recipe, pairs, objective=objective, method=method, training=training)
    outcome = run(context, recipe)
    document = outcome.as_json()
    head = read_task_head(Path(document["adapter_path"]))
    assert (head.kind, head.dimensions, head.query_prompt, head.pooling) == ("embed", (32, 16), "query: ", "mean")
    events = list(context.runs.events(outcome.record.run_id))
    steps = [event for event in events if isinstance(event, StepDone)]
    # all documents of a step but the query's own, though a micro-batch holds a few of them
    assert {step.measures["num_negatives"] for step in steps} == {15}
    losses = [event.loss for event in events if isinstance(event, ValidationDone)]
    assert losses[-1] < 0.8 * losses[0]
    evaluation = outcome.evaluation
    assert evaluation is not None
    assert [(one.name, one.kind) for one in evaluation.systems] == [
        ("base", "model"),
        ("random order", "popularity"),
        ("BM25", "nearest"),
        ("tuned", "head"),
    ]
    judged = evaluation.systems[-1]
    assert list(judged.metrics) == _METRICS
    assert judged.metrics["mrr"].value > evaluation.systems[1].metrics["mrr"].value
    assert evaluation.rows_notes == (
        "24 queries are searched among 24 documents of held-out rows.",
        "48 documents of training rows, of 48, can be found by mistake.",
    )
    verdict = document["verdict"]
    assert verdict["metric"] == "ndcg_at_10"
    assert [(one["name"], one["kind"]) for one in verdict["alternatives"]] == [
        ("random order", "popularity"),
        ("BM25", "nearest"),
    ]
    assert verdict["best_alternative"] == "BM25"
    assert "few-shot" not in json.dumps(verdict)
    page = Path(document["report_path"]).read_text(encoding="utf-8")
    assert "NDCG@10" in page


def test_a_text_has_the_vector_that_training_computed(context: Context, make_recipe: MakeRecipe) -> None:
    from luthier.features.planning.service import prepare
    from luthier.ml.training.model import TrainableModel, collate
    from luthier.ml.training.objectives.embedding import pooled

    for pooling in ("mean", "last"):
        objective = {"name": "embed", "pooling": pooling, "document_prompt": "doc: "}
        path = make(make_recipe, triples, objective=objective, training={"max_steps": 1, "precision": "float32"})
        outcome = run(context, path)
        prepared = prepare(context, load_recipe(path), base_dir=path.parent)
        # a single step at the first rate moves little: the base's own weights are compared
        model = TrainableModel.load(prepared.plan)
        unit = prepared.train.units[0]
        batch = collate(unit, model.pad_id, "cpu")
        model.module.eval()
        with torch.no_grad():
            found = torch.nn.functional.normalize(pooled(model.states(batch), batch.learned), dim=-1)
        candidate = find_candidate(context, outcome.record.run_id)
        answers = open_judged(candidate)
        assert isinstance(answers, TaskAnswers)
        with torch.no_grad():  # the base with its head: an adapter that adds nothing
            for name, weight in answers.model.engine.causal.named_parameters():
                if "lora_B" in name:
                    weight.zero_()
        row = triples(0, 1)[0]
        query = answers.model.vectors([row["prompt"]], SilentProgress(), is_query=True)
        documents = answers.model.vectors([row["chosen"], row["rejected"]], SilentProgress())
        torch.testing.assert_close(torch.cat([query, documents]), found, atol=1e-5, rtol=1e-4)


def test_a_reranker_learns_which_document_is_better(context: Context, make_recipe: MakeRecipe) -> None:
    training = {"epochs": 8, "global_batch_size": 16, "learning_rate": 0.02, "precision": "float32", "num_threads": 1}
    recipe = make(make_recipe, triples, objective={"name": "rank"}, training=training)
    outcome = run(context, recipe)
    head = read_task_head(Path(outcome.as_json()["adapter_path"]))
    assert (head.kind, head.pooling) == ("rank", "last")
    assert head.temperature > 0
    checks = [e for e in context.runs.events(outcome.record.run_id) if isinstance(e, ValidationDone)]
    assert checks[-1].measures["pair_accuracy"] > 0.9
    assert outcome.evaluation is not None
    judged = outcome.evaluation.systems[-1]
    assert (judged.name, judged.kind) == ("tuned", "head")
    assert judged.metrics["recall_at_1"].value > 0.9
    assert outcome.evaluation.rows_notes == (
        "Of each of 24 queries the documents of its rows are ordered, 2 on average.",
    )


@pytest.mark.parametrize("name", ["embed", "rank"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(context: Context, make_recipe: MakeRecipe, name: str) -> None:
    training = {"epochs": 2, "global_batch_size": 8, "micro_batch_tokens": 120, "learning_rate": 0.01}
    training |= {"precision": "float32", "num_threads": 1, "checkpoint_every_steps": 2, "validate_every_steps": 3}
    # Nothing is judged: what the run has saved is compared.
    data = {"train": "train.jsonl", "validation": "valid.jsonl"}
    recipe = make(make_recipe, triples, objective={"name": name}, training=training, data=data)
    undisturbed = run(context, recipe)

    class Stopped(Exception):  # noqa: N818 - what a kill looks like from inside
        pass

    def stop(event: Any) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        run(context, recipe, run_id=RUN, listener=stop)
    resumed = resume(context, RUN)
    folders = [Path(one.as_json()["adapter_path"]) for one in (undisturbed, resumed)]
    names = {path.name for path in folders[0].iterdir()}
    assert {"head.json", "adapter_model.safetensors"} <= names
    for file in sorted(names):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


def test_a_run_is_judged_on_a_file_as_at_its_end(context: Context, make_recipe: MakeRecipe) -> None:
    path = make(make_recipe, pairs, objective={"name": "embed"}, training={"max_steps": 2, "precision": "float32"})
    outcome = run(context, path)
    run_id = outcome.record.run_id
    plan = outcome.plan
    again = evaluate(context, [run_id, plan.base_model.path], data=path.parent / "test.jsonl")
    assert outcome.evaluation is not None
    assert again.systems[-1].metrics == outcome.evaluation.systems[-1].metrics
    assert [one.kind for one in again.systems] == ["model", "popularity", "nearest", "head"]
    with pytest.raises(RequestError, match="perplexity requested, and a model here searches documents"):
        evaluate(context, [run_id], data=path.parent / "test.jsonl", metrics=["perplexity"])
    with pytest.raises(RequestError, match="mrr requested, and no model here searches documents"):
        evaluate(context, [plan.base_model.path], data=path.parent / "test.jsonl", metrics=["mrr"])


def _rows(**fields: str) -> Callable[[int, int], list[Row]]:
    return lambda start, stop: [{name: text.format(n=n) for name, text in fields.items()} for n in range(start, stop)]


@pytest.mark.parametrize(
    ("rows", "sections", "error", "text"),
    [
        (_rows(prompt="same {n}", completion="same {n}"), {}, DataError, "48 of 48 rows cannot be trained on"),
        (
            _rows(prompt="q {n}", chosen="d {n}", rejected="q {n}"),
            {},
            DataError,
            "48 of 48 rows cannot be trained on",
        ),
        (_rows(prompt="q {n}", completion="d {n}"), {"objective": {"name": "rank"}}, RecipeError, "rank with prompt_"),
        (_rows(prompt="q {n}", completion="one"), {}, RequestError, "1 document in the held-out rows"),
        (_rows(text="plain {n}"), {}, RecipeError, "objective embed with text rows"),
        (pairs, {"training": {"global_batch_size": 1}}, RecipeError, "embed with training.global_batch_size 1"),
        (pairs, {"objective": {"name": "embed", "dimensions": [64]}}, RecipeError, "objective.dimensions 64"),
        (pairs, {"evaluation": {"metrics": ["exact_match"]}}, RecipeError, "exact_match with objective embed"),
        (pairs, {"evaluation": {"few_shot": 2}}, RecipeError, "evaluation.few_shot 2 with objective embed"),
        (pairs, {"objective": {"name": "sft"}, "evaluation": {"metrics": ["mrr"]}}, RecipeError, "mrr with objective"),
        (
            _rows(prompt="q {n}", completion="word " * 600 + "{n}"),
            {},
            OverlongError,
            "48 of 48 rows are longer than",
        ),
    ],
)
def test_what_teaches_no_search_is_refused(
    context: Context,
    make_recipe: MakeRecipe,
    rows: Callable[[int, int], list[Row]],
    sections: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        run(context, make(make_recipe, rows, **({"objective": {"name": "embed"}} | sections)))


def test_empty_texts_are_refused(context: Context, make_recipe: MakeRecipe) -> None:
    with pytest.raises(DataError):
        run(context, make(make_recipe, _rows(prompt="q {n}", completion=" "), objective={"name": "embed"}))


def test_texts_that_are_too_long_can_be_cut(context: Context, make_recipe: MakeRecipe) -> None:
    training = {"max_steps": 1, "precision": "float32", "max_length_tokens": 12, "on_overlong": "truncate"}
    outcome = run(context, make(make_recipe, pairs, objective={"name": "embed"}, training=training))
    assert outcome.plan.data.train.num_truncated > 0
    assert outcome.plan.data.train.num_examples == 48


def test_repeated_documents_are_named_in_the_plan(context: Context, make_recipe: MakeRecipe) -> None:
    rows = _rows(prompt="q {n}", completion="the same document")
    recipe = make(
        make_recipe, rows, objective={"name": "embed"}, training={"max_steps": 1}, data={"train": "train.jsonl"}
    )
    outcome = run(context, recipe)
    assert outcome.plan.objective.task_head_notes == (
        "48 of 48 rows share their document with another row: where two of them fall into one step, neither is a "
        "negative of the other",
    )
    step = next(event for event in context.runs.events(outcome.record.run_id) if isinstance(event, StepDone))
    assert step.measures["num_negatives"] == 0
    assert step.loss == 0


def test_vectors_are_made_as_the_files_of_a_published_embedding_model_say(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path
) -> None:
    """Last state, an instruction before queries, and an end token that the tokenizer writes behind every text."""
    base = shutil.copytree(tiny_model, tmp_path / "embedder")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}', encoding="utf-8")
    prompts = {"prompts": {"query": "Find the nest. ", "document": ""}}
    (base / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    end = str(load_tokenizer(base).eos_token)
    number = int(tokenizer.token_to_id(end))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
    tokenizer.save(str(base / "tokenizer.json"))

    training = {"max_steps": 2, "precision": "float32"}
    path = make(make_recipe, pairs, base_model=str(base), objective={"name": "embed"}, training=training)
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    objective = prepared.plan.objective
    assert (objective.pooling, objective.query_prompt, objective.document_prompt) == ("last", "Find the nest. ", "")
    assert "files of the base model" in prepared.plan.sources["objective.pooling"].why
    query, document = prepared.train.units[0]
    first = pairs(0, 1)[0]
    for row, text in ((query, "Find the nest. " + first["prompt"]), (document, first["completion"])):
        assert list(row.input_ids[:-1]) == tokenizer.encode(text).ids  # behind it is the slot
        assert row.input_ids[-2] == number
    outcome = run(context, path)
    head = read_task_head(Path(outcome.as_json()["adapter_path"]))
    assert (head.pooling, head.query_prompt, head.end_text) == ("last", "Find the nest. ", end)

    plain = make(make_recipe, pairs, base_model=str(base), objective={"name": "embed", "pooling": "mean"})
    assert prepare(context, load_recipe(plain), base_dir=plain.parent).plan.objective.pooling == "mean"


def test_texts_are_as_long_as_a_published_embedding_model_reads(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "embedder")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    (base / "sentence_bert_config.json").write_text('{"max_seq_length": 12}', encoding="utf-8")
    sections: dict[str, Any] = {"base_model": str(base), "objective": {"name": "embed"}}
    path = make(make_recipe, pairs, **sections)
    with pytest.raises(OverlongError, match="13"):  # 12 tokens and the slot
        prepare(context, load_recipe(path), base_dir=path.parent)
    path = make(make_recipe, pairs, **sections, training={"on_overlong": "truncate", "max_steps": 1})
    plan = prepare(context, load_recipe(path), base_dir=path.parent).plan
    assert plan.training.max_length_tokens == 13
    assert "as its files say" in plan.sources["training.max_length_tokens"].why
    assert plan.data.train.num_truncated > 0
    head = plan.objective.task_head
    assert head is not None
    assert (head.max_tokens, head.is_normalised) == (12, True)
    path = make(make_recipe, pairs, **sections, training={"max_length_tokens": 200})
    longer = prepare(context, load_recipe(path), base_dir=path.parent).plan
    assert longer.objective.task_head is not None
    assert (longer.training.max_length_tokens, longer.objective.task_head.max_tokens) == (200, 199)
    # The base is compared by texts of that length, and the evaluation says so.
    model = _task_model(find_candidate(context, str(base)), EnginePool(open_judged))
    texts = ["where is the owl " * 8, "owl"]
    cut = model.vectors(texts, SilentProgress())
    assert any("first 12 tokens" in note and "1 of 2 texts" in note for note in model.engine.notes)
    whole = TaskModel(model.engine, model.head.model_copy(update={"max_tokens": None}), None)
    expected = whole.vectors(texts, SilentProgress())
    assert float((cut[0] - expected[0]).norm()) > 0.1
    assert torch.allclose(cut[1], expected[1], atol=1e-2)  # bfloat16, beside texts of another length


def test_the_base_is_compared_by_the_vectors_that_its_own_files_describe(
    context: Context, tiny_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "embedder")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}', encoding="utf-8")
    prompts = {"prompts": {"query": "Find the nest. "}}
    (base / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    found = {}
    for folder in (tiny_model, base):
        candidate = find_candidate(context, str(folder))
        model = _task_model(candidate, EnginePool(open_judged))
        found[folder] = (model.head.pooling, model.head.query_prompt)
    assert found == {tiny_model: ("mean", ""), base: ("last", "Find the nest. ")}


def test_a_base_whose_vectors_are_not_computed_here_is_compared_and_trained_with_a_note(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "embedder")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}', encoding="utf-8")
    candidate = find_candidate(context, str(base))
    assert _task_model(candidate, EnginePool(open_judged)).head.pooling == "mean"
    note = _note_of_base(candidate)
    assert note is not None
    assert note.endswith("describe vectors with pooling cls; compared by the mean of its states")
    path = make(make_recipe, pairs, base_model=str(base), objective={"name": "embed"})
    prepared = prepare(context, load_recipe(path), base_dir=path.parent)
    assert prepared.plan.objective.pooling == "mean"
    assert any("pooling cls, which are not computed here" in note for note in prepared.plan.objective.task_head_notes)


def test_an_embedding_model_without_an_output_layer_is_trained_compared_and_served(
    context: Context, make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "body")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}', encoding="utf-8")
    body = AutoModel.from_pretrained(base, dtype=torch.float32)
    body.config.tie_word_embeddings = False
    body.save_pretrained(base)
    training = {"max_steps": 2, "precision": "float32", "num_threads": 1}
    data = {"train": "train.jsonl", "held_out": "test.jsonl"}
    recipe = make(make_recipe, pairs, base_model=str(base), objective={"name": "embed"}, training=training, data=data)
    outcome = run(context, recipe)
    head = read_task_head(Path(outcome.as_json()["adapter_path"]))
    assert (head.kind, head.pooling) == ("embed", "last")
    model = _task_model(find_candidate(context, str(base)), EnginePool(open_judged))
    assert (model.head.kind, model.head.pooling) == ("embed", "last")
    texts = ["where is the owl", "owl in nest 1"]
    tokenizer = load_tokenizer(base)
    with torch.no_grad():
        states = [body(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts]
    expected = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    assert torch.allclose(model.vectors(texts, SilentProgress()), expected, atol=2e-2)  # the base is read in bfloat16
    again = evaluate(context, [outcome.record.run_id, str(base)], data=recipe.parent / "test.jsonl")
    assert [system.kind for system in again.systems].count("head") == 2
    writes = make(make_recipe, pairs, base_model=str(base), objective={"name": "sft"}, training=training)
    with pytest.raises(RecipeError, match="embedding model without an output layer, for objective sft"):
        prepare(context, load_recipe(writes), base_dir=writes.parent)
