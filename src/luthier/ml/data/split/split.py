"""Split examples by group: no group is on two sides, and held-out rows that are in the training data are found.

There is one way in which rows are split: whole groups, in the order of a hash, to sides of the requested sizes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from luthier.core.dataset import Example, Split
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.bad_field import problem_of, shorten
from luthier.ml.data.text.normalise import content_key, prompt_key

if TYPE_CHECKING:
    import polars as pl

SIDES: Final[tuple[Split, ...]] = ("train", "validation", "held_out")
_HASHED_AT_ONCE: Final = 20_000

I64 = npt.NDArray[np.int64]
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


def sides_of(
    sizes: Mapping[str, int],
    *,
    validation: float,
    held_out: float,
    seed: int,
    strata: Mapping[str, str] | None = None,
    noun: str = "groups",
) -> dict[str, Split]:
    """The side of each group, by its name.

    Within a stratum, groups are taken in the order of a hash of (seed, group), which the order of `sizes` does not
    change. A group that would take a side over its share of the stratum is left to the next side, and at last to train;
    what a stratum lacks or has too much, the next one (by name) makes up for, so that a side is off by less than one
    group. A stratum's last group stays in train.

    Args:
        sizes: rows of each group.
        validation: fraction of all rows, 0 to below 1.
        held_out: fraction of all rows, 0 to below 1.
        seed: of the order of the groups.
        strata: the stratum of each group; one for all where None.
        noun: what groups are called in messages.

    Raises:
        DataError: impossible fractions, and where there are too few groups for every asked side to have one.
    """
    names = list(sizes)
    of_group = None
    if strata is not None:
        numbers = {name: number for number, name in enumerate(sorted(set(strata.values())))}
        of_group = np.array([numbers[strata[name]] for name in names], dtype=np.int64)
    codes = group_sides(
        names,
        np.array(list(sizes.values()), dtype=np.int64),
        validation=validation,
        held_out=held_out,
        seed=seed,
        strata=of_group,
        noun=noun,
    )
    return {name: SIDES[code] for name, code in zip(names, codes.tolist(), strict=True)}


def group_sides(
    names: Sequence[str] | pl.Series,
    sizes: I64,
    *,
    validation: float,
    held_out: float,
    seed: int,
    strata: I64 | None = None,
    noun: str = "groups",
) -> Codes:
    """`sides_of` for many groups: their sides as places in `SIDES`, int8 [n].

    Args:
        names: strings [n], each once.
        sizes: int64 [n], rows of each group.
        validation: fraction of all rows, 0 to below 1.
        held_out: fraction of all rows, 0 to below 1.
        seed: of the order of the groups.
        strata: int64 [n], the stratum of each group, numbered by name; one for all where None.
        noun: what groups are called in messages.

    Raises:
        DataError: as `sides_of`.
    """
    check_fractions(validation=validation, held_out=held_out)
    fractions = {"held_out": held_out, "validation": validation}
    asked = [(SIDES.index(split), fraction) for split, fraction in fractions.items() if fraction > 0]
    num_rows = int(sizes.sum())
    if len(sizes) <= len(asked):
        raise _too_few(f"{num_rows:,} rows in {len(sizes):,} {noun}", len(asked), noun)
    order = _hash_order(names, seed)
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


def _hash_order(names: Sequence[str] | pl.Series, seed: int) -> I64:
    """The order of a hash of each name, not a shuffle: adding groups does not move the others around."""
    parts = [np.zeros((0, 2), dtype=np.uint64)]
    for start in range(0, len(names), _HASHED_AT_ONCE):
        digests = [
            hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16] for name in names[start : start + _HASHED_AT_ONCE]
        ]
        # Big-endian, so that numbers are in the order of the bytes.
        parts.append(np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2))
    keys = np.concatenate(parts)
    return np.lexsort((keys[:, 1], keys[:, 0])).astype(np.int64)


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
    rows = np.arange(len(columns[0]))
    apart = [np.flatnonzero(column != rows) for column in columns]
    ends = np.concatenate([column[at] for column, at in zip(columns, apart, strict=True)])
    starts = np.concatenate(apart)
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
    begins = np.flatnonzero(np.diff(groups, prepend=-1) | np.diff(values, prepend=-1))
    counts = np.diff(np.append(begins, len(groups)))
    groups, values = groups[begins], values[begins]
    best = np.lexsort((values, -counts, groups))
    return values[best][np.flatnonzero(np.diff(groups[best], prepend=-1))]


def split_by_fraction(
    examples: Sequence[Example], *, validation: float, held_out: float, seed: int
) -> dict[Split, list[Example]]:
    """Train, validation and held-out examples, each in the order they came; a fraction of 0 gives an empty list.

    Examples of one group stay together; examples without a group are grouped by their normalised content, so that
    equal rows never part. Groups are taken in the order of a hash of (seed, group), which neither file order nor row
    ids change. A group that would take a split over its fraction is left to the next split, and at last to train.

    Args:
        examples: the rows.
        validation: fraction of all rows.
        held_out: fraction of all rows.
        seed: of the order of the groups.

    Raises:
        DataError: fractions outside [0, 1) or of sum 1 or more, or too few groups for every asked split to have one.
    """
    keys = [example.group if example.group is not None else content_key(example) for example in examples]
    grouped = any(example.group is not None for example in examples)
    side = sides_of(
        Counter(keys),
        validation=validation,
        held_out=held_out,
        seed=seed,
        noun="groups" if grouped else "different texts",
    )
    made: dict[Split, list[Example]] = {"train": [], "validation": [], "held_out": []}
    for key, example in zip(keys, examples, strict=True):
        made[side[key]].append(example)
    return made


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
    contents: dict[str, str] = {}
    prompts: dict[str, str] = {}
    for example in train:
        contents.setdefault(content_key(example), example.id)
        if (prompt := prompt_key(example)) is not None:
            prompts.setdefault(prompt, example.id)
    exact, same_prompt = [], []
    for example in held_out:
        if (twin := contents.get(content_key(example))) is not None:
            exact.append(_problem(example, f"also stands in the training data, as {twin}"))
        elif (prompt := prompt_key(example)) is not None and prompt in prompts:
            reason = f"has the same prompt as {prompts[prompt]} in the training data, with another answer"
            same_prompt.append(_problem(example, reason))
    return Leakage(tuple(exact), tuple(same_prompt))


def _problem(example: Example, reason: str) -> RowProblem:
    said = example.text
    if example.conversation is not None:
        said = next((m.content for m in reversed(example.conversation.messages) if m.role == "user"), None)
    return problem_of(example.id, value=shorten(said or ""), reason=reason)
