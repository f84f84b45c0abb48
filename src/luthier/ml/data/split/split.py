"""Split examples by group: no group is on two sides, and held-out rows that are in the training data are found.

There is one way in which rows are split: whole groups, in the order of a hash, to sides of the requested sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Example, Split
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.bad_field import problem_of, shorten
from luthier.ml.data.files.sequences import selected
from luthier.ml.data.split.continued import Continuations
from luthier.ml.data.text.normalise import content_key, prompt_key

SIDES: Final[tuple[Split, ...]] = ("train", "validation", "held_out")
_HASHED_AT_ONCE: Final = 20_000

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.int8]


def check_fractions(*, validation: float, held_out: float) -> None:
    """Check the fractions of a split.

    Raises:
        DataError: a fraction is outside [0, 1), or their sum is 1 or more.
    """
    for name, fraction in (("validation", validation), ("held_out", held_out)):
        if not 0 <= fraction < 1:
            raise DataError(f"{name} = {fraction}", expected="a fraction from 0 to below 1", do="correct it")
    if validation + held_out >= 1:
        raise DataError(
            f"validation = {validation} and held_out = {held_out} leave no row to train on",
            expected="fractions whose sum is below 1",
            do="lower them",
        )


def group_sides(
    hashes: U64,
    sizes: I64,
    *,
    validation: float,
    held_out: float,
    strata: I64 | None = None,
    noun: str = "groups",
) -> Codes:
    """The side of each group, as places in `SIDES`: int8 [n].

    Within a stratum, groups are taken in the order of their hashes, whatever their own order is. A group that would
    take a side over its share of the stratum is left to the next side, and at last to train; what a stratum lacks or
    has too much, the next one (by name) makes up for, so that a side is off by less than one group. A stratum's last
    group stays in train.

    Args:
        hashes: uint64 [n, 2], of each group, each once (`hashes_of`).
        sizes: int64 [n], rows of each group.
        validation: fraction of all rows, 0 to below 1.
        held_out: fraction of all rows, 0 to below 1.
        strata: int64 [n], the stratum of each group, numbered by name; one for all where None.
        noun: what groups are called in messages.

    Raises:
        DataError: impossible fractions, and where there are too few groups for every asked side to have one.
    """
    check_fractions(validation=validation, held_out=held_out)
    fractions = {"held_out": held_out, "validation": validation}
    asked = [(SIDES.index(split), fraction) for split, fraction in fractions.items() if fraction > 0]
    num_rows = int(sizes.sum())
    if len(sizes) <= len(asked):
        raise _too_few(f"{num_rows:,} rows in {len(sizes):,} {noun}", len(asked), noun)
    order = _order(hashes)
    sizes = sizes[order]
    codes = np.zeros(len(order), dtype=np.int8)  # 0 is train
    if strata is None or not np.ptp(strata):
        for position, (side, fraction) in enumerate(asked):
            left = np.flatnonzero(codes == 0)
            taken = _take(sizes[left], fraction * num_rows, num_to_leave=len(asked) - position)
            # Where every group is too large for the share, the smallest one is taken.
            codes[left[taken] if len(taken) else left[np.argmin(sizes[left])]] = side
    else:
        strata = strata[order]
        # Stable: the groups of a stratum stay in the order of the hash.
        by_stratum = np.split(np.argsort(strata, kind="stable"), np.flatnonzero(np.diff(np.sort(strata))) + 1)
        for side, fraction in asked:
            _fill(side, fraction, by_stratum, sizes, codes)
            if not (codes == side).any():
                raise _too_few(
                    f"{len(by_stratum):,} strata of {len(sizes):,} {noun} leave none to {SIDES[side]}", len(asked), noun
                )
    found = np.empty_like(codes)
    found[order] = codes
    return found


def _order(hashes: U64) -> I64:
    return np.lexsort((hashes[:, 1], hashes[:, 0])).astype(np.int64)


def hashes_of(names: Iterable[str], seed: int) -> U64:
    """The hash of each name with the seed: uint64 [n, 2].

    Groups are taken in the order of these, not shuffled: adding groups does not move the others around. Of a name only
    the hash is kept, 16 bytes. Two of ten million names share one with a probability of about 10^-25.
    """
    digests = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16] for name in names]
    # Big-endian, so that numbers are in the order of the bytes.
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _too_few(came: str, num_asked: int, noun: str) -> DataError:
    return DataError(
        f"{came} cannot be split into {num_asked + 1} parts",
        expected=f"at least {num_asked + 1} {noun}",
        do="add rows, group by a field with more values, or give separate validation and held-out files",
    )


def _fill(side: int, fraction: float, by_stratum: Sequence[I64], sizes: I64, codes: Codes) -> None:
    """Give a side its share of each stratum; what one stratum could not give is taken from the next.

    Args:
        side: place in `SIDES`.
        fraction: of all rows.
        by_stratum: the groups of each stratum, in the order in which they are taken.
        sizes: int64 [n], rows of each group.
        codes: int8 [n], the side of each group; changed.
    """
    # Carried from stratum to stratum, so that rounding errors do not add up over many small strata.
    lacking = 0.0
    for groups in by_stratum:
        lacking += fraction * int(sizes[groups].sum())
        left = groups[codes[groups] == 0]
        if round(lacking) < 1:
            continue
        taken = left[_take(sizes[left], lacking, num_to_leave=1)]
        codes[taken] = side
        lacking -= int(sizes[taken].sum())
    if not (codes == side).any():
        # No stratum alone was large enough for a row: the smallest group is taken, of a stratum that keeps another one.
        in_order = sorted(by_stratum, key=lambda groups: int(groups[0]))
        spare = [left for groups in in_order if len(left := groups[codes[groups] == 0]) > 1]
        if spare:
            others = np.concatenate(spare)
            codes[others[np.argmin(sizes[others])]] = side


def _take(sizes: I64, target: float, *, num_to_leave: int) -> I64:
    """Places of groups of together about `target` rows and not more; at least `num_to_leave` stay behind."""
    wanted = max(1, round(target))
    taken: list[int] = []
    count = 0
    for place, size in enumerate(sizes.tolist()):
        if count >= wanted or len(sizes) - len(taken) <= num_to_leave:
            break
        if count + size <= wanted:
            taken.append(place)
            count += size
    return np.array(taken, dtype=np.int64)


def united(*columns: I64) -> I64:
    """Rows that share a value in any column, directly or through other rows, as one component.

    Args:
        columns: int64 [n] each: for each row the first row with the same value, its own position where it has none.

    Returns:
        For each row the position of the first row of its component: int64 [n].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.arange(len(columns[0]))
    apart = [np.flatnonzero(column != rows) for column in columns]
    ends = np.concatenate([column[at] for column, at in zip(columns, apart, strict=True)])
    starts = np.concatenate(apart)
    # Each row is joined with the first row that has its value; connected rows are one component.
    edges = coo_array((np.ones(len(starts), dtype=bool), (starts, ends)), shape=(len(rows), len(rows)))
    _, labels = connected_components(edges, directed=False)
    _, first, of_label = np.unique(labels, return_index=True, return_inverse=True)
    return first[of_label].astype(np.int64)


