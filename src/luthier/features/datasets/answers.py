"""Use case: a teacher answers prompts, so that a student can learn its answers like any other rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.defaults import TEACHER_TOKENS
from luthier.core.errors import DataError, RequestError
from luthier.features.datasets.prices import Prices, check_prices
from luthier.features.datasets.syntheses import check_files, estimate, refused_file
from luthier.features.generation.engines import BatchUse, find_teacher
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.source import Source
    from luthier.ml.data.rows.answer_prompts import Answered, AnswerOptions, Question
    from luthier.ml.inference.engine_wrappers import CachedEngine, Usage


@dataclass(frozen=True, slots=True)
class Answering:
    """The outcome of answering prompts.

    Attributes:
        file: The file of prompts.
        output: The file of chat rows.
        refused_file: The list of refused answers; None where there are none.
        teacher: Who answered.
        num_rows: Rows that were used.
        num_rows_left: Rows that --max-rows left out.
        num_answers: Answers that were kept.
        num_refused: Answers that were refused.
        refused: How many answers, by reason.
        teacher_usage: Tokens and requests of the teacher.
        cost_usd: US dollars for the new requests; None without prices.
        seconds: How long it took.
        num_thoughts: Answers with a thought of the teacher before them.
        has_kept_thoughts: Whether the rows contain these thoughts.
    """

    file: str
    output: str
    refused_file: str | None
    teacher: str
    num_rows: int
    num_rows_left: int
    num_answers: int
    num_refused: int
    refused: dict[str, int]
    teacher_usage: Usage
    cost_usd: float | None
    seconds: float
    num_thoughts: int = 0
    has_kept_thoughts: bool = False

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data answer --json`."""
        return asdict(self)


@dataclass(slots=True)
class _Tally:
    kept: list[dict[str, Any]] = field(default_factory=list)
    refused: list[Answered] = field(default_factory=list)
    num_thoughts: int = 0


