"""Exchanges without the personal data in their words; how that is found is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from luthier.core.records.traffic import Exchange

Mask = Callable[[Sequence[Sequence[str]]], list[tuple[list[str], int]]]
"""Masks the texts of exchanges: one list of texts each, in which the same value has the same stand-in; returns the
texts as they may be kept, and how many places were masked."""
_NO_WORDS: Final = frozenset({"role", "type", "id", "tool_call_id"})


def masked(exchanges: Sequence[Exchange], mask: Mask) -> list[Exchange]:
    """The exchanges with all their texts masked: contents, names, arguments of calls, and the answer."""
    # The answer is always the last text, so that `next(left)` below finds it after the messages'.
    texts = [[*_texts_of(list(one.messages or ())), one.answer or ""] for one in exchanges]
    kept = []
    for one, (replaced, num_masked) in zip(exchanges, mask(texts), strict=True):
        left = iter(replaced)
        messages = None if one.messages is None else tuple(_with_texts(list(one.messages), left))
        answer = next(left) if one.answer is not None else None
        kept.append(one.model_copy(update={"messages": messages, "answer": answer, "num_masked": num_masked}))
    return kept


def num_characters(exchange: Exchange) -> int:
    """Of all its words."""
    return sum(map(len, _texts_of(list(exchange.messages or ())))) + len(exchange.answer or "")


def without_words(exchange: Exchange) -> Exchange:
    """What `metadata` keeps of it."""
    return exchange.model_copy(update={"messages": None, "answer": None})


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NO_WORDS:
                yield from _texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_of(item)


def _with_texts(value: Any, texts: Iterator[str]) -> Any:
    """The same with other texts, in the order of `_texts_of`."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {name: item if name in _NO_WORDS else _with_texts(item, texts) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_texts(item, texts) for item in value]
    return value
