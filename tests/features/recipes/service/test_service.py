"""Recipes that are right, and all the ways in which they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RecipeError
from luthier.core.recipe import Recipe
from luthier.features.recipes.file import known_keys
from luthier.features.recipes.service import load_recipe, recipe_from

WHOLE = """
base_model: smollm2-135m-instruct
data: {train: train.jsonl, validation: valid.jsonl, held_out: 0.1, columns: {prompt: question}}
method: {name: lora, rank: 16, alpha: 32, dropout: 0.1, targets: all-linear}
objective: {name: sft}
training: {epochs: 2, global_batch_size: 16, learning_rate: 2e-4, lr_schedule: cosine, warmup_fraction: 0.03,
           weight_decay: 0.0, max_length_tokens: 1024, on_overlong: error, validate_every_steps: 20,
           checkpoint_every_steps: 50, early_stopping_patience: 3, seed: 0}
evaluation: {metrics: [perplexity, rouge, bleu, exact_match], few_shot: 4, max_new_tokens: 128}
"""
SMALL = "base_model: smollm2-135m-instruct\ndata: {train: train.jsonl}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text), overrides)
    return str(caught.value)


def test_a_whole_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE))
    assert recipe.training is not None
    assert recipe.training.learning_rate == 2e-4
    assert recipe.evaluation is not None
    assert recipe.evaluation.metrics == ("perplexity", "rouge", "bleu", "exact_match")
    assert recipe.data.train == str(tmp_path / "train.jsonl")
    assert recipe.data.validation == str(tmp_path / "valid.jsonl")
    assert recipe.data.held_out == 0.1
    assert recipe.data.map == {"prompt": "question"}


def test_what_was_not_asked_stays_open(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALL + "training:\n"))
    assert (recipe.method, recipe.training, recipe.evaluation) == (None, None, None)


def test_json_and_yaml_give_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE))
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    assert load_recipe(tmp_path / "recipe.json") == recipe


def test_paths_count_from_the_folder_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny").mkdir()
    path = write(tmp_path / "recipes", "base_model: tiny\ndata: {train: ../train.jsonl, held_out: /abs/test.jsonl}\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path.relative_to(tmp_path), ["data.validation=more/valid.jsonl"])
    assert recipe.data.train == str(tmp_path / "recipes/../train.jsonl")
    assert recipe.data.validation == str(tmp_path / "recipes/more/valid.jsonl")
    assert recipe.data.held_out == "/abs/test.jsonl"
    assert recipe.base_model == str(tmp_path / "recipes/tiny")


def test_a_name_that_begins_with_a_tilde_is_a_file_where_there_is_no_such_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `~$rows.xlsx`, which a spreadsheet program writes beside an open file."""
    monkeypatch.setenv("HOME", "/home/ada")
    path = write(tmp_path, "base_model: ~no-such-user/tiny\ndata: {train: ~$rows.xlsx, validation: ~/valid.jsonl}\n")
    recipe = load_recipe(path)
    assert recipe.data.train == str(tmp_path / "~$rows.xlsx")
    assert recipe.data.validation == "/home/ada/valid.jsonl"
    assert recipe.base_model == str(tmp_path / "~no-such-user" / "tiny")


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "hub:org/name@main", "no-such-model"])
def test_names_of_models_stay_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "smollm2-135m-instruct").mkdir()
    assert load_recipe(write(tmp_path, f"base_model: {name}\ndata: {{train: t.jsonl}}")).base_model == name


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=3", lambda r: r.training.epochs == 3),
        ("training.learning_rate=1e-3", lambda r: r.training.learning_rate == 1e-3),
        ("evaluation.metrics=[rouge, bleu]", lambda r: r.evaluation.metrics == ("rouge", "bleu")),
        ("method={name: full}", lambda r: r.method.name == "full" and r.method.rank is None),
        ("training.seed=", lambda r: r.training.seed is None),
        ("data.columns.completion=a=b", lambda r: r.data.map == {"prompt": "question", "completion": "a=b"}),
        ("base_model=other", lambda r: r.base_model == "other"),
    ],
)
def test_overrides(tmp_path: Path, override: str, read: Any) -> None:
    assert read(load_recipe(write(tmp_path, WHOLE), [override]))


