"""YAML without the traps of YAML 1.1; what recipes need of it is tested with recipe files."""

from __future__ import annotations

import pytest
import yaml

from luthier.core.errors import RecipeError, RequestError
from luthier.core.text.plain_yaml import parse_yaml


def test_values_are_what_they_look_like() -> None:
    text = "rate: 2e-4\nday: 2026-11-25\nanswer: no\ncode: 010\n"
    assert parse_yaml("x", text)[0] == {"rate": 2e-4, "day": "2026-11-25", "answer": "no", "code": 10}


def test_lines_are_told_by_dotted_key() -> None:
    assert parse_yaml("x", "a:\n  b:\n    c: 1\nd: 2\n")[1] == {"a": 1, "a.b": 2, "a.b.c": 3, "d": 4}


def test_an_empty_text_is_none() -> None:
    assert parse_yaml("x", "# nothing\n") == (None, {})


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2", "a: [1", "a: b: c", "\t- a", "!!python/object:os.system {}",
        "a: !!int x", "a: !!float x", "a: !!bool x", "a: !!timestamp x", f"a: {'1' * 5_000}",
    ],
    ids=range(10),
)  # fmt: skip
def test_what_is_no_plain_document_is_refused_as_the_caller_says(text: str) -> None:
    with pytest.raises(RequestError, match="prices"):
        parse_yaml("prices", text)
    with pytest.raises(RecipeError):
        parse_yaml("recipe", text, refuse=RecipeError)


@pytest.mark.parametrize("text", ["yes", "No", "ON", "off", "true", "False", "'no'", "none", "y", "n", "2e-4", "None"])
def test_words_for_switches_are_those_of_pyyaml_where_a_program_reads_by_it(text: str) -> None:
    """Other values stay as they are read elsewhere."""
    by_pyyaml = yaml.safe_load(text)
    expected = by_pyyaml if isinstance(by_pyyaml, bool) else parse_yaml("x", text)[0]
    assert parse_yaml("x", text, has_switch_words=True) == (expected, {})