def majority(groups: I64, values: I64) -> I64:
    """The most frequent value of each group; of equally frequent ones the least: int64 [number of groups].

    Args:
        groups: int64 [n], the group of each row, from 0 without gaps.
        values: int64 [n].
    """
    order = np.lexsort((values, groups))
    groups, values = groups[order], values[order]
    # Runs of equal (group, value), with their lengths.
    begins = np.flatnonzero(np.diff(groups, prepend=-1) | np.diff(values, prepend=-1))
    counts = np.diff(np.append(begins, len(groups)))
    groups, values = groups[begins], values[begins]
    # The last key is the primary one: by group, then the most frequent value first, then the least value.
    best = np.lexsort((values, -counts, groups))
    return values[best][np.flatnonzero(np.diff(groups[best], prepend=-1))]


def split_by_fraction(
    examples: Sequence[Example], *, validation: float, held_out: float, seed: int, joins_equal: bool = False
) -> dict[Split, Sequence[Example]]:
    """Train, validation and held-out examples, each in the order they came; a fraction of 0 gives none.

    Examples of one group stay together; examples without a group are grouped by their normalised content, so that
    equal rows never part. Conversations stay with the rows that continue them (`continued`). Groups are taken in the
    order of a hash of (seed, group), which neither file order nor row ids change. A group that would take a split over
    its fraction is left to the next split, and at last to train.

    Args:
        examples: the rows.
        validation: fraction of all rows.
        held_out: fraction of all rows.
        seed: of the order of the groups.
        joins_equal: whether groups that have a row in common stay together, too.

    Raises:
        DataError: fractions outside [0, 1) or of sum 1 or more, or too few groups for every asked split to have one.
    """
    grouped = False
    empty = np.zeros((0, 2), dtype=np.uint64)
    parts, contents = [empty], [empty]
    names: list[str] = []
    said: list[str] = []
    continuations = Continuations()
    for example in examples:
        continuations.add(example)
        grouped = grouped or example.group is not None
        names.append(example.group if example.group is not None else content_key(example))
        if joins_equal:
            said.append(content_key(example))
        if len(names) == _HASHED_AT_ONCE:
            parts.append(hashes_of(names, seed))
            contents.append(hashes_of(said, seed))
            names, said = [], []
    hashes = np.concatenate([*parts, hashes_of(names, seed)])
    columns = [_firsts(np.concatenate([*contents, hashes_of(said, seed)]))] if joins_equal else []
    continued = continuations.continued()
    if (continued != np.arange(len(continued))).any():
        columns.append(continued)
    if columns:
        hashes = joined_rows(hashes, *columns)
    codes = row_sides(hashes, validation=validation, held_out=held_out, noun="groups" if grouped else "different texts")
    return {side: selected(examples, np.flatnonzero(codes == code)) for code, side in enumerate(SIDES)}


