"""How published embedding models make vectors, read from the files beside their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.loading import load_tokenizer
from luthier.ml.inference.models.own_embedding import OwnEmbedding, own_embedding, own_ending, shortened


def _modes(**given: bool) -> dict[str, Any]:
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    modes = {f"pooling_mode_{name}": given.get(name, False) for name in names}
    return {"word_embedding_dimension": 1024, "include_prompt": True} | modes


def _folder(folder: Path, pooling: dict[str, Any] | None, prompts: dict[str, Any] | None = None) -> Path:
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("pooling", "prompts", "expected"),
    [
        (_modes(lasttoken=True), None, OwnEmbedding("last")),
        (_modes(mean_tokens=True), {"prompts": {}}, OwnEmbedding("mean")),
        ({"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": True}, None, OwnEmbedding("last")),
        (
            _modes(lasttoken=True),
            {"prompts": {"query": "Instruct: find\nQuery:", "document": ""}, "default_prompt_name": None},
            OwnEmbedding("last", "Instruct: find\nQuery:", ""),
        ),
        (
            _modes(mean_tokens=True),
            {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"},
            OwnEmbedding("mean", "query: ", "passage: "),
        ),
        (
            _modes(mean_tokens=True),
            {"prompts": {"any": "text: "}, "default_prompt_name": "any"},
            OwnEmbedding("mean", "text: ", "text: "),
        ),
        (None, {"prompts": {"query": "query: "}}, None),
    ],
)
def test_pooling_and_prompts_are_those_of_the_files(
    pooling: dict[str, Any] | None, prompts: dict[str, Any] | None, expected: OwnEmbedding | None, tmp_path: Path
) -> None:
    assert own_embedding(_folder(tmp_path, pooling, prompts)) == expected


def _parts(*kinds: str) -> list[dict[str, Any]]:
    return [
        {"idx": n, "path": "1_Pooling" if kind == "Pooling" else "", "type": f"a.b.{kind}"}
        for n, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("pooling", "files", "words"),
    [
        (_modes(cls_token=True), {}, "cls_token"),
        (_modes(mean_tokens=True, max_tokens=True), {}, r"mean_tokens \+ max_tokens"),
        ({"pooling_mode": "cls"}, {}, "pooling cls"),
        (_modes(lasttoken=True), {"modules.json": _parts("Transformer", "Pooling", "Dense", "Normalize")}, "Dense"),
        (None, {"modules.json": _parts("Transformer", "Pooling")}, "no readable file of the pooling"),
        (_modes(mean_tokens=True), {"sentence_bert_config.json": {"do_lower_case": True}}, "lower case"),
        (
            {"pooling_mode": "mean", "include_prompt": False},
            {"config_sentence_transformers.json": {"prompts": {"query": "query: "}}},
            "include_prompt",
        ),
    ],
)
def test_vectors_that_are_not_computed_here_are_refused(
    pooling: dict[str, Any] | None, files: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, pooling)
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ModelSourceError, match=words):
        own_embedding(folder)


def test_vectors_have_length_1_where_modules_json_lists_it(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"pooling_mode": "mean"})
    (folder / "modules.json").write_text(json.dumps(_parts("Transformer", "Pooling")), encoding="utf-8")
    assert own_embedding(folder) == OwnEmbedding("mean", is_normalised=False)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"max_seq_length": 512, "do_lower_case": False}, 512),
        ({"max_seq_length": None}, None),
        ({"processing_kwargs": {"text": {"max_length": 16}}}, 16),
        ({"max_seq_length": 24, "processing_kwargs": {"text": {"max_length": 16}}}, 16),
        ({"max_seq_length": 0}, None),
    ],
)
def test_the_longest_text_is_that_of_the_files(tmp_path: Path, inputs: dict[str, Any], expected: int | None) -> None:
    folder = _folder(tmp_path, {"pooling_mode": "mean"})
    (folder / "sentence_bert_config.json").write_text(json.dumps(inputs), encoding="utf-8")
    found = own_embedding(folder)
    assert found is not None
    assert found.max_tokens == expected


@pytest.mark.parametrize(
    ("config", "dimensions", "has_any"),
    [
        ({"matryoshka_dimensions": [64, 256]}, (256, 64), False),
        ({"is_matryoshka": True, "matryoshka_dimensions": [64]}, (64,), False),
        ({"is_matryoshka": True}, (), True),
        ({"is_matryoshka": False}, (), False),
        ({}, (), False),
    ],
)
def test_lengths_of_vectors_are_those_of_config_json(
    tmp_path: Path, config: dict[str, Any], dimensions: tuple[int, ...], has_any: bool
) -> None:
    folder = _folder(tmp_path, {"pooling_mode": "mean"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = own_embedding(folder)
    assert found is not None
    assert (found.dimensions, found.has_any_dimension) == (dimensions, has_any)


def test_a_long_text_is_cut_as_its_tokenizer_cuts_it(tiny: Path) -> None:
    ours, theirs = load_tokenizer(tiny), load_tokenizer(tiny)
    text = "Spruce is light and stiff along the grain."
    end, number = str(ours.eos_token), int(ours.eos_token_id or 0)
    for single in ("$A", f"$A {end}"):
        for tokenizer in (ours, theirs):
            tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=single, special_tokens=[(end, number)]
            )
        whole = ours(text)["input_ids"]
        for most in (1, 4, len(whole), len(whole) + 1):
            # It keeps the limit of a call for later ones, so that it is not asked for anything else.
            expected = theirs(text, truncation=True, max_length=most)["input_ids"]
            assert shortened(whole, most, ours) == expected


def test_parts_of_unit_length_are_the_usual_ones(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"pooling_mode": "lasttoken", "include_prompt": False})
    (folder / "modules.json").write_text(json.dumps(_parts("Transformer", "Pooling", "Normalize")), encoding="utf-8")
    assert own_embedding(folder) == OwnEmbedding("last")  # without a prompt there is none to leave out


def test_damaged_files_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("[1", encoding="utf-8")
    assert own_embedding(tmp_path) is None


def test_the_ending_of_a_text_is_what_the_tokenizer_puts_there_itself(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    assert own_ending(tokenizer) == ""
    end, number = str(tokenizer.eos_token), int(tokenizer.eos_token_id)
    backend = tokenizer.backend_tokenizer
    for single in (f"$A {end}", f"{end} $A {end}"):
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(end, number)])
        assert own_ending(tokenizer) == end
    backend.post_processor = processors.TemplateProcessing(single=f"{end} $A", special_tokens=[(end, number)])
    assert own_ending(tokenizer) == ""
