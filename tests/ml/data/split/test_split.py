"""Splits without leaks, and the leaks of files that were split elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.ml.data.split.split import leaked_ids, split_by_fraction


def _pair(line: int, prompt: str, answer: str, group: str | None = None, file: str = "r.jsonl") -> Example:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(id=f"{file}:{line}", conversation=Conversation(messages=messages), group=group)


def _rows(count: int) -> list[Example]:
    return [_pair(n, f"q{n}", f"a{n}") for n in range(1, count + 1)]


def test_fractions_are_met_and_nothing_is_lost() -> None:
    rows = _rows(1_000)
    parts = split_by_fraction(rows, validation=0.05, held_out=0.1, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 850, "validation": 50, "held_out": 100}
    assert sorted(e.id for part in parts.values() for e in part) == sorted(e.id for e in rows)
    order = {example.id: index for index, example in enumerate(rows)}
    assert all([order[e.id] for e in part] == sorted(order[e.id] for e in part) for part in parts.values())


def test_a_split_does_not_depend_on_ids_or_order() -> None:
    rows = _rows(50)
    moved = [example.model_copy(update={"id": f"other.jsonl:{n}"}) for n, example in enumerate(reversed(rows), start=1)]
    one = split_by_fraction(rows, validation=0.1, held_out=0.2, seed=3)
    other = split_by_fraction(moved, validation=0.1, held_out=0.2, seed=3)
    for name in one:
        assert {e.reference for e in one[name]} == {e.reference for e in other[name]}
    assert split_by_fraction(rows, validation=0.1, held_out=0.2, seed=4) != one


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=13, max_size=80), st.integers(0, 99), st.floats(0.01, 0.45))
def test_no_group_is_on_two_sides_and_no_asked_split_is_empty(groups: list[int], seed: int, fraction: float) -> None:
    rows = [_pair(n, f"q{n}", "a", group=str(group)) for n, group in enumerate(groups, start=1)]
    if len(set(groups)) < 3:
        with pytest.raises(DataError, match="cannot be split into 3 parts"):
            split_by_fraction(rows, validation=fraction, held_out=fraction, seed=seed)
        return
    parts = split_by_fraction(rows, validation=fraction, held_out=fraction, seed=seed)
    sides = [{example.group for example in part} for part in parts.values()]
    assert all(sides)
    assert sum(len(side) for side in sides) == len(set(groups))
    assert sum(len(part) for part in parts.values()) == len(rows)


def test_a_large_group_does_not_flood_a_small_split() -> None:
    rows = [_pair(n, f"q{n}", "a", group="big" if n <= 60 else str(n)) for n in range(1, 101)]
    for seed in range(10):
        parts = split_by_fraction(rows, validation=0.0, held_out=0.1, seed=seed)
        assert len(parts["held_out"]) == 10
        assert parts["validation"] == []


def test_equal_rows_without_a_group_stay_together() -> None:
    rows = [_pair(n, f"Q {n % 20}", f"a  {n % 20}") for n in range(1, 101)]
    parts = split_by_fraction(rows, validation=0.1, held_out=0.1, seed=0)
    assert leaked_ids(parts["train"], parts["held_out"]).exact == ()
    assert len(parts["held_out"]) == 10


@pytest.mark.parametrize(
    ("validation", "held_out", "message"),
    [(-0.1, 0.1, "validation = -0.1"), (0.1, 1.0, "held_out = 1.0"), (0.5, 0.5, "leave no row to train on")],
)
def test_impossible_fractions_are_refused(validation: float, held_out: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_by_fraction(_rows(10), validation=validation, held_out=held_out, seed=0)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="2 rows in 2 different texts cannot be split into 3 parts"):
        split_by_fraction(_rows(2), validation=0.1, held_out=0.1, seed=0)
    rows = [_pair(n, f"q{n}", "a", group="one") for n in range(10)]
    with pytest.raises(DataError, match="10 rows in 1 groups"):
        split_by_fraction(rows, validation=0.0, held_out=0.1, seed=0)
    assert len(split_by_fraction(_rows(2), validation=0.0, held_out=0.1, seed=0)["held_out"]) == 1


def test_leaks_are_found_through_case_space_and_unicode_forms() -> None:
    train = [_pair(1, "Café  STRASSE", "Answer"), _pair(2, "same prompt", "one")]
    held_out = [
        _pair(1, "cafe\u0301 straße\n", "answer ", file="h.jsonl"),
        _pair(2, "Same prompt", "two", file="h.jsonl"),
        _pair(3, "new", "answer", file="h.jsonl"),
    ]
    leaks = leaked_ids(train, held_out)
    assert [(problem.file, problem.line) for problem in leaks.exact] == [("h.jsonl", 1)]
    assert "r.jsonl:1" in leaks.exact[0].reason
    assert [(problem.file, problem.line) for problem in leaks.same_prompt] == [("h.jsonl", 2)]
    assert "r.jsonl:2" in leaks.same_prompt[0].reason


def test_plain_text_leaks_are_exact_only() -> None:
    train = [Example(id="t.jsonl:1", text="A luthier"), Example(id="t.jsonl:2", text="builds")]
    held_out = [Example(id="h.jsonl:1", text="a  luthier"), Example(id="h.jsonl:2", text="a violin")]
    leaks = leaked_ids(train, held_out)
    assert [problem.line for problem in leaks.exact] == [1]
    assert leaks.same_prompt == ()


def test_weight_and_group_do_not_hide_a_leak() -> None:
    turns = (Message(role="user", content="q"), Message(role="assistant", content="a", weight=1))
    train = [Example(id="t.jsonl:1", conversation=Conversation(messages=turns), group="x")]
    assert len(leaked_ids(train, [_pair(1, "q", "a", group="y")]).exact) == 1


def test_a_held_out_row_leaks_where_its_answer_is_the_preferred_one_of_a_pair() -> None:
    good, bad = _pair(1, "q", "good"), _pair(1, "q", "bad")
    pair = good.model_copy(update={"id": "t.jsonl:7", "rejected": bad.conversation})
    wanted, unwanted = (good.model_copy(update={"is_wanted": is_wanted}) for is_wanted in (True, False))
    for train, is_leak in ((pair, True), (wanted, True), (unwanted, False)):
        leaks = leaked_ids([train], [_pair(1, "Q", "Good", file="h.jsonl")])
        assert [(len(leaks.exact), len(leaks.same_prompt))] == [(1, 0) if is_leak else (0, 1)]
    for train in (pair, wanted, unwanted):
        assert leaked_ids([train], [_pair(1, "q", "bad", file="h.jsonl")]).exact == ()


def _log(conversation: int, num_rows: int) -> list[Example]:
    """Rows of one conversation, each with one exchange more than the row before it."""
    turns = [
        message
        for n in range(num_rows)
        for message in (
            Message(role="user", content=f"question {n} of {conversation}"),
            Message(role="assistant", content=f"answer {n} of {conversation}"),
        )
    ]
    return [
        Example(id=f"r.jsonl:{conversation * 100 + n}", conversation=Conversation(messages=tuple(turns[: 2 * n + 2])))
        for n in range(num_rows)
    ]


def test_a_conversation_stays_with_the_rows_that_continue_it() -> None:
    rows = [row for conversation in range(40) for row in _log(conversation, 5)]
    # Without a row in between, the row before still counts.
    rows = [row for place, row in enumerate(rows) if place % 5 != 2]
    parts = split_by_fraction(rows, validation=0.1, held_out=0.2, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 112, "validation": 16, "held_out": 32}
    side_of = {int(row.id.split(":")[1]) // 100: name for name, part in parts.items() for row in part}
    assert all(side_of[int(row.id.split(":")[1]) // 100] == name for name, part in parts.items() for row in part)
    backwards = split_by_fraction(rows[::-1], validation=0.1, held_out=0.2, seed=0)
    assert {name: {row.id for row in part} for name, part in backwards.items()} == {
        name: {row.id for row in part} for name, part in parts.items()
    }


def test_a_greeting_ties_no_conversations_together() -> None:
    hello = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello! How can I help?"))
    rows = [Example(id="r.jsonl:1", conversation=Conversation(messages=hello))]
    for n in range(2, 101):
        own = (Message(role="user", content=f"q{n}"), Message(role="assistant", content=f"a{n}"))
        rows.append(Example(id=f"r.jsonl:{n}", conversation=Conversation(messages=(*hello, *own))))
    parts = split_by_fraction(rows, validation=0.0, held_out=0.2, seed=0)
    assert len(parts["held_out"]) == 20
