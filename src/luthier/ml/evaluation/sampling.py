"""Deterministic sampling of rows: those with the lowest hashes of their content.

The choice is a random sample that needs no generator: it is the same on every machine, does not depend on the order of
the rows, and a larger sample contains every smaller one. The hashed content must not change: stored results name their
rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from luthier.core.dataset import Example

Item = TypeVar("Item")


def hash_order(items: Sequence[Item], content: Callable[[Item], bytes]) -> list[int]:
    """The indices of the items by the hash of their content, lowest first; ties in order."""
    # One after another: of items in files a block is read at a time.
    digests = [hashlib.sha256(content(item)).digest() for item in items]
    # Sorting is stable, so that equal content keeps the order in which it came.
    return sorted(range(len(digests)), key=digests.__getitem__)


def choose_by_hash(
    items: Sequence[Item],
    num: int | None,
    content: Callable[[Item], bytes],
    *,
    fits: Callable[[Item], bool] | None = None,
    among: Sequence[bool] | None = None,
) -> tuple[Item, ...]:
    """At most `num` of the suitable items, in their original order.

    Args:
        items: to choose from.
        num: maximum number; None for all suitable items.
        content: returns the hashed content of an item.
        fits: called for one item after the other until there are enough, since it may be slow; None accepts all.
        among: which items may be chosen; None for all.
    """
    if fits is None and among is None and (num is None or len(items) <= num):
        return tuple(items)
    places: list[int] = []
    for place in hash_order(items, content):
        if among is not None and not among[place]:
            continue
        if num is not None and len(places) >= num:
            break
        if fits is None or fits(items[place]):
            places.append(place)
    return tuple(items[place] for place in sorted(places))


def choose_samples(examples: Sequence[Example], num: int) -> tuple[Example, ...]:
    """At most `num` examples, chosen by a hash of their content, in the order of the file."""
    # By content: `id` holds file name and line, which change when rows are moved or the file is renamed.
    left_out = {"id", "goes_on", "has_answer"}
    return choose_by_hash(examples, num, lambda example: example.model_dump_json(exclude=left_out).encode())
