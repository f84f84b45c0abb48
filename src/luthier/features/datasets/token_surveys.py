"""The rows of a file as the tokens of a model: the first ones whole, and how long all are. For a process of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.errors import DataError
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.tokenise.preview import Preview

MOST_ROWS: Final = 2000
"""Lengths are counted of so many rows, taken evenly from the whole file."""
_SHOWN_ROWS: Final = 5
_SHOWN_TOKENS: Final = 600
_MAX_REFUSED: Final = 10
_BINS: Final = 24


def survey(context: Context, file: Path, model: str, template: Literal["auto", "chat", "plain"]) -> dict[str, Any]:
    """The first rows as tokens, the lengths of up to 2,000 rows as a histogram, and which rows would be refused.

    The two sides of a preference count as rows of their own. Rows that cannot be tokenised are listed under `refused`.

    Raises:
        NotFoundError: No such file or model.
        DataError: The file as a whole cannot be read.
        ModelSourceError: The model cannot be fetched.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.tokenise.loss_mask import tokenise_sides
    from luthier.ml.data.tokenise.preview import preview_sides
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.chat_template import ChatTemplate

    loaded = load_file(file)
    local = sources.pull(model, context.home, context.progress)
    chat = ChatTemplate.load(local.path, template)
    # Tokenising all rows of a large file would take minutes; the sample is evenly spaced, since files are often sorted.
    examples = evenly(loaded.examples, MOST_ROWS)
    lengths: list[int] = []
    learned: list[int] = []
    refused: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    num_refused = num_overlong = 0
    for example in examples:
        try:
            unit = tokenise_sides(example, chat)
        except DataError as error:
            num_refused += 1
            if len(refused) < _MAX_REFUSED:
                why = error.problems[0].reason if error.problems else error.came
                refused.append({"row": example.id, "reason": why})
            continue
        # A preference pair adds two lengths: both sides are forwarded in training.
        lengths += [row.num_tokens for row in unit]
        learned += [row.num_trained_tokens for row in unit]
        # Counted by example, not by side: a pair with one side too long is one overlong row.
        num_overlong += any(row.num_tokens > local.context_length_tokens for row in unit)
        if len(shown) < _SHOWN_ROWS:
            shown += [_shown(side) for side in preview_sides(example, unit, chat)]
    return {
        "template": chat.kind,
        "shape": loaded.shape,
        "num_rows": loaded.num_rows,
        "num_looked_at": len(examples),
        "rows": shown,
        "num_tokens": sum(lengths),
        "num_learned_tokens": sum(learned),
        "quantiles": _quantiles(lengths),
        "bins": bins_of(lengths, _BINS),
        "context_tokens": local.context_length_tokens,
        "num_overlong": num_overlong,
        "num_refused": num_refused,
        "refused": refused,
    }


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, from the whole length, the first among them."""
    if len(items) <= most:
        return list(items)
    # Integer arithmetic: strictly increasing positions, the same on every machine.
    return [items[n * len(items) // most] for n in range(most)]


def bins_of(values: Sequence[int], most: int) -> list[list[int]]:
    """A histogram: [from, to, how many], both ends within, of at most `most` bins of one round width."""
    if not values:
        return []
    low, high = min(values), max(values)
    step = _round_up(max(1, math.ceil((high - low + 1) / most)))
    # The first bin starts at a multiple of the width, so that the axis has round numbers.
    start = low // step * step
    counts = [0] * ((high - start) // step + 1)
    for value in values:
        counts[(value - start) // step] += 1
    return [[start + n * step, start + (n + 1) * step - 1, count] for n, count in enumerate(counts)]


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size: int = 10 ** (len(str(width)) - 1)
    return next(step * size for step in (1, 2, 5, 10) if step * size >= width)


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    if not lengths:
        return {}
    # 99 cut points; index p - 1 is percentile p. `quantiles` needs two values at least.
    cuts = quantiles(lengths, n=100, method="inclusive") if len(lengths) > 1 else [lengths[0]] * 99
    named = {"median": cuts[49], "95%": cuts[94], "99%": cuts[98]}
    return {name: round(value) for name, value in named.items()} | {"longest": max(lengths)}


def _shown(row: Preview) -> dict[str, Any]:
    return {
        "id": row.id,
        "side": row.side,
        "part": row.part,
        "num_tokens": row.num_tokens,
        "num_learned": row.num_trained_tokens,
        "spans": [[span.text, span.learned, list(span.token_ids)] for span in row.spans[:_SHOWN_TOKENS]],
        "num_not_shown": sum(len(span.token_ids) for span in row.spans[_SHOWN_TOKENS:]),
    }
