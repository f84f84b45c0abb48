"""Prompts that begin alike: a shared prefix, which training can compute once instead of in every row.

A prefix shared by at least 90% of the prompts is a note, not a fault. It is a warning where the prompts hardly differ
at all: all the same, or fewer than 5% of them different. Then the model cannot learn to look at the prompt.
"""

from __future__ import annotations

import math
from typing import Final

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_file, excerpt, has_completions, lengths_of, rows
from luthier.ml.data.dedup.equal_values import num_different_values
from luthier.ml.data.tokenise.shared_prefix import shared_beginning

_NAME = "constant_prompt"
SHARED_FRACTION: Final = 0.9
DIFFERENT_FRACTION: Final = 0.05
SHORTEST_PREFIX_CHARACTERS: Final = 20
FEWEST_ROWS: Final = 10


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """The prefix: details prefix (its first 500 characters), num_characters, fraction_of_rows,
    fraction_of_prompt_characters, num_different_prompts.
    """
    table = request.table
    if not has_completions(table):
        return Skipped("the rows have no prompts")
    prompts = table.rows.texts("prompt")
    num_prompts = sum(len(part) - part.null_count() for part in prompts.parts())
    if num_prompts < FEWEST_ROWS:
        return Skipped(f"fewer than {FEWEST_ROWS} prompts, too few for a pattern")
    prefix, _ = shared_beginning(prompts, math.ceil(SHARED_FRACTION * num_prompts))
    num_with = sum(int(part.str.starts_with(prefix).sum()) for part in prompts.parts())
    num_characters = int(lengths_of(prompts).cast(int).sum())
    num_different = num_different_values(table.rows, "prompt")
    fraction = num_with * len(prefix) / max(1, num_characters)
    details = {
        "prefix": prefix[:500],
        "num_characters": len(prefix),
        "fraction_of_rows": num_with / num_prompts,
        "fraction_of_prompt_characters": fraction,
        "num_different_prompts": num_different,
    }
    if num_different <= max(1.0, DIFFERENT_FRACTION * num_prompts):
        same = "all the same" if num_different == 1 else f"only {num_different:,} different ones"
        return [
            about_file(
                _NAME,
                "warning",
                message=f"the prompts of {rows(num_prompts)} are {same}, so the model cannot learn to read them",
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
            message=f"{num_with / num_prompts:.0%} of the prompts begin with the same {len(prefix):,} characters, "
            f"{fraction:.0%} of all prompt text: {excerpt(prefix)[:60]!r}",
            fix="nothing is wrong: training and serving can compute a shared prefix once",
            details=details,
        )
    ]
