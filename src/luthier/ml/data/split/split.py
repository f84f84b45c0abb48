"""Split examples by group: no group is on two sides, and held-out rows that are in the training data are found.

There is one way in which rows are split: whole groups, in the order of a hash, to sides of a wanted size.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Example, Split
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.bad_field import problem_of, shorten
from luthier.ml.data.text.normalise import content_key, prompt_key

SIDES: Final[tuple[Split, ...]] = ("train", "validation", "held_out")


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
    check_fractions(validation=validation, held_out=held_out)
    asked: list[tuple[Split, float]] = [("held_out", held_out), ("validation", validation)]
    asked = [(split, fraction) for split, fraction in asked if fraction > 0]
    num_rows = sum(sizes.values())
    if len(sizes) <= len(asked):
        raise _too_few(f"{num_rows:,} rows in {len(sizes):,} {noun}", len(asked), noun)
    # A hash of each group instead of a shuffle: adding groups does not move the others around.
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    side: dict[str, Split] = dict.fromkeys(order, "train")
    if strata is None or len({strata[group] for group in sizes}) == 1:
        for position, (split, fraction) in enumerate(asked):
            left = [group for group in order if side[group] == "train"]
            taken = _take(left, sizes, fraction * num_rows, num_to_leave=len(asked) - position)
            # Where every group is too large for the share, the smallest one is taken.
            side.update(dict.fromkeys(taken or {min(left, key=lambda group: sizes[group])}, split))
        return side
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for group in order:
        by_stratum[strata[group]].append(group)
    for split, fraction in asked:
        _fill(split, fraction, by_stratum, sizes, side)
        if split not in side.values():
            raise _too_few(
                f"{len(by_stratum):,} strata of {len(sizes):,} {noun} leave none to {split}", len(asked), noun
            )
    return side


def _too_few(came: str, num_asked: int, noun: str) -> DataError:
    return DataError(
        f"{came} cannot be split into {num_asked + 1} parts",
        expected=f"at least {num_asked + 1} {noun}",
        do="add rows, group by a field with more values, or give validation and held-out files of their own",
    )


def _fill(
    split: Split, fraction: float, by_stratum: Mapping[str, list[str]], sizes: Mapping[str, int], side: dict[str, Split]
) -> None:
    """Give a side its share of each stratum; what one stratum could not give is asked of the next."""
    lacking = 0.0
    for stratum in sorted(by_stratum):
        groups = by_stratum[stratum]
        lacking += fraction * sum(sizes[group] for group in groups)
        left = [group for group in groups if side[group] == "train"]
        if round(lacking) < 1:
            continue
        taken = _take(left, sizes, lacking, num_to_leave=1)
        side.update(dict.fromkeys(taken, split))
        lacking -= sum(sizes[group] for group in taken)
    if split not in side.values():
        spare = [group for groups in by_stratum.values() for group in _spare(groups, side)]
        if spare:
            side[min(spare, key=lambda group: sizes[group])] = split


def _spare(groups: Sequence[str], side: Mapping[str, Split]) -> list[str]:
    left = [group for group in groups if side[group] == "train"]
    return left if len(left) > 1 else []


def _take(groups: Sequence[str], sizes: Mapping[str, int], target: float, *, num_to_leave: int) -> set[str]:
    """Groups of together about `target` rows and not more; at least `num_to_leave` stay behind."""
    wanted = max(1, round(target))
    taken: set[str] = set()
    count = 0
    for group in groups:
        if count >= wanted or len(groups) - len(taken) <= num_to_leave:
            break
        if count + sizes[group] <= wanted:
            taken.add(group)
            count += sizes[group]
    return taken


def united(keys: Iterable[Sequence[Hashable | None]]) -> npt.NDArray[np.int64]:
    """Rows that share any key, directly or through other rows, as one component.

    Args:
        keys: the keys of each row, as many for each; the n-th keys of two rows are compared with each other, None with
            nothing.

    Returns:
        For each row the position of the first row of its component (union-find, Tarjan 1975).
    """
    parent: list[int] = []
    first: dict[tuple[int, Hashable], int] = {}
    for row, names in enumerate(keys):
        parent.append(row)
        for kind, name in enumerate(names):
            if name is None:
                continue
            other = first.setdefault((kind, name), row)
            one, two = _root(parent, row), _root(parent, other)
            # The smaller row becomes the root, so a component's root is its first row.
            parent[max(one, two)] = min(one, two)
    return np.array([_root(parent, row) for row in range(len(parent))], dtype=np.int64)


def _root(parent: list[int], row: int) -> int:
    while parent[row] != row:
        # Path halving keeps the trees flat without recursion.
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def majority(values: Iterable[str]) -> str:
    """The most frequent value; of equally frequent ones the first by name."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


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
