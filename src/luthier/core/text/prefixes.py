"""Which rows share a prefix, so that it is computed once: for training and for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TOKEN_BYTES: Final = 4


def common_tokens(one: bytes, other: bytes) -> int:
    """How many tokens two rows begin with in common.

    Args:
        one, other: their ids, four bytes each.
    """
    # Bisection over slices: comparing bytes is a memcmp, many times faster than a loop over tokens.
    low, high = 0, min(len(one), len(other)) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if one[: middle * TOKEN_BYTES] == other[: middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


def best_groups(
    common: Sequence[int], *, rows_at_once: float, least_tokens: int, cost_tokens: int
) -> list[tuple[int, int, int]]:
    """Disjoint groups of sorted rows that save the most: (start, stop, common tokens), `stop` not included.

    A group of m rows with P common tokens saves P * (m * rows_at_once - 1) tokens and costs `cost_tokens`; prefixes
    shorter than `least_tokens` are not shared.

    Rows sorted by their tokens that share a prefix are neighbours, and the common prefixes of neighbours span a tree
    of nested groups (an LCP interval tree: Abouelhoda, Kurtz & Ohlebusch, 2004, doi:10.1016/S1570-8667(03)00065-0,
    section 2). Each node of the tree is one group or leaves it to its parts, depending on which saves more. Linear
    time.

    Args:
        common: of each row and its follower, how many tokens they begin with in common.
        rows_at_once: how many of a row's group are computed together, for each row.
        least_tokens: the shortest beginning that is shared.
        cost_tokens: what a group costs, in tokens of computation.
    """
    # The root: all rows, with no common token. It never leaves the stack and collects what its parts save.
    stack = [_Node(0, 0, 0.0, [])]
    for i in range(len(common) + 1):
        length = common[i] if i < len(common) else 0
        start = i
        part: _Node | None = None
        # These intervals end at row i, since it has fewer tokens in common with its follower.
        while stack[-1].length > length:
            part = stack.pop()
            saved = part.length * ((i + 1 - part.start) * rows_at_once - 1) - cost_tokens
            # One group of the whole interval, or the groups inside it, whichever saves more.
            if part.length >= least_tokens and saved > part.saved:
                part.saved, part.groups = saved, [(part.start, i + 1, part.length)]
            start = part.start
            # The interval below continues: the closed one is a part of it.
            if stack[-1].length >= length:
                stack[-1].saved += part.saved
                stack[-1].groups += part.groups
                part = None
        # A deeper interval opens where the last closed one began, and takes that as its first part.
        if length > stack[-1].length:
            stack.append(_Node(start, length, part.saved if part else 0.0, part.groups if part else []))
    return stack[0].groups


@dataclass(slots=True)
class _Node:
    """An open interval of the sorted rows: from `start`, with `length` common tokens; what its parts save."""

    start: int
    length: int
    saved: float
    groups: list[tuple[int, int, int]]