def test_an_override_makes_the_section_it_needs_and_the_last_wins(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALL), ["training.epochs=3", "training.seed=1", "training.epochs=4"])
    assert recipe.training is not None
    assert (recipe.training.epochs, recipe.training.seed) == (4, 1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "a dotted key, an equals sign and a value"),
        ("=3", "a dotted key"),
        ("training..epochs=3", "a dotted key"),
        ("base_model.name=x", "base_model is 'smollm2-135m-instruct' in the recipe"),
        ("training.epochs=[1", "is not valid YAML"),
        ("training.epochs=three", "--set training.epochs: has 'three', expected a number"),
        ("training.epohcs=3", "--set training.epohcs: unknown key; nearest known: training.epochs"),
        ("trainin.epochs=3", "--set trainin: unknown key; nearest known: training"),
        ("method={name: lora, rank: -1}", "--set method.rank: has -1"),
    ],
)
def test_wrong_overrides_say_why(tmp_path: Path, override: str, words: str) -> None:
    assert words in problems(tmp_path, SMALL, override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL + "trainin: {}", "line 3, trainin: unknown key; nearest known: training\n"),
        (
            SMALL + "training:\n  learnin_rate: 1",
            "line 4, training.learnin_rate: unknown key; nearest known: training.",
        ),
        (SMALL + "epochs: 3", "line 3, epochs: unknown key; nearest known: training.epochs"),
        (SMALL + "lr: 3", "nearest known: training.learning_rate"),
        (SMALL + "method: {name: lora, r: 3}", "method.r: unknown key; nearest known: method.rank"),
        (SMALL + "method: {name: lora, zzz: 3}", "known here: name, rank, alpha, dropout, targets"),
        (SMALL + "method: {rank: 3}", "method.name: is missing"),
        (SMALL + "method: lora", "method: has 'lora', expected a mapping with keys among name, rank"),
        (SMALL + "training: {epochs: -1}", "training.epochs: has -1, expected a number greater than 0"),
        (SMALL + "training: {epochs: yes}", "training.epochs: has 'yes', expected a number"),
        (SMALL + "training: {epochs: true}", "training.epochs: has True, expected a number"),
        (SMALL + "training: {epochs: '3'}", "training.epochs: has '3', expected a number"),
        (SMALL + "training: {epochs: .inf}", "expected a finite number"),
        (SMALL + "training: {max_steps: 2.5}", "training.max_steps: has 2.5, expected a whole number"),
        (SMALL + "training: {seed: 2147483648}", "expected a number less than 2,147,483,648"),
        (SMALL + "training: {lr_schedule: cosin}", "has 'cosin', expected one of cosine, linear or constant"),
        (SMALL + "training: {lr_schedule: cosin}", "; nearest: cosine"),
        (SMALL + "training: {optimizer: moun}", "line 3, training.optimizer.name: has 'moun', expected one of adamw,"),
        (SMALL + "training: {optimizer: moun}", "; nearest: muon"),
        (SMALL + "training: {optimizer: {name: adam, beta1: 0.8}}", "; nearest: adamw"),
        (SMALL + "training: {optimizer: {name: adamw, beta_1: 0.8}}", "nearest known: training.optimizer.beta1"),
        (SMALL + "training: {optimizer: {beta1: 0.8}}", "training.optimizer.name: is missing"),
        (SMALL + "training: {optimizer: [adamw]}", "training.optimizer: has ['adamw'], expected a mapping with keys"),
        (SMALL + "evaluation: {metrics: [rouge, blue]}", "evaluation.metrics[1]: has 'blue', expected one of"),
        (SMALL + "evaluation: {metrics: rouge}", "evaluation.metrics: has 'rouge', expected a list"),
        ("base_model: x\ndata: {train: t, held_out: 1.5}", "has 1.5, expected text or a number less than 1"),
        ("base_model: x\ndata: {train: t, held_out: {a: b}}", "has {'a': 'b'}, expected text or a number"),
        ("base_model: x\ndata: {train: t, columns: {prompt: 3}}", "data.columns.prompt: has 3, expected text"),
        ("base_model: x", "data: is missing, expected a mapping with keys among train"),
        ("data: {train: t}", "base_model: is missing"),
        ("base_model: {a: &x [*x]}\ndata: {train: t}", "not a plain value"),
    ],
)
def test_each_wrong_place_says_what_came_and_what_was_expected(tmp_path: Path, text: str, words: str) -> None:
    assert words in problems(tmp_path, text)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = problems(tmp_path, SMALL + "training: {epochs: -1, seed: -1, x: 1}\nmethod: {name: lorra}\n")
    assert "has 4 problems" in text
    for place in ("training.epochs", "training.seed", "training.x", "method.name"):
        assert place in text


def test_every_known_key_is_found_from_a_slip(tmp_path: Path) -> None:
    for key in nonempty(known_keys()):
        section, _, name = key.rpartition(".")
        slip = name + name[-1]
        inner = f"{{{slip}: 1}}"
        for part in reversed(section.split(".") if section else []):
            inner = f"{{{part}: {inner}}}"
        text = f"base_model: x\ndata: {{train: t}}\n{inner[1:-1]}\n"
        if section.partition(".")[0] == "data":  # which is there already: a key stands once
            text = f"base_model: x\ndata: {{train: t, {inner.removeprefix('{data: {')[:-2]}}}\n"
        assert f"nearest known: {key}" in problems(tmp_path, text), key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers:15@../big", "layers:15@{folder}/../big"),
        ("layers:0,2-4@big", "layers:0,2-4@{folder}/big"),
        ("layers:15@smollm2-135m-instruct", "layers:15@smollm2-135m-instruct"),
        ("layers:15@run-20261125-093000-abcdef", "layers:15@run-20261125-093000-abcdef"),
        ("layers:15", "layers:15"),
    ],
)
def test_the_folder_of_a_teacher_of_layers_is_counted_from_the_recipe(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "big").mkdir()
    recipe = recipe_from({"base_model": name, "data": {"train": "t.jsonl"}}, base_dir=tmp_path)
    assert recipe.base_model == expected.format(folder=tmp_path)


def test_a_document_from_python(tmp_path: Path) -> None:
    recipe = recipe_from({"base_model": "x", "data": {"train": "t.jsonl"}}, base_dir=tmp_path)
    assert recipe == Recipe.model_validate_json(
        json.dumps({"base_model": "x", "data": {"train": str(tmp_path / "t.jsonl")}})
    )
    with pytest.raises(RecipeError, match="the recipe has 1 problem"):
        recipe_from({"base_model": "x", "data": {"train": 3}}, base_dir=tmp_path)
    with pytest.raises(RecipeError, match="not a plain value"):
        recipe_from({"base_model": tmp_path, "data": {"train": "t"}}, base_dir=tmp_path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.part=[0.5, 0.25]", "a share from a smaller to a larger number"),
        ("data.shuffle_buffer=10", "shuffle_buffer with streaming: true alone"),
    ],
)
def test_what_a_validator_expects_is_said_in_its_words(tmp_path: Path, override: str, expected: str) -> None:
    said = problems(tmp_path, WHOLE, override)
    assert f"expected {expected}" in said
    assert "Value error" not in said
