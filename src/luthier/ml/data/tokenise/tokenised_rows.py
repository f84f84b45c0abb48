"""Many examples become tokens: in batches, on several processes where there are many, and what is left of long rows.

Templates render row by row; the texts of a batch are encoded in one call, on all cores. Whatever does the work, the
rows and their order are those of one process.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

from luthier.core.dataset import Example, Overlong, TokenisedExample
from luthier.core.errors import DataError, LuthierError, OverlongError, RowProblem
from luthier.core.ports import Progress
from luthier.core.task_head import SEARCH_KINDS
from luthier.ml.data.files.bad_field import problem_of
from luthier.ml.data.files.row_workers import IN_PROCESS, RowWorkers
from luthier.ml.data.files.sequences import SequenceWriter
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.tokenise.loss_mask import PLAIN, Learning, Rendered, encode_rendered, render_sides, tokenise_sides
from luthier.ml.data.tokenise.template import Encoded, Template
from luthier.ml.data.tokenise.token_store import Unit, row_writer

StartWorkers = Callable[[], AbstractContextManager[RowWorkers]]
_BATCH_ROWS: Final = 200
_BATCH_CHARACTERS: Final = 4 << 20
_ENCODED_CHARACTERS: Final = 2 << 20


def in_this_process() -> AbstractContextManager[RowWorkers]:
    """No other processes."""
    return nullcontext(IN_PROCESS)


@dataclass(frozen=True, slots=True)
class Tokenised:
    """Rows ready to train on, in the order of the examples, and the ids of examples that were left out or cut.

    Attributes:
        examples: the rows; those of one example follow one another. A tuple, or a sequence in files where they are
            larger than memory.
        dropped_ids: examples that were left out as too long.
        truncated_ids: examples that lost tokens or rows because they were too long.
        kept: indices of the examples that the rows belong to, ascending.
        rows_per_example: 2 for preference pairs, whose chosen and rejected side follow one another.
        row_counts: rows of each kept example, where conversations are cut; else empty.
    """

    examples: Sequence[TokenisedExample]
    dropped_ids: tuple[str, ...]
    truncated_ids: tuple[str, ...]
    kept: Sequence[int]
    rows_per_example: int = 1
    row_counts: Sequence[int] = ()


def tokenise_all(
    examples: Sequence[Example],
    template: Template,
    *,
    max_length_tokens: int,
    overlong: Overlong,
    progress: Progress,
    learning: Learning = PLAIN,
    spill: Spill | None = None,
    start_workers: StartWorkers = in_this_process,
) -> Tokenised:
    """Tokenise examples and do with those over `max_length_tokens` what `overlong` says.

    "error" refuses, "drop" leaves them out, "truncate" cuts tokens off the end; a row that would lose every learned
    token is dropped instead, since nothing could be learned from it. The two sides of a preference stay or go together,
    and go where what is left of them is the same. Of a conversation that was cut, answers that are wholly cut off go,
    and the others stay; with `learning.only_last` the row goes where its last answer does.

    Args:
        examples: the rows.
        template: writes conversations as text.
        max_length_tokens: the longest row that is kept whole.
        overlong: what is done with longer rows.
        progress: shows the rows.
        learning: which turns are learned.
        spill: the budget of memory, and where rows beyond it go; None keeps all of them in memory.
        start_workers: who tokenises.

    Raises:
        OverlongError: rows are too long and `overlong` is "error"; all of them are in `problems`.
        DataError: rows with nothing to learn, or no row is left.
        TemplateError: the template renders a conversation in a way on which no mask can be proved.
        StorageFullError: the rows need more memory than the budget and more disk than there is.
    """
    made = _Collected(row_writer(spill), max_length_tokens, overlong, learning)
    problems: list[RowProblem] = []
    with progress.task("Tokenising", total=len(examples), unit="rows") as task, start_workers() as workers:
        # A TemplateError stops at the first row, since every row would repeat it; a DataError is about one row, so all
        # are collected.
        for units in workers.map(tokenise_batch, _batches(examples), template, learning):
            for unit in units:
                if isinstance(unit, list):
                    problems.extend(unit)
                else:
                    made.add(unit)
                task.advance()
    if problems:
        raise DataError(
            f"{len(problems):,} of {len(examples):,} rows cannot be trained on",
            expected="something to learn in every row, no control text of the template, two different sides",
            do="repair or remove these rows",
            problems=problems,
        )
    return made.tokenised()


def _batches(examples: Sequence[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    num_characters = 0
    for example in examples:
        batch.append(example)
        num_characters += num_characters_of(example)
        if len(batch) >= _BATCH_ROWS or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def num_characters_of(example: Example) -> int:
    """About how much text an example has, without tool calls and tools."""
    conversation = example.conversation
    if conversation is None:
        return len(example.text or "")
    return sum(len(message.content or "") + len(message.reasoning or "") for message in conversation.messages)


def tokenise_batch(
    examples: Sequence[Example], template: Template, learning: Learning
) -> list[Unit | list[RowProblem]]:
    """The rows of each example, or what is wrong with it.

    Args:
        examples: some rows.
        template: renders and encodes.
        learning: what is learned of them.

    Raises:
        TemplateError: no mask can be proved for one of them.
    """
    rendered: list[_Rendering] = []
    for example in examples:
        try:
            rendered.append(None if learning.task_head is not None else render_sides(example, template, learning))
        except LuthierError as error:
            # Raised below, after the rows before it, so that the first error is that of the first row.
            rendered.append(error)
    found: list[Unit | list[RowProblem]] = []
    for some, encoded in _encoded(list(zip(examples, rendered, strict=True)), template):
        for example, one in some:
            try:
                if isinstance(one, LuthierError):
                    raise one
                if one is None:
                    found.append(tokenise_sides(example, template, learning))
                else:
                    found.append(encode_rendered(one, template, learning, encoded))
            except DataError as error:
                found.append(list(error.problems))
    return found


_Rendering = Rendered | LuthierError | None
_Rows = list[tuple[Example, _Rendering]]


def _encoded(rows: _Rows, template: Template) -> Iterator[tuple[_Rows, Encoded]]:
    """Some of the rows at a time, with the ids of their texts.

    The text before each answer is encoded by itself, so that the texts of a conversation of many turns are many times
    as long as the conversation.
    """
    some: _Rows = []
    texts: dict[str, None] = {}
    num_characters = 0
    for example, one in rows:
        some.append((example, one))
        if isinstance(one, Rendered):
            for text in one.texts(template):
                num_characters += 0 if text in texts else len(text)
                texts[text] = None
        if num_characters >= _ENCODED_CHARACTERS:
            yield some, dict(zip(texts, template.encode_all(list(texts)), strict=True))
            some, texts, num_characters = [], {}, 0
    if some:
        yield some, dict(zip(texts, template.encode_all(list(texts)), strict=True))


class _Collected:
    """The rows that are left of units, as they are tokenised.

    Args:
        rows: takes the rows.
        max_length_tokens: most tokens of a row.
        overlong: what is done with longer ones.
        learning: what is learned of them.
    """

    def __init__(
        self, rows: SequenceWriter[TokenisedExample], max_length_tokens: int, overlong: Overlong, learning: Learning
    ) -> None:
        self._rows, self._learning = rows, learning
        self._max_length_tokens, self._overlong = max_length_tokens, overlong
        # Arrays, not lists: 4 or 8 bytes a row, of which there may be millions.
        self._counts, self._kept = array("i"), array("q")
        self._dropped: list[str] = []
        self._truncated: list[str] = []
        self._too_long: list[tuple[str, int]] = []
        # The texts of a search row stay or go together, as the two sides of a pair do.
        self._is_search = learning.task_head in SEARCH_KINDS
        self._num_units, self._is_pair = 0, self._is_search

    def add(self, unit: Unit) -> None:
        """Add what is left of a unit."""
        place, longest = self._num_units, max(row.num_tokens for row in unit)
        self._num_units += 1
        if place == 0:
            self._is_pair = self._is_search or unit[0].is_wanted is not None
        left = unit
        if longest > self._max_length_tokens:
            if self._overlong == "error":
                self._too_long.append((unit[0].id, longest))
                return
            left = what_is_left(unit, self._max_length_tokens, self._overlong, self._learning)
            (self._truncated if left else self._dropped).append(unit[0].id)
            if not left:
                return
        for row in left:
            self._rows.append(row)
        self._counts.append(len(left))
        self._kept.append(place)

    def tokenised(self) -> Tokenised:
        """All of them.

        Raises:
            OverlongError: some are too long, and that is an error.
            DataError: no row is left.
        """
        if self._too_long:
            raise _overlong_error(self._too_long, self._num_units, self._max_length_tokens)
        if not self._kept:
            raise DataError(
                f"no row is left: {len(self._dropped):,} of {self._num_units:,} rows were dropped as longer than "
                f"{self._max_length_tokens:,} tokens",
                expected="at least one row to train on",
                do="raise training.max_length_tokens, or shorten the rows",
                problems=[problem_of(row_id, value="", reason="was dropped") for row_id in self._dropped],
            )
        rows, are_single = self._rows.sequence(), set(self._counts) == {1}
        # Tuples where all is in memory: they are compared and hashed.
        kept, counts = (
            (tuple(self._kept), tuple(self._counts)) if isinstance(rows, tuple) else (self._kept, self._counts)
        )
        return Tokenised(
            rows,
            tuple(self._dropped),
            tuple(self._truncated),
            kept,
            counts[0] if self._is_pair else 1,
            # Pairs always have two rows, which rows_per_example says; units of one row need no counts.
            () if self._is_pair or are_single else counts,
        )


def _overlong_error(too_long: Sequence[tuple[str, int]], num_units: int, max_length_tokens: int) -> OverlongError:
    row_id, longest = max(too_long, key=lambda found: found[1])
    reason = f"is longer than {max_length_tokens:,} tokens"
    verb = "is" if len(too_long) == 1 else "are"
    return OverlongError(
        f"{len(too_long):,} of {num_units:,} rows {verb} longer than {max_length_tokens:,} tokens; "
        f"the longest is {row_id} with {longest:,}",
        expected=f"at most training.max_length_tokens = {max_length_tokens:,} tokens a row",
        do="raise training.max_length_tokens (up to the model's context), or say what to do with such rows: "
        "training.on_overlong: drop | truncate",
        problems=[problem_of(row_id, value=f"{tokens:,} tokens", reason=reason) for row_id, tokens in too_long],
    )


def what_is_left(unit: Unit, max_length_tokens: int, overlong: Overlong, learning: Learning) -> Unit:
    """The rows of an example that is too long, cut; none where it is dropped.

    Args:
        unit: all rows of the example.
        max_length_tokens: most tokens of a row.
        overlong: drop or truncate.
        learning: what is learned of it.
    """
    if overlong == "drop":
        return ()
    # What is left then ends with an earlier answer, which would be taken for the one to another question.
    if learning.only_last and any(row.num_prompt_tokens >= max_length_tokens for row in unit):
        return ()
    cut = tuple(_cut(row, max_length_tokens) for row in unit)
    if unit[0].is_wanted is None and learning.task_head not in SEARCH_KINDS:
        return tuple(row for row in cut if 1 in row.loss_mask)
    # Sides that differ only behind the cut have equal likelihood: their preference loss has no gradient.
    is_same = len(cut) > 1 and cut[0].input_ids == cut[1].input_ids
    return () if is_same or any(1 not in row.loss_mask for row in cut) else cut


def _cut(row: TokenisedExample, num_tokens: int) -> TokenisedExample:
    if row.num_tokens <= num_tokens:
        return row
    return replace(
        row,
        input_ids=row.input_ids[:num_tokens],
        loss_mask=row.loss_mask[:num_tokens],
        num_truncated_tokens=row.num_tokens - num_tokens,
    )
