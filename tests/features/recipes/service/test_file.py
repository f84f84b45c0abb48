"""YAML and JSON as people write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import NotFoundError, RecipeError
from luthier.features.recipes.file import parse_value, read_recipe_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("2E4", 2e4),
        ("1.e3", 1e3),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("1_000", 1000),
        ("true", True),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-11-25", "2026-11-25"),
        ("v1.2.3", "v1.2.3"),
        ("~", None),
        ("", None),
        ("null", None),
        ("-.inf", float("-inf")),
        ("'3'", "3"),
        ("[rouge, bleu]", ["rouge", "bleu"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    parsed = parse_value("it", text)
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_as_that_number(number: float) -> None:
    assert parse_value("it", repr(number)) == number


def test_lines_are_known(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("# hello\nbase_model: x\n\ntraining:\n  epochs: 3\n")
    assert read_recipe_file(path).lines == {"base_model": 2, "training": 4, "training.epochs": 5}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("base_model: x", encoding="utf-8-sig")
    assert read_recipe_file(path).keys == {"base_model": "x"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.yaml", b"", "is empty"),
        ("r.yaml", b"# only a comment\n", "is empty"),
        ("r.yaml", b"- a\n- b\n", "holds list"),
        ("r.yaml", b"just words", "holds str"),
        ("r.yaml", b"a: 1\nb: [1, 2\nc: 3\n", r"r\.yaml:3:2 is not valid YAML"),
        ("r.yaml", b"a:\n\tb: 1\n", r"r\.yaml:2:1 is not valid YAML"),
        ("r.yaml", b"a: 1\nb: 2\na: 3\n", r"r\.yaml:3:1 is not valid YAML: key 'a' appears twice"),
        ("r.yaml", b"t: {a: 1, a: 2}\n", "key 'a' appears twice"),
        ("r.yaml", b"a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("r.yaml", b"a: 1\n---\nb: 2\n", "expected a single document"),
        ("r.yaml", b"a: \x00\n", "is not valid YAML"),
        ("r.yaml", "a: é".encode("latin-1"), "byte 0xe9 at offset 3"),
        ("r.yaml", "a: 1".encode("utf-16"), "byte 0xff at offset 0"),
        ("r.yaml", b"[" * 100_000, "is not valid YAML"),
        ("r.json", b'{"a": 1,}', "not valid JSON.*line 1 column"),
        ("r.json", b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        ("r.json", b'{"a": NaN}', "NaN is not a JSON number"),
        ("r.json", b"[" * 100_000, "not valid JSON"),
        ("r.toml", b"a = 1", r"ends in '\.toml'"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        read_recipe_file(tmp_path / name)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("{}")
    with pytest.raises(NotFoundError, match=r"nearest: train\.yaml"):
        read_recipe_file(tmp_path / "trian.yaml")
    with pytest.raises(NotFoundError, match="no recipe"):
        read_recipe_file(tmp_path / "none" / "r.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not a file"):
        read_recipe_file(tmp_path)


# Python's json writes what lies above U+FFFF as two escapes, which YAML does not put together again.
letters = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
# A key of over 1,024 characters is none to YAML (1.1, section 9.3.4); written by json, one of 150 may have 900.
keys = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=150)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=10,
)


@given(plain)
def test_json_means_the_same_as_yaml(value: Any) -> None:
    """JSON text is YAML text, so that a recipe may be pasted from one into the other."""
    assert parse_value("it", json.dumps(value)) == value
