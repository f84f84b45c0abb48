"""Split examples so that no group stands on two sides, and find held-out rows that stand in the training data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.dataset import Example, Split
from luthier.core.errors import DataError, RowProblem
from luthier.data.bad_field import shorten
from luthier.data.normalise import content_key, prompt_key
from luthier.data.row_problem import problem_of


def split_by_fraction(
    examples: Sequence[Example], *, validation: float, held_out: float, seed: int
) -> dict[Split, list[Example]]:
    """Train, validation and held-out examples, each in the order they came; a fraction of 0 gives an empty list.

    Examples of one group stay together; examples without a group are grouped by their normalised content, so that
    equal rows never part. Groups are taken in the order of a hash of (seed, group), which neither file order nor row
    ids change. A group that would take a split over its fraction is left to the next split, and at last to train.

    Raises:
        DataError: fractions outside [0, 1) or of sum 1 or more, or too few groups for every asked split to have one.
    """
    for name, fraction in (("validation", validation), ("held_out", held_out)):
        if not 0 <= fraction < 1:
            raise DataError(f"{name} = {fraction}", expected="a fraction from 0 to below 1", do="correct the recipe")
    if validation + held_out >= 1:
        raise DataError(
            f"validation = {validation} and held_out = {held_out} leave no row to train on",
            expected="fractions whose sum is below 1",
            do="lower them",
        )
    keys = [example.group if example.group is not None else content_key(example) for example in examples]
    sizes = Counter(keys)
    asked: list[tuple[Split, float]] = [("held_out", held_out), ("validation", validation)]
    asked = [(split, fraction) for split, fraction in asked if fraction > 0]
    if len(sizes) <= len(asked):
        grouped = any(example.group is not None for example in examples)
        raise DataError(
            f"{len(examples):,} rows in {len(sizes):,} {'groups' if grouped else 'different texts'} cannot be split "
            f"into {len(asked) + 1} parts",
            expected=f"at least {len(asked) + 1} {'groups' if grouped else 'different rows'}",
            do="add rows, group by a field with more values, or give validation and held-out files of their own",
        )
    left = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    side: dict[str, Split] = {}
    for position, (split, fraction) in enumerate(asked):
        taken = _take(left, sizes, fraction * len(examples), num_to_leave=len(asked) - position)
        side.update(dict.fromkeys(taken, split))
        left = [key for key in left if key not in taken]
    made: dict[Split, list[Example]] = {"train": [], "validation": [], "held_out": []}
    for key, example in zip(keys, examples, strict=True):
        made[side.get(key, "train")].append(example)
    return made


def _take(groups: Sequence[str], sizes: Counter[str], target: float, *, num_to_leave: int) -> set[str]:
    """Groups of together about `target` rows: at least one, and at least `num_to_leave` stay behind."""
    wanted = max(1, round(target))
    taken: set[str] = set()
    count = 0
    for group in groups:
        if count >= wanted or len(groups) - len(taken) <= num_to_leave:
            break
        if count + sizes[group] <= wanted:
            taken.add(group)
            count += sizes[group]
    return taken or {min(groups, key=lambda group: sizes[group])}


@dataclass(frozen=True, slots=True)
class Leakage:
    """Held-out rows that training has seen. exact: prompt and answer (or text); same_prompt: only the prompt."""

    exact: tuple[RowProblem, ...]
    same_prompt: tuple[RowProblem, ...]


def leaked_ids(train: Sequence[Example], held_out: Sequence[Example]) -> Leakage:
    """Held-out examples whose normalised content, or only whose prompt, also stands in the training examples."""
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