def answer(
    context: Context,
    file: Path,
    *,
    teacher: str,
    output: Path,
    mapping: Mapping[str, str] | None = None,
    max_rows: int | None = None,
    max_new_tokens: int = TEACHER_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    prices: Prices | None = None,
    force: bool = False,
    keeps_thoughts: bool = False,
    uses_batch_api: bool = False,
) -> Answering:
    """Have a teacher answer the prompt of every row; answers in the rows are replaced.

    The output has a chat row for each answer that was kept; the others (empty, cut off, over the context) are in
    `<output>.refused.jsonl`. Answers are stored in the home, so a second run requests only the rest.

    Args:
        context: The home.
        file: The rows.
        teacher: A name of a model, or `http(s)://host:port/v1#MODEL`.
        output: The file of the chat rows.
        mapping: Field of the shape -> column.
        max_rows: The first so many rows; None for all.
        max_new_tokens: The longest answer.
        temperature: Of sampling; 0 is greedy.
        seed: Of sampling.
        prices: What tokens of the teacher cost; None where it is free or unknown.
        force: Replace an output that exists.
        keeps_thoughts: Write a thought before an answer into the row, as `reasoning_content`.
        uses_batch_api: Ask the teacher, behind a server, by OpenAI's Batch API: all prompts at once.

    Raises:
        RequestError: Impossible options.
        ConflictError: The output exists.
        NotFoundError: No such file or model.
        DataError: Rows without a prompt, or no answer was kept; the refused file says why.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.answer_prompts import AnswerOptions
    from luthier.ml.data.rows.outputs import check_free_listed
    from luthier.ml.data.rows.shapes import check_mapping

    options, fields = AnswerOptions(max_new_tokens, temperature, seed, keeps_thoughts), dict(mapping or {})
    check_mapping(fields)
    _check(options, max_rows, prices, file, output)
    start, source, prices = time.monotonic(), open_source(file), prices or Prices()
    check_free_listed(output, refused_file(output), force=force)
    num_found = _check_rows(source, fields, context)
    num_rows = min(num_found, max_rows or num_found)
    batches = BatchUse(prices.cost_of_tokens) if uses_batch_api else None
    with closing(find_teacher(context, teacher, num_answers=num_rows, batches=batches)) as writer:
        tally = _write(context, source, fields, num_rows, writer, options, output, prices, at_once=uses_batch_api)
    counts = dict(Counter(str(one.reason) for one in tally.refused).most_common())
    if not tally.kept:
        raise _no_answers_error(file, writer.name, tally.refused, counts, refused_file(output))
    return Answering(
        file=str(file),
        output=str(output),
        refused_file=str(refused_file(output)) if tally.refused else None,
        teacher=writer.name,
        num_rows=num_rows,
        num_rows_left=num_found - num_rows,
        num_answers=len(tally.kept),
        num_refused=len(tally.refused),
        refused=counts,
        teacher_usage=writer.usage,
        cost_usd=prices.cost(writer.usage),
        seconds=time.monotonic() - start,
        num_thoughts=tally.num_thoughts,
        has_kept_thoughts=keeps_thoughts and tally.num_thoughts > 0,
    )


def _check(options: AnswerOptions, max_rows: int | None, prices: Prices | None, file: Path, output: Path) -> None:
    problems = [
        ("max_new_tokens", options.max_new_tokens, options.max_new_tokens >= 1, "at least 1"),
        ("temperature", options.temperature, 0 <= options.temperature < float("inf"), "0 (greedy) or more"),
        ("max_rows", max_rows, max_rows is None or max_rows >= 1, "at least 1"),
    ]
    for name, value, is_right, expected in problems:
        if not is_right:
            raise RequestError(f"{name}={value}", expected=expected, do=f"correct {name}")
    check_prices(prices)
    check_files(file, output)


def _check_rows(source: Source, mapping: Mapping[str, str], context: Context) -> int:
    """The number of rows, all of which have a prompt; the teacher gets no request before that is checked."""
    from luthier.core.dataset import Row
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.answer_prompts import question_of
    from luthier.ml.data.rows.formats import problem_in
    from luthier.ml.data.rows.rows import read_rows

    num_rows, problems = 0, []
    with context.progress.task("Checking rows", None, "row") as task:
        for row in read_rows(source):
            num_rows += 1
            task.advance()
            if not isinstance(row, Row):
                problems.append(row)
                continue
            try:
                question_of(row, mapping)
            except BadFieldError as error:
                problems.append(problem_in(row, error, mapping))
    if problems or not num_rows:
        raise DataError(
            f"{len(problems):,} of {num_rows:,} rows of {source.name} hold no prompt that can be answered",
            expected="rows with prompt, messages, conversations or instruction",
            do="repair these rows, or map the field: --map prompt=COLUMN",
            problems=problems,
        )
    return num_rows


def _questions(source: Source, mapping: Mapping[str, str]) -> Iterator[Question]:
    from luthier.core.dataset import Row
    from luthier.ml.data.files.bad_field import BadFieldError
    from luthier.ml.data.rows.answer_prompts import question_of
    from luthier.ml.data.rows.rows import read_rows

    for row in read_rows(source):
        try:
            if not isinstance(row, Row):
                raise BadFieldError("", "", "cannot be read")
            # Inside the try: a row that passed the check and fails now means that the file was changed.
            yield question_of(row, mapping)
        except BadFieldError as error:
            raise DataError(
                f"{source.name} was changed while it was read",
                expected="a file that does not change",
                do="wait until the program that writes the file has finished, then start again",
            ) from error


def _write(
    context: Context,
    source: Source,
    mapping: Mapping[str, str],
    num_rows: int,
    teacher: CachedEngine,
    options: AnswerOptions,
    output: Path,
    prices: Prices,
    *,
    at_once: bool,
) -> _Tally:
    """Write both files; the one with the answers only where there is one."""
    from luthier.ml.data.rows.answer_prompts import BATCH_PROMPTS, answered_row, answers, refused_row
    from luthier.ml.data.rows.outputs import write_rows
    from luthier.ml.inference.openai.batch_api import MAX_REQUESTS

    tally, num_done = _Tally(), 0
    with context.progress.task("Answering prompts", num_rows, "row") as task:

        def batch_done(num_prompts: int) -> None:
            nonlocal num_done
            num_done += num_prompts
            task.advance(num_prompts)
            # The note covers new requests only; answers from the cache cost nothing.
            task.note(estimate(teacher, num_done, num_rows, prices))

        # A second pass over the file: the questions of a large one are never in memory together.
        questions = islice(_questions(source, mapping), num_rows)
        num_at_once = MAX_REQUESTS if at_once else BATCH_PROMPTS
        found = answers(questions, teacher, options, context.progress, batch_done=batch_done, batch_prompts=num_at_once)
        for one in found:
            if one.reason is None:
                tally.num_thoughts += one.thought is not None
                # Collected, so that the output is written in one step at the end; a stop leaves no partial file.
                tally.kept.append(answered_row(one, options, teacher=teacher.name))
            else:
                tally.refused.append(one)
    if tally.refused:
        write_rows((refused_row(one, options, teacher=teacher.name) for one in tally.refused), refused_file(output))
    else:
        # A list of an earlier output (--force) would describe rows that are not there any more.
        refused_file(output).unlink(missing_ok=True)
    if tally.kept:
        write_rows(tally.kept, output)
    return tally


def _no_answers_error(
    file: Path, teacher: str, refused: list[Answered], counts: dict[str, int], listed: Path
) -> DataError:
    from luthier.ml.data.files.bad_field import problem_of

    reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
    return DataError(
        f"none of the {len(refused):,} answers that {teacher} wrote to {file.name} could be kept, so no file of "
        f"answers was written: {reasons}",
        expected="complete answers",
        do=f"read the replies in {listed}; longer answers usually help (--max-new-tokens)",
        problems=[problem_of(a.question.id, value="", reason=f"{a.reason}: {a.explanation}") for a in refused],
    )
