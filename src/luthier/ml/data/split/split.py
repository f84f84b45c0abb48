"""Split examples so that no group is on two sides, and find held-out rows that are in the training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.dataset import Example, Split
from luthier.core.errors import RowProblem
from luthier.ml.data.files.bad_field import shorten
from luthier.ml.data.split.split_groups import sides_of
from luthier.ml.data.text.normalise import content_key, prompt_key
from luthier.ml.data.tokenise.row_problem import problem_of


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