def joined(hashes: U64, others: U64) -> U64:
    """For each row the least hash of the rows that it has to stay with: uint64 [n, 2].

    Args:
        hashes: uint64 [n, 2], equal for rows of one group.
        others: uint64 [n, 2], equal for rows that say the same.
    """
    return joined_rows(hashes, _firsts(others))


def joined_rows(hashes: U64, *columns: I64) -> U64:
    """For each row the least hash of the rows that it has to stay with: uint64 [n, 2].

    Args:
        hashes: uint64 [n, 2], equal for rows of one group.
        columns: int64 [n] each, as of `united`.
    """
    roots = united(_firsts(hashes), *columns)
    # Sorted by component and then by hash, each component begins with its least hash, whatever the order of the rows.
    order = np.lexsort((hashes[:, 1], hashes[:, 0], roots))
    least = order[np.flatnonzero(np.diff(roots[order], prepend=-1))]
    _, of_row = np.unique(roots, return_inverse=True)
    return hashes[least][of_row]


def _firsts(hashes: U64) -> I64:
    """For each row the first one of an equal hash."""
    _, first, of_row = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    return first[of_row.reshape(-1)].astype(np.int64)


def row_sides(hashes: U64, *, validation: float, held_out: float, noun: str = "groups") -> Codes:
    """The side of each row, as places in `SIDES`: int8 [n]; rows of equal hashes are a group.

    Args:
        hashes: uint64 [n, 2], of the group of each row.
        validation: fraction of all rows.
        held_out: fraction of all rows.
        noun: what groups are called in messages.

    Raises:
        DataError: impossible fractions, and where there are too few groups for every asked side to have one.
    """
    order = _order(hashes)
    # In the order of the hash equal groups are neighbours: a group begins where the hash changes.
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (hashes[order][1:] != hashes[order][:-1]).any(axis=1)
    of_row = np.empty(len(order), dtype=np.int64)
    of_row[order] = np.cumsum(is_first) - 1
    codes = group_sides(
        hashes[order][is_first],
        np.bincount(of_row),
        validation=validation,
        held_out=held_out,
        noun=noun,
    )
    return codes[of_row]


@dataclass(frozen=True, slots=True)
class Leakage:
    """Held-out rows that training has seen.

    Attributes:
        exact: prompt and answer (or text).
        same_prompt: only the prompt.
    """

    exact: tuple[RowProblem, ...]
    same_prompt: tuple[RowProblem, ...]


def leaked_ids(train: Sequence[Example], held_out: Sequence[Example]) -> Leakage:
    """Held-out examples whose normalised content, or only whose prompt, also is in the training examples."""
    # Keys are kept of the held-out rows alone: there may be millions of training rows.
    keys = [(content_key(example), prompt_key(example)) for example in held_out]
    asked = {key for both in keys for key in both if key is not None}
    contents: dict[str, str] = {}
    prompts: dict[str, str] = {}
    for example in train if asked else ():
        for content in _answered(example):
            if content in asked:
                contents.setdefault(content, example.id)
        if (prompt := prompt_key(example)) is not None and prompt in asked:
            prompts.setdefault(prompt, example.id)
    exact, same_prompt = [], []
    for example, (content, prompt) in zip(held_out, keys, strict=True):
        if (twin := contents.get(content)) is not None:
            exact.append(_problem(example, f"is also in the training data, as {twin}"))
        elif prompt is not None and prompt in prompts:
            reason = f"has the same prompt as {prompts[prompt]} in the training data, with another answer"
            same_prompt.append(_problem(example, reason))
    return Leakage(tuple(exact), tuple(same_prompt))


def _answered(example: Example) -> Iterator[str]:
    """What a row says; of one with a preferred answer also the prompt with that alone, as held-out rows may have it."""
    yield content_key(example)
    if example.rejected is not None or example.is_wanted:
        yield content_key(example.model_copy(update={"rejected": None, "is_wanted": None}))


def _problem(example: Example, reason: str) -> RowProblem:
    said = example.text
    if example.conversation is not None:
        said = next((m.content for m in reversed(example.conversation.messages) if m.role == "user"), None)
    return problem_of(example.id, value=shorten(said or ""), reason=reason)
