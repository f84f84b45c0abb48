"""Shared prefixes: of the texts of a column, and of tokenised rows, so that training can compute them once.

A system prompt, a few-shot header or a long instruction is in front of every example of many files. `common_prefix`
finds it in texts. Tokenised examples with the same beginning form a family; a micro-batch of one family computes that
beginning once (ml/training/prefix_attention.py), and all of its examples attend to it. Rows that are side by side,
such as the two completions of a preference pair, have the beginning of their own prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.dataset import TokenisedExample, common_beginning
from luthier.core.text.prefixes import best_groups, common_tokens
from luthier.ml.data.tokenise.token_store import StoredRows, Units, behind_views, common_depths

if TYPE_CHECKING:  # every training comes here, and needs no tables
    import polars as pl

    from luthier.ml.data.files.row_frames import Texts

_SHARE: Final = 0.9
_FEWEST_TEXTS: Final = 20
_FEWEST_WORDS: Final = 3
_LENGTHS_A_PASS: Final = 64


def common_prefix(texts: Texts) -> str:
    """The longest beginning that at least 90% of the texts share, cut back to whole words; nulls are left out.

    "" where there is none of three words, and for fewer than 20 texts, of which one cannot say that they share one.
    """
    num_texts = sum(len(part) - part.null_count() for part in _parts(texts))
    if num_texts < _FEWEST_TEXTS:
        return ""
    num = math.ceil(_SHARE * num_texts - 1e-9)  # 0.9 of 110 is 99, not a little more
    found, goes_on = shared_beginning(texts, num)
    prefix = _whole_words(found + goes_on, len(found))
    return prefix if len(prefix.split()) >= _FEWEST_WORDS else ""


def shared_beginning(texts: Texts, num: int) -> tuple[str, str]:
    """The longest string that at least `num` of the texts begin with, and how one of these texts continues.

    Args:
        texts: nulls are left out.
        num: how many have to share it; more than half of them, so that there is only one such string.
    """
    candidate, found, goes_on = _first_text(texts, ""), "", ""
    # One text shows only the beginning that it has itself, so another one is tried as long as `num` texts continue with
    # the same character. Each round adds at least that character.
    while candidate is not None:
        found = _longest_shared(texts, candidate, num, len(found))
        goes_on = candidate[len(found) :]
        candidate = _first_text(texts, found + following) if (following := _following(texts, found, num)) else None
    return found, goes_on


def _parts(texts: Texts) -> Iterator[pl.Series]:
    from luthier.ml.data.files.row_frames import text_parts

    return text_parts(texts)


def _longest_shared(texts: Texts, candidate: str, num: int, low: int) -> str:
    """The longest beginning of the candidate that `num` texts share, of which the first `low` characters are known."""
    high = len(candidate)
    while low < high:
        # Many lengths in one pass over the texts, since a pass may read them from disk.
        step = max(1, -(-(high - low) // _LENGTHS_A_PASS))
        lengths = [*range(low + step, high, step), high]
        counts = np.zeros(len(lengths), dtype=np.int64)
        for part in _parts(texts):
            for place, length in enumerate(lengths):
                found = int(part.str.starts_with(candidate[:length]).sum())
                counts[place] += found
                if not found:  # none has a longer one
                    break
        num_reached = int((counts >= num).sum())
        if num_reached < len(lengths):
            high = lengths[num_reached] - 1
        low = lengths[num_reached - 1] if num_reached else low
    return candidate[:low]


def _following(texts: Texts, beginning: str, num: int) -> str:
    """The character that follows a beginning in at least `num` texts; "" where there is none."""
    counts: Counter[str] = Counter()
    for part in _parts(texts):
        some = part.filter(part.str.starts_with(beginning)).str.slice(len(beginning), 1).alias("next")
        counts.update(dict(some.value_counts().iter_rows()))
    del counts[""]
    character, most = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return character if most >= num else ""


def _first_text(texts: Texts, beginning: str) -> str | None:
    for part in _parts(texts):
        at = part.str.starts_with(beginning).fill_null(value=False).arg_true()
        if len(at):
            return str(part[int(at[0])])
    return None


def _whole_words(text: str, length: int) -> str:
    end = length
    if end < len(text) and text[end].isalnum():
        while end and text[end - 1].isalnum():
            end -= 1
    return text[:end]


MIN_TOKENS: Final = 16
"""Shorter prefixes are not worth the second attention product."""

MICRO_BATCH_TOKENS: Final = 100
"""What one micro-batch more costs, in tokens: thinner products, one more call of every layer (docs/log.md)."""

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Families:
    """The family of each example and the beginning it shares.

    Attributes:
        families: int64 [n], a number for each family, -1 where an example belongs to none.
        prefix_tokens: int64 [n], the length of its family's common beginning, 0 where it belongs to none.
    """

    families: I64
    prefix_tokens: I64


@dataclass(frozen=True, slots=True)
class UnitPrefixes:
    """The common prefix of the rows of each unit.

    Attributes:
        prefix_tokens: int64 [n], the length of the prefix in tokens.
        computed_tokens: int64 [n], tokens that are computed for a unit if its prefix is computed once.
    """

    prefix_tokens: I64
    computed_tokens: I64


def unit_prefixes(units: Sequence[Sequence[TokenisedExample]], *, are_cut: bool = False) -> UnitPrefixes:
    """The common beginning of each unit's rows, up to the tokens that may be shared (`shareable_tokens`).

    Args:
        units: the rows of each example.
        are_cut: the rows of a unit are the answers of one conversation.

    Returns:
        Arrays [len(units)]; the prefix is 0 where rows have no common beginning, and for a unit of one row.
    """
    prefix = np.asarray(
        [common_beginning(unit, are_cut=are_cut) if len(unit) > 1 else 0 for unit in units], dtype=np.int64
    )
    rows = np.asarray([len(unit) for unit in units], dtype=np.int64)
    whole = np.asarray([sum(row.num_tokens for row in unit) for unit in units], dtype=np.int64)
    return UnitPrefixes(prefix, whole - (rows - 1) * prefix)


def find_families(units: Sequence[Sequence[TokenisedExample]], *, global_batch_size: int) -> Families:
    """The families that save the most tokens a step, when steps draw `global_batch_size` units at random.

    A unit is one example, or several rows that are side by side, of which only what all begin with can be shared.

    A group of m of the n examples with P common tokens saves P * (m * global_batch_size / n - 1) tokens a step, and
    costs its own micro-batch (100 tokens' worth): see `best_groups`.
    """
    num = len(units)
    families = np.full(num, -1, dtype=np.int64)
    prefix_tokens = np.zeros(num, dtype=np.int64)
    # A step draws global_batch_size of the n units, so m members occur m times this often in a step.
    per_example = global_batch_size / num if num else 0.0
    order, common = _in_order(units, num / global_batch_size)
    groups = best_groups(common, rows_at_once=per_example, least_tokens=MIN_TOKENS, cost_tokens=MICRO_BATCH_TOKENS)
    for number, (start, stop, length) in enumerate(groups):
        members = order[start:stop]
        families[members], prefix_tokens[members] = number, length
    return Families(families, prefix_tokens)


def _in_order(units: Sequence[Sequence[TokenisedExample]], more_than: float) -> tuple[I64, list[int]]:
    """The order of units by their prefixes, and how many tokens each has in common with the next one.

    Args:
        units: as of `find_families`.
        more_than: a group of so many units or fewer saves nothing.
    """
    if isinstance(units, Units) and (units.num_rows == 1).all() and (found := behind_views(units.rows)) is not None:
        return _stored_order(*found, more_than)
    keys = [_shareable_start(unit) for unit in units]
    # Sorted by bytes, equal prefixes are adjacent, so common prefixes of neighbours describe all groups (as in a
    # suffix array). Any total order will do, hence little-endian bytes.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [common_tokens(keys[order[i]], keys[order[i + 1]]) for i in range(len(keys) - 1)]
    return np.asarray(order, dtype=np.int64), common


def _stored_order(rows: StoredRows, positions: I64, more_than: float) -> tuple[I64, list[int]]:
    """The same of rows that are in files: their prefixes are read only as deep as a group could save something.

    Rows that are left in one branch of the tree of prefixes have the same key, so there are few keys, and the groups
    that are worth something are the same.
    """
    depths, branches = common_depths(rows, positions, more_than)
    _, first, of_row = np.unique(branches, return_index=True, return_inverse=True)
    keys = [rows.ids[rows.starts[positions[i]] :][: depths[i]].tobytes() for i in first.tolist()]
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    order = np.argsort(ranks[of_row], kind="stable").astype(np.int64)
    # Of neighbours in one branch their depth, of others what the two keys have in common.
    common, of_order = depths[order][:-1], of_row[order]
    for at in np.flatnonzero(np.diff(of_order)).tolist():
        common[at] = common_tokens(keys[of_order[at]], keys[of_order[at + 1]])
    return order, common.tolist()


def _shareable_start(unit: Sequence[TokenisedExample]) -> bytes:
    """The bytes of the tokens that all rows of a unit begin with, as far as they may be shared."""
    # 4 bytes a token: array("i"). Bytes compare faster than tuples of ints.
    return bytes(memoryview(unit[0].input_ids).cast("B")[: 4 * common_beginning(unit)])
