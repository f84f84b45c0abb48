"""The rows of a showdown: the same for every contender, so those that one of them cannot hold are left out for all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.dataset import Example, Row, Shape
from luthier.core.errors import DataError, LeakageError, RequestError
from luthier.core.records.base_model import LocalModel
from luthier.features.workflows.model_comparison.answers import instructed
from luthier.platform.home.context import Context

_ANSWERED: Final[tuple[Shape, ...]] = ("chat", "prompt_completion", "alpaca", "sharegpt", "text")
MIN_NEW_TOKENS: Final = 16
"""A judged row has to leave room for at least so much of an answer."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that all contenders can hold.

    Attributes:
        train: To train on.
        held_out: To judge by.
        shape: Of the training rows.
        num_train: Rows of the training file.
        num_held_out: Rows of the held-out file.
        num_too_long: Left out of both, since a contender cannot hold them.
        num_same_prompt: Held-out rows whose prompt is trained on, with another answer.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    shape: Shape
    num_train: int
    num_held_out: int
    num_too_long: int
    num_same_prompt: int


def read_rows_of(
    context: Context,
    models: Sequence[LocalModel],
    data: Path,
    held_out: Path,
    *,
    mapping: Mapping[str, str] | None,
    instruction: str,
) -> Rows:
    """Read and check both files, and leave out what some model cannot hold.

    Raises NotFoundError, DataError (wrong rows, none left), LeakageError (held-out rows among the training rows),
    RequestError (rows of a kind that no answer can be compared with).
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.split.split import leaked_ids

    fields = dict(mapping) if mapping else None
    train, judged = load_file(data, mapping=fields), load_file(held_out, mapping=fields)
    for loaded in (train, judged):
        if loaded.shape not in _ANSWERED or (loaded.shape == "text") != (train.shape == "text"):
            raise RequestError(
                f"{loaded.file} holds {loaded.shape} rows",
                expected="rows with a prompt and an answer in both files, or plain text in both",
                do="give rows of one of these kinds; preference pairs are judged by `luthier train`",
            )
    leaked = leaked_ids(train.examples, judged.examples)
    if leaked.exact:
        raise LeakageError(
            f"{len(leaked.exact):,} of {judged.num_rows:,} held-out rows stand in the training rows",
            expected="rows that no contender is trained on",
            do="take them out, for example with: luthier data repair DATA --against HELD_OUT",
            problems=leaked.exact,
        )
    too_long: tuple[set[str], set[str]] = (set(), set())
    for model in models:
        too_long[0].update(_too_long(context, model, train.examples, model.context_length_tokens))
        fit = {example.id for example in rows_that_fit(context, model, judged.examples, instruction=instruction)}
        # Each model has its own tokenizer, so a row is out if it is too long for any of them.
        too_long[1].update(example.id for example in judged.examples if example.id not in fit)
    kept = [
        tuple(e for e in loaded.examples if e.id not in out)
        for loaded, out in zip((train, judged), too_long, strict=True)
    ]
    if not all(kept):
        raise DataError(
            f"no row of {data if not kept[0] else held_out} fits into the context of every contender",
            expected="rows that all of them can hold",
            do="cut the rows, or leave out the model with the shortest context",
        )
    num_too_long = train.num_rows + judged.num_rows - len(kept[0]) - len(kept[1])
    counts = (train.num_rows, judged.num_rows, num_too_long, len(leaked.same_prompt))
    return Rows(kept[0], kept[1], train.shape, *counts)


def rows_that_fit(
    context: Context, model: LocalModel, examples: Sequence[Example], *, instruction: str
) -> tuple[Example, ...]:
    """The rows that a model can be asked, with the instruction before them and room for an answer."""
    is_text = any(example.text is not None for example in examples)
    # Plain text is scored, not continued, so it needs no room for an answer.
    room = model.context_length_tokens - (0 if is_text else MIN_NEW_TOKENS)
    dropped = set(_too_long(context, model, instructed(examples, instruction), room))
    return tuple(example for example in examples if example.id not in dropped)


def _too_long(context: Context, model: LocalModel, examples: Sequence[Example], most_tokens: int) -> tuple[str, ...]:
    """The ids of the examples that are longer than this in the model's own tokens."""
    from luthier.ml.data.tokenise.tokenised_cache import TokenisedCache
    from luthier.ml.inference.models.chat_template import ChatTemplate

    cache = TokenisedCache(context.settings.tokenised_folder, context.settings.tokenised_cache_bytes)
    template = ChatTemplate.load(model.path, "auto")
    made = cache.tokenise_all(
        examples, template, max_length_tokens=most_tokens, overlong="drop", progress=context.progress
    )
    return made.dropped_ids


def write_chosen(source: Path, chosen: Sequence[Example], target: Path) -> None:
    """Write the rows of a file that these examples were read from, as they stand there."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows
    from luthier.ml.data.rows.write_rows import write_rows

    # The raw rows are written, not the examples: columns that nothing reads here stay in them.
    ids = {example.id for example in chosen}
    rows = (row for row in read_rows(open_source(source)) if isinstance(row, Row) and row.id in ids)
    # what is not of JSON (a date of a Parquet file) is in no field that is learned from
    write_rows((json.loads(json.dumps(row.fields, default=str)) for row in rows), target)
