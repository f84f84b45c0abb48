"""Prompts that begin alike: a shared prefix, which training can compute once instead of in every row.

A prefix shared by at least 90% of the prompts is a note, not a fault. It is a warning where the prompts hardly differ
at all: all the same, or fewer than 5% of them different. Then the model cannot learn to look at the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_file, excerpt, has_completions, rows

_NAME = "constant_prompt"
SHARED_FRACTION: Final = 0.9
DIFFERENT_FRACTION: Final = 0.05
SHORTEST_PREFIX_CHARACTERS: Final = 20
FEWEST_ROWS: Final = 10


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """The prefix: details prefix (its first 500 characters), num_characters, fraction_of_rows,
    fraction_of_prompt_characters, num_different_prompts.
    """
    frame = request.table.frame
    if not has_completions(frame):
        return Skipped("the rows have no prompts")
    prompts = frame["prompt"].drop_nulls()
    if len(prompts) < FEWEST_ROWS:
        return Skipped(f"fewer than {FEWEST_ROWS} prompts, too few for a pattern")
    ordered = prompts.sort().to_list()
    prefix = shared_prefix(ordered, math.ceil(SHARED_FRACTION * len(ordered)))
    num_with = int(prompts.str.starts_with(prefix).sum())
    num_different = prompts.n_unique()
    fraction = num_with * len(prefix) / max(1, int(prompts.str.len_chars().sum()))
    details = {
        "prefix": prefix[:500],
        "num_characters": len(prefix),
        "fraction_of_rows": num_with / len(prompts),
        "fraction_of_prompt_characters": fraction,
        "num_different_prompts": num_different,
    }
    if num_different <= max(1.0, DIFFERENT_FRACTION * len(prompts)):
        same = "all the same" if num_different == 1 else f"only {num_different:,} different ones"
        return [
            about_file(
                _NAME,
                "warning",
                message=f"the prompts of {rows(len(prompts))} are {same}, so the model cannot learn to read them",
                fix="check that the prompts hold what the answers depend on",
                details=details,
            )
        ]
    if len(prefix) < SHORTEST_PREFIX_CHARACTERS:
        return []
    return [
        about_file(
            _NAME,
            "info",
            message=f"{num_with / len(prompts):.0%} of the prompts begin with the same {len(prefix):,} characters, "
            f"{fraction:.0%} of all prompt text: {excerpt(prefix)[:60]!r}",
            fix="nothing is wrong: training and serving can compute a shared prefix once",
            details=details,
        )
    ]


def shared_prefix(ordered: Sequence[str], num: int) -> str:
    """The longest string that at least `num` of the texts begin with.

    Args:
        ordered: sorted texts, so that those with a common beginning are neighbours.
        num: how many texts have to share it.
    """
    best = ""
    for first, last in zip(ordered, ordered[num - 1 :], strict=False):
        # One comparison of the next character spares most windows the full search.
        if len(first) > len(best) and last.startswith(first[: len(best) + 1]):
            best = _common_prefix(first, last)
    return best


def _common_prefix(one: str, other: str) -> str:
    low, high = 0, min(len(one), len(other))
    while low < high:  # halving, since comparing slices is fast and a loop over 10 million characters is not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return one[:low]
