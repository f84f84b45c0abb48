"""Queries that are one change away from a query: what a wrong answer most often looks like.

Source: Zhong, Yu, Klein, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites", 2020, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from luthier.ml.evaluation.sql.tables import AGGREGATES, Table
from luthier.ml.evaluation.sql.tokens import Token, name_of, text_of, tokens_of

_COMPARISONS: Final = ("=", "<", ">", "<=", ">=", "!=")
_MOST = 80


def neighbours(table: Table, query: str) -> tuple[str, ...]:
    """Another column, aggregate, comparison or constant in one place, or one condition less; at most 80, evenly."""
    tokens = tokens_of(query)
    changed: Iterator[Sequence[Token | str]] = (
        change
        for place in range(len(tokens))
        for change in (*_other_names(table, tokens, place), *_other_signs(tokens, place), *_less(tokens, place))
    )
    texts = ("".join(t if isinstance(t, str) else t.text for t in one) for one in changed)
    found = [text for text in dict.fromkeys(texts) if text != query]
    # Evenly over the query, so that changes at its end are not left out.
    step = max(1, -(-len(found) // _MOST))
    return tuple(found[::step])


def _other_names(table: Table, tokens: list[Token], place: int) -> Iterator[list[Token | str]]:
    token = tokens[place]
    if token.kind != "name" or token.value.casefold() not in {column.casefold() for column in table.columns}:
        return
    for column in table.columns:
        if column.casefold() != token.value.casefold():
            yield [*tokens[:place], name_of(column), *tokens[place + 1 :]]
    before = next((t for t in reversed(tokens[:place]) if t.kind != "space"), None)
    if before is not None and before.is_word("SELECT"):
        for aggregate in AGGREGATES:
            yield [*tokens[:place], f"{aggregate}({token.text})", *tokens[place + 1 :]]


def _other_signs(tokens: list[Token], place: int) -> Iterator[list[Token | str]]:
    token = tokens[place]
    others: list[str] = []
    if token.is_word(*AGGREGATES):
        others = [aggregate for aggregate in AGGREGATES if aggregate != token.text.upper()] + [""]
    elif token.text in _COMPARISONS:
        others = [comparison for comparison in _COMPARISONS if comparison != token.text]
    elif token.kind == "text":
        others = [text_of(token.value + "x"), text_of(token.value[:-1])]
    elif token.kind == "number":
        others = [f"{token.text} + 1", f"{token.text} - 1"]
    elif token.is_word("AND"):
        others = ["OR"]
    for other in others:
        yield [*tokens[:place], other, *tokens[place + 1 :]]


def _less(tokens: list[Token], place: int) -> Iterator[list[Token | str]]:
    """Without the condition after WHERE or AND, up to the next AND or the end."""
    if not tokens[place].is_word("WHERE", "AND"):
        return
    after = [at for at in range(place + 1, len(tokens)) if tokens[at].is_word("AND")]
    if after:
        yield [*tokens[: place + 1], *tokens[after[0] + 1 :]]
    elif not any(token.is_word("ORDER", "GROUP", "LIMIT") or token.text == ")" for token in tokens[place:]):
        yield [*tokens[:place]]
