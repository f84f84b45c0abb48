"""Streamed records become tokenised rows, one at a time, and what is left out is counted.

A record goes the way that rows of a file go: it is mapped by the shape that the first rows have shown, its turns are
written by the template, the loss mask is proved. A row that breaks the shape ends the run: later ones cannot be known
before, and none is skipped in silence. Rows that are too long are dropped or cut, and rows that are also validation or
held-out rows are left out; both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from luthier.core.data_stream import MAX_NAMED, StreamCounts
from luthier.core.dataset import Example, Overlong, Shape
from luthier.core.errors import DataError, OverlongError, RowProblem
from luthier.core.task_head import TaskHead
from luthier.ml.data.files.bad_field import BadFieldError, problem_of, shorten
from luthier.ml.data.rows.formats import example_of, problem_in
from luthier.ml.data.stream.records import RawRecord
from luthier.ml.data.text.normalise import content_key, prompt_key
from luthier.ml.data.tokenise.heads import class_numbers, targets_of
from luthier.ml.data.tokenise.loss_mask import Learning, tokenise_sides
from luthier.ml.data.tokenise.template import Template
from luthier.ml.data.tokenise.token_store import Unit
from luthier.ml.data.tokenise.tokenised_rows import what_is_left


@dataclass(frozen=True, slots=True)
class SourceShape:
    """How the rows of a source are read, as its first rows have shown.

    Attributes:
        shape: of the rows.
        reason: why, with the columns that are its fields.
        mapping: field of the shape -> column.
    """

    shape: Shape
    reason: str
    mapping: Mapping[str, str]


def mapped(record: RawRecord, shape: SourceShape) -> Example:
    """The example of a record.

    Raises:
        DataError: it cannot be read, or has another shape.
    """
    row = record.row()
    problem: RowProblem
    if isinstance(row, RowProblem):
        problem = row
    else:
        try:
            return example_of(row, shape.shape, shape.mapping, None)
        except BadFieldError as error:
            problem = problem_in(row, error, shape.mapping)
    field = f"{problem.field} " if problem.field else ""
    raise DataError(
        f"row {problem.file}:{problem.line} of a streamed source is wrong: {field}{problem.reason}",
        expected=f"rows of shape {shape.shape} to the end, as the source begins: {shape.reason}",
        do="correct the file and start a new run; `luthier data audit FILE` checks all rows of a file before that",
        problems=[problem],
    )


class RowTokeniser:
    """Makes units of records and counts what becomes of them.

    Args:
        shapes: of the sources, in their order.
        template: renders and encodes.
        learning: which tokens are learned.
        rewrite: changes the turns of an example; None leaves them.
        max_length_tokens: most tokens of a row.
        overlong: what is done with longer ones.
        vocabulary_size: tokens that the model has embeddings for.
        left_out: content keys of validation and held-out rows.
        prompts: prompt keys of held-out rows, each with the numbers of these rows.
        head: that the rows train in place of text; None for text.
        leaves_out_classes: whether a row of a class that the head does not have is left out and counted.
        counts: of rows before.
    """

    def __init__(
        self,
        shapes: Sequence[SourceShape],
        template: Template,
        *,
        learning: Learning,
        rewrite: Callable[[Example], Example] | None,
        max_length_tokens: int,
        overlong: Overlong,
        vocabulary_size: int,
        left_out: frozenset[str],
        prompts: Mapping[str, Sequence[int]] = MappingProxyType({}),
        head: TaskHead | None = None,
        leaves_out_classes: bool = False,
        counts: StreamCounts | None = None,
    ) -> None:
        self._shapes, self._template, self._learning, self._rewrite = shapes, template, learning, rewrite
        self._max_length_tokens, self._overlong = max_length_tokens, overlong
        self._vocabulary_size, self._left_out, self._head = vocabulary_size, left_out, head
        self._prompts, self._leaves_out_classes = prompts, leaves_out_classes
        self.begin(counts or StreamCounts())

    def begin(self, counts: StreamCounts) -> None:
        """Go on from counts."""
        self._numbers = {name: getattr(counts, name) for name in _NUMBERS}
        self._by_source = list(counts.by_source) or [0] * len(self._shapes)
        self._ids = {name: list(getattr(counts, name)) for name in _IDS}
        self._same_prompt = set(counts.same_prompt)

    @property
    def counts(self) -> StreamCounts:
        """What has become of all records so far."""
        ids = {name: tuple(found) for name, found in self._ids.items()}
        same_prompt = tuple(sorted(self._same_prompt))
        return StreamCounts(**self._numbers, **ids, by_source=tuple(self._by_source), same_prompt=same_prompt)

    def unit(self, record: RawRecord) -> tuple[Example, Unit] | None:
        """The example and its rows; None where it is left out.

        Raises:
            DataError: the row is wrong, has nothing to learn, a token that the model does not know, or a class that
                the head does not have.
            OverlongError: it is too long, and that is an error.
            TemplateError: no mask can be proved.
        """
        example = mapped(record, self._shapes[record.source])
        self._numbers["num_rows"] += 1
        self._by_source[record.source] += 1
        # By the content as it came: validation and held-out rows are compared as they came, too.
        if self._left_out and content_key(example) in self._left_out:
            self._note("left_out", example.id)
            return None
        if self._leaves_out_classes and self._head and class_numbers(example.reference or "", self._head) is None:
            self._note("unlisted", example.id)
            return None
        rewritten = example if self._rewrite is None else self._rewrite(example)
        unit = tokenise_sides(rewritten, self._template, self._learning)
        self._refuse_unknown_tokens(unit)
        longest = max(row.num_tokens for row in unit)
        if longest > self._max_length_tokens:
            unit = self._shortened(example.id, unit, longest)
            if not unit:
                self._note("dropped", example.id)
                return None
            self._note("truncated", example.id)
        if self._head is not None:
            unit = _with_target(rewritten, unit, self._head)
        self._numbers["num_examples"] += 1
        if self._prompts and (key := prompt_key(example)) is not None:
            self._same_prompt.update(self._prompts.get(key, ()))
        for row in unit:
            self._numbers["num_tokens"] += row.num_tokens
            self._numbers["num_trained_tokens"] += row.num_trained_tokens
        return rewritten, unit

    def _shortened(self, row_id: str, unit: Unit, longest: int) -> Unit:
        if self._overlong != "error":
            return what_is_left(unit, self._max_length_tokens, self._overlong, self._learning)
        reason = f"is longer than {self._max_length_tokens:,} tokens"
        raise OverlongError(
            f"row {row_id} of a streamed source has {longest:,} tokens",
            expected=f"at most training.max_length_tokens = {self._max_length_tokens:,} tokens a row",
            do="start a run with a larger training.max_length_tokens, or with training.on_overlong: drop | truncate",
            problems=[problem_of(row_id, value=f"{longest:,} tokens", reason=reason)],
        )

    def _refuse_unknown_tokens(self, unit: Unit) -> None:
        for row in unit:
            if len(row.input_ids) and (largest := max(row.input_ids)) >= self._vocabulary_size:
                raise DataError(
                    f"row {row.id} has token {largest:,}, but the model has embeddings for "
                    f"{self._vocabulary_size:,} tokens",
                    expected="rows that the tokenizer writes with tokens of the model",
                    do="remove the text of that token from the rows, or use a base model whose tokenizer fits its "
                    "weights",
                )

    def _note(self, what: str, row_id: str) -> None:
        self._numbers[f"num_{what}"] += 1
        if len(ids := self._ids[f"{what}_ids"]) < MAX_NAMED:
            ids.append(row_id)


def _with_target(example: Example, unit: Unit, head: TaskHead) -> Unit:
    """The rows with what the head should give for their example."""
    (target,) = targets_of([example], head)
    if target is None:
        label = example.reference or ""
        raise DataError(
            f"row {example.id} of a streamed source has class {shorten(label)}, which no row had before the run",
            expected=f"one of the {len(head.labels):,} classes that were found before the run",
            do="start a new run: the file has changed, or objective.classes: [...] names all classes",
            problems=[problem_of(example.id, value=label, reason="unknown class", field="answer")],
        )
    return tuple(replace(row, target=target) for row in unit)


_NUMBERS = (
    "num_rows", "num_examples", "num_dropped", "num_left_out", "num_unlisted", "num_truncated", "num_tokens",
    "num_trained_tokens",
)  # fmt: skip
_IDS = ("dropped_ids", "truncated_ids", "left_out_ids", "unlisted_ids")
