"""Drafts of recipes: text and keys say the same, and what is wrong names its place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import RecipeError
from luthier.features.recipes.service import MAX_CHARACTERS, problems_of, read_text, value_at, with_values, write_text

KEYS: dict[str, Any] = {
    "training": {"learning_rate": 2e-4, "epochs": 3, "optimizer": "muon"},
    "base_model": "tiny",
    "data": {"train": "file-20261125-093000-1f2e3d", "held_out": 0.1},
    "evaluation": {"metrics": ["rouge", "bleu"]},
}


def test_a_text_is_written_in_the_order_of_recipes_and_read_again() -> None:
    text = write_text(KEYS, {"file-20261125-093000-1f2e3d": "support\nchats # 2, version 3"})
    assert text.splitlines() == [
        "base_model: tiny",
        "data:",
        "  train: file-20261125-093000-1f2e3d  # support chats # 2, version 3",
        "  held_out: 0.1",
        "training:",
        "  epochs: 3",
        "  optimizer: muon",
        "  learning_rate: 0.0002",
        "evaluation:",
        "  metrics: [rouge, bleu]",
    ]
    assert read_text(text).keys == KEYS
    assert problems_of(read_text(text)) == ()
    assert (read_text("").keys, write_text({}, {})) == ({}, "")


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.sampled_from(
                ["1e5", "yes", "010", "1:30", "2e-4", "null", "a: b", "# a", "- a", " a ", "a\nb\n", "\ufeff"]
            ),
            st.integers(),
            st.floats(allow_nan=False),
            st.booleans(),
            st.none(),
            st.lists(st.integers()),
        ),
        max_size=4,
    )
)
def test_whatever_stands_in_it_comes_back(inner: dict[str, Any]) -> None:
    assert read_text(write_text({"method": inner}, {})).keys == {"method": inner}


def test_values_are_set_and_taken_out() -> None:
    changed = with_values(KEYS, {"training.epochs": None, "method.rank": 8, "data.held_out": None, "budget.usd": None})
    assert changed == {
        "training": {"learning_rate": 2e-4, "optimizer": "muon"},
        "base_model": "tiny",
        "data": {"train": "file-20261125-093000-1f2e3d"},
        "evaluation": {"metrics": ["rouge", "bleu"]},
        "method": {"rank": 8},
    }
    assert KEYS["training"]["epochs"] == 3, "what came is left as it was"
    assert with_values({"method": {"rank": 8}}, {"method.rank": None}) == {}
    assert with_values(KEYS, {"training.optimizer.beta1": 0.8})["training"]["optimizer"] == {
        "name": "muon",
        "beta1": 0.8,
    }
    assert value_at(KEYS, "training.optimizer.name") == "muon"
    assert value_at(KEYS, "training.learning_rate") == 2e-4
    assert value_at(KEYS, "method.name") is None
    assert value_at(KEYS, "base_model.x") is None
    assert with_values(KEYS, {"training.optimizer.name": "muon"}) == KEYS, "what is as it was keeps its spelling"
    short = {"data": {"canaries": 8}, "evaluation": {"good_enough": 0.9}}
    assert (value_at(short, "data.canaries.num"), value_at(short, "data.canaries.seed")) == (8, None)
    assert with_values(short, {"data.canaries.seed": 1, "evaluation.good_enough.value": None}) == {
        "data": {"canaries": {"num": 8, "seed": 1}}
    }


def test_what_is_wrong_names_its_place_and_the_nearest_key() -> None:
    text = "base_model: tiny\ndata:\n  train: f\n  held_ot: 0.1\ntraining:\n  epochs: -1\n  lr: 0.1\n"
    found = {problem.place: problem.words for problem in problems_of(read_text(text))}
    assert "line 4" in found["data.held_ot"]
    assert "nearest known: data.held_out" in found["data.held_ot"]
    assert "nearest known: training.learning_rate" in found["training.lr"]
    assert "expected a number greater than 0" in found["training.epochs"]
    assert {problem.place for problem in problems_of(read_text(""))} == {"base_model", "data"}


@pytest.mark.parametrize(
    "text",
    [
        "a: b: c",
        "- a",
        "text",
        "a: 1\na: 2",
        "{1: 2}",
        "&a [*a]",
        "base_model: &a {b: 1}\ndata: *a",
        "a" * (MAX_CHARACTERS + 1),
    ],
)
def test_what_is_no_recipe_at_all_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        read_text(text)
