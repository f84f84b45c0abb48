"""Blocks of an answer come one after the other, however a server mixes them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.stream import CallPiece, Piece, TokenLikelihood, WrittenToken
from luthier.features.serving.api.block_order import BlockOrder, Part


def begun(index: int, arguments: str = "") -> CallPiece:
    return CallPiece(index=index, call_id=f"c{index}", name=f"f{index}", arguments=arguments)


def more(index: int, arguments: str) -> CallPiece:
    return CallPiece(index=index, arguments=arguments)


def calls(*pieces: CallPiece) -> Piece:
    return Piece(text="", calls=pieces)


def words(part: Part) -> tuple[str, str]:
    return (f"call{part.call.index}", part.call.arguments) if part.call is not None else (part.kind, part.text)


def steps(*pieces: Piece) -> list[list[tuple[str, str]]]:
    """What is shown after each piece, and at the end."""
    order = BlockOrder()
    return [[words(part) for part in order.add(piece)] for piece in pieces] + [[words(part) for part in order.end()]]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # One after the other: nothing is held.
        (
            [calls(begun(0, "{")), calls(more(0, "}"), begun(1)), calls(more(1, "{}"))],
            [[("call0", "{")], [("call0", "}"), ("call1", "")], [("call1", "{}")], []],
        ),
        # Two at once: the second one is held until the first is whole.
        (
            [
                calls(begun(0), begun(1)),
                calls(more(1, '{"b"'), more(0, '{"a"')),
                calls(more(0, ": 1}"), more(1, ": 2}")),
            ],
            [
                [("call0", "")],
                [("call0", '{"a"')],
                [("call0", ": 1}"), ("call1", ""), ("call1", '{"b"'), ("call1", ": 2}")],
                [],
            ],
        ),
        # A brace inside of a text is not the end of the arguments.
        (
            [calls(begun(0, '{"a": "}'), begun(1, "{}")), calls(more(0, '"}'))],
            [[("call0", '{"a": "}')], [("call0", '"}'), ("call1", "{}")], []],
        ),
        # A call without arguments is whole at the end.
        ([calls(begun(0), begun(1)), Piece(text="x")], [[("call0", "")], [], [("call1", ""), ("text", "x")]]),
        # Text follows the call whose rest comes with it; blanks behind a whole call are nothing.
        (
            [calls(begun(0, "{")), Piece(text="x", calls=(more(0, "}"), begun(1, "{}"))), calls(more(0, " "))],
            [[("call0", "{")], [("call0", "}"), ("text", "x"), ("call1", "{}")], [], []],
        ),
        (
            [Piece(text="x", reasoning="t"), Piece(text="y", reasoning="u")],
            [[("reasoning", "t"), ("text", "x")], [("reasoning", "u"), ("text", "y")], []],
        ),
        # More of a call that has not begun is nothing.
        ([calls(more(3, "{}"))], [[], []]),
    ],
)
def test_a_block_is_whole_before_the_next_one_begins(
    pieces: list[Piece], expected: list[list[tuple[str, str]]]
) -> None:
    assert steps(*pieces) == expected


def token(text: str) -> WrittenToken:
    return WrittenToken(chosen=TokenLikelihood(token=text, log_probability=-1.0), offset=0)


def test_tokens_come_with_the_text_that_they_make() -> None:
    order = BlockOrder()
    pieces = (
        Piece(text="", reasoning="so", tokens=(token("so"), token("</think>"), token("Sp")), num_thought_tokens=2),
        Piece(text="Spruce", tokens=(token("ruce"),)),
        Piece(text="", tokens=(token("<tool"),)),  # held back: it may be the beginning of a call, and is one
        Piece(text="", tokens=(token("_call>"),), calls=(begun(0, "{}"),)),
        Piece(text=" Yes", tokens=(token(" Yes"),)),
    )
    parts = [part for piece in pieces for part in order.add(piece)] + list(order.end())
    found = [(words(part), [one.chosen.token for one in part.tokens]) for part in parts]
    assert found == [
        (("reasoning", "so"), []),
        (("text", "Spruce"), ["Sp", "ruce"]),
        (("call0", "{}"), []),
        (("text", " Yes"), [" Yes"]),
    ]


@settings(max_examples=25)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_calls_in_any_mixture_are_each_whole_and_in_order(random, num: int) -> None:  # type: ignore[no-untyped-def]
    texts = [f'{{"n": {{"a": "}}{place}"}}}}' for place in range(num)]
    left = {place: [begun(place)] + [more(place, letter) for letter in text] for place, text in enumerate(texts)}
    mixed = [left[place].pop(0) for place in range(num)]
    while rest := [place for place in left if left[place]]:
        mixed.append(left[random.choice(rest)].pop(0))
    found = [one for step in steps(*map(calls, mixed)) for one in step]
    assert [name for place, (name, _) in enumerate(found) if place == 0 or found[place - 1][0] != name] == [
        f"call{place}" for place in range(num)
    ]
    shown = ["".join(text for name, text in found if name == f"call{place}") for place in range(num)]
    assert shown == texts
