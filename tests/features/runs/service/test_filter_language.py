"""The filter language: what it reads, what it writes again, and where it says that something is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import RequestError
from luthier.features.runs.filter_language import (
    MAX_CHARACTERS,
    OPERATORS,
    All,
    AnyOf,
    Condition,
    Filter,
    Not,
    Words,
    filter_text,
    names_in,
    parse_filter,
)

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
CONDITIONS: st.SearchStrategy[Filter] = st.builds(
    Condition, st.from_regex(r"[a-z_][a-z0-9_.]{0,10}", fullmatch=True), st.sampled_from(OPERATORS), TEXTS
)


def _combined(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(All, several), st.builds(AnyOf, several))


TREES = st.recursive(st.one_of(CONDITIONS, st.builds(Words, TEXTS)), _combined, max_leaves=8)


@given(TREES)
def test_a_tree_is_read_as_it_was_written(tree: Filter) -> None:
    assert parse_filter(filter_text(tree)) == tree


def test_conditions_stand_beside_each_other() -> None:
    text = 'lr>1e-3 tag:sweep verdict:better created>2026-11-01 name~"client"'
    assert parse_filter(text) == All(
        (
            Condition("lr", ">", "1e-3"),
            Condition("tag", ":", "sweep"),
            Condition("verdict", ":", "better"),
            Condition("created", ">", "2026-11-01"),
            Condition("name", "~", "client"),
        )
    )


def test_or_binds_less_than_what_stands_side_by_side_and_not_binds_most() -> None:
    a, b, c = Words("a"), Words("b"), Words("c")
    assert parse_filter("a b or not c") == AnyOf((All((a, b)), Not(c)))
    assert parse_filter("a and (b OR -c)") == All((a, AnyOf((b, Not(c)))))
    assert parse_filter('"or" "a \\" b"') == All((Words("or"), Words('a " b')))
    assert parse_filter("lr >= 1") == Condition("lr", ">=", "1")
    assert parse_filter("  ") is None
    assert filter_text(None) == ""


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("lr>", 4, "end of the filter"),
        ("tag:a lr>>2", 10, "'>2'"),
        ("a (b or c", 3, "never closed"),
        ("a )", 3, "closing parenthesis"),
        ("a) b", 2, "closing parenthesis"),
        ("a or", 5, "end of the filter"),
        ("or a", 1, "'or' without a condition before it"),
        ('name:"client', 6, "quote that is never closed"),
        ("not", 4, "end of the filter"),
    ],
)
def test_a_fault_is_named_with_its_place(text: str, position: int, what: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_filter(text)
    assert f"at character {position}" in caught.value.came
    assert what in caught.value.came
    assert caught.value.expected
    assert "lr>1e-3" in caught.value.do


@pytest.mark.parametrize("text", ["(" * 200, "-" * 500, "a " * 200, "a" * (MAX_CHARACTERS + 1)])
def test_filters_without_end_are_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_filter(text)


def test_the_fields_of_a_filter() -> None:
    assert names_in(parse_filter("LR>1 (tag:a or not archived:yes) words")) == {"lr", "tag", "archived"}
    assert names_in(None) == set()
