"""Few-shot examples that are chosen for each prompt: the training rows whose prompts are nearest to it.

The nearest one comes last, right before the question.

Source: Liu et al., "What Makes Good In-Context Examples for GPT-3?", 2021, arXiv:2101.06804 (examples near the question
do better than drawn ones).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from luthier.core.dataset import Example
from luthier.core.ids import sha256_document
from luthier.ml.baselines.nearest import ranked_by_words
from luthier.ml.baselines.rows import MAX_ROWS, prompt_text
from luthier.ml.evaluation.few_shot import usable_shots

_WORD: Final = re.compile(r"\w")


def have_words(pool: Sequence[Example]) -> bool:
    """Whether any prompt holds a word, so that some can be nearer than others."""
    return any(_WORD.search(prompt_text(row)) for row in pool)


def nearest_examples(
    pool: Sequence[Example], rows: Sequence[Example], num: int, *, held_out: Sequence[Example] = ()
) -> list[tuple[Example, ...]]:
    """For each row the examples of the pool that are nearest by BM25, the nearest one last.

    Equal conversations are taken once, and never one whose prompt is also in `rows` or `held_out`. Of more than
    `MAX_ROWS` rows a sample by a hash of their content is looked at.

    Args:
        pool: rows to choose from, such as the training rows.
        rows: the rows to be answered.
        num: examples a row; fewer where the pool has fewer.
        held_out: further rows whose prompts are never shown.

    Raises:
        NotApplicable: the prompts of the pool hold no words.
    """
    usable = usable_shots(pool, [*rows, *held_out])
    keys = list(usable)
    if len(keys) > MAX_ROWS:
        chosen = set(sorted(keys, key=sha256_document)[:MAX_ROWS])
        keys = [key for key in keys if key in chosen]
    shown = [usable[key] for key in keys]
    if not shown or num < 1:
        return [()] * len(rows)
    best = ranked_by_words([prompt_text(one) for one in shown], [prompt_text(row) for row in rows], num)
    return [tuple(shown[place] for place in reversed(places)) for places in best]
