"""Use case: question and answer pairs, or instructions, out of passages, with what was refused and what it cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.defaults import SYNTHESIS_TOKENS
from luthier.core.errors import DataError, RequestError, RowProblem, StillRunningError
from luthier.features.datasets.prices import Prices, check_budget, check_prices
from luthier.features.generation.engines import BatchUse, find_teacher
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.ports import ProgressTask
    from luthier.ml.data.files.source import Source
    from luthier.ml.data.synthesis.synthesise import Passage, SynthesisOptions, SyntheticPair
    from luthier.ml.inference.engine_wrappers import CachedEngine, Usage

Kind = Literal["qa", "instruction"]
_OUTPUT_ENDINGS: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The outcome of writing pairs.

    Attributes:
        file: The file of passages.
        output: The file of pairs.
        refused_file: The list of refused pairs; None where there are none.
        kind: What a pair is.
        teacher: Who wrote.
        judge: Who checked; None where overlap of words alone decided.
        min_support: The share of an answer's words (0 to 1) that has to occur in its passage.
        num_rows: Rows that were used.
        num_rows_left: Rows that --max-rows or the budget left out.
        num_pairs: Pairs that were kept.
        num_refused: Pairs that were refused.
        refused: How many pairs, by reason.
        mean_support: The mean support of the pairs that were kept, 0 to 1.
        teacher_usage: Tokens and requests of the teacher.
        judge_usage: The same of the judge; None where it is the teacher, or there is none.
        cost_usd: US dollars for the new requests; None without prices.
        cost_note: What `cost_usd` covers.
        seconds: How long it took.
        stopped_by_budget: Whether the budget ended it before the last row.
    """

    file: str
    output: str
    refused_file: str | None
    kind: Kind
    teacher: str
    judge: str | None
    min_support: float
    num_rows: int
    num_rows_left: int
    num_pairs: int
    num_refused: int
    refused: dict[str, int]
    mean_support: float
    teacher_usage: Usage
    judge_usage: Usage | None
    cost_usd: float | None
    cost_note: str
    seconds: float
    stopped_by_budget: bool = False

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data synthesise --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SynthesisState:
    """How far a synthesis is, after each batch.

    Attributes:
        num_done: Rows that are done.
        num_rows: Rows in all.
        num_pairs: Pairs that were kept.
        num_refused: Pairs that were refused.
        cost_usd: US dollars for the new requests so far, those of earlier attempts included; None without prices.
    """

    num_done: int
    num_rows: int
    num_pairs: int
    num_refused: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class SynthesisRun:
    """How a synthesis runs, beside what it writes.

    Attributes:
        budget_usd: The most that the teacher's new requests should cost; needs prices. The first batch is always
            requested; it ends before any other that may exceed it.
        batch_passages: Passages that the teacher gets at once; None for the usual number. Progress comes after each.
        with_passage: Each pair holds its passage, and what a reader should check.
        on_batch: Called after each batch.
        teacher_name: What rows call the teacher; None for the name of its engine, which may be a path.
        spent_usd: What earlier attempts have spent, which counts towards the budget.
        uses_batch_api: Whether the teacher, behind a server, is asked by OpenAI's Batch API: all passages at once.
        on_waiting: Called with the batches that continue at the provider, and what was spent so far, before
            StillRunningError is raised; None waits until they have ended.
        on_stop: Called with what was spent so far where the teacher stops in the middle of a batch.
    """

    budget_usd: float | None = None
    batch_passages: int | None = None
    with_passage: bool = False
    on_batch: Callable[[SynthesisState], None] = lambda _: None
    teacher_name: str | None = None
    spent_usd: float = 0.0
    uses_batch_api: bool = False
    on_waiting: Callable[[StillRunningError, float | None], None] | None = None
    on_stop: Callable[[float | None], None] = lambda _: None


@dataclass(slots=True)
class _Tally:
    num_pairs: int = 0
    support: float = 0.0
    refused: list[SyntheticPair] = field(default_factory=list)
    num_done: int = 0
    stopped_by_budget: bool = False


def synthesise(
    context: Context,
    file: Path,
    *,
    teacher: str,
    output: Path,
    kind: Kind = "qa",
    pairs_per_passage: int = 1,
    judge: str | None = None,
    min_support: float = 0.6,
    max_rows: int | None = None,
    max_new_tokens: int = SYNTHESIS_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    prices: Prices | None = None,
    force: bool = False,
    run: SynthesisRun | None = None,
) -> Synthesis:
    """Have a teacher write pairs from the `text` of each row, and keep those that the passage supports.

    The output has the rows that were kept; what was refused is next to it in `<output>.refused.jsonl`, or there is no
    such file where nothing was. max_rows: only the first rows. What was answered is kept in the home, so a second run,
    or one after a stop midway, requests only the rest. force: replace an existing output. run: budget, batches and
    progress.

    Raises RequestError (impossible options), ConflictError (an output is there), NotFoundError (file, model),
    DataError (rows without text; or no pair could be kept, and then the refused file says why), StillRunningError (run:
    `on_waiting`), and what an engine raises.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.outputs import check_free_listed
    from luthier.ml.data.synthesis.synthesise import SynthesisOptions

    options = SynthesisOptions(kind, pairs_per_passage, min_support, max_new_tokens, temperature, seed)
    run = run or SynthesisRun()
    _check(options, max_rows, prices, file, output)
    check_budget(run.budget_usd, prices, at_once=run.uses_batch_api)
    start = time.monotonic()
    source = open_source(file)
    check_free_listed(output, refused_file(output), force=force)
    num_found = _check_rows(source, context)
    num_rows = min(num_found, max_rows or num_found)
    with ExitStack() as stack:
        batches = None
        if run.uses_batch_api:
            batches = BatchUse((prices or Prices()).cost_of_tokens, waits=run.on_waiting is None)
        writer, examiner = _engines(context, stack, teacher, judge, num_rows * pairs_per_passage, batches)
        tally = _write(context, source, num_rows, writer, examiner, options, output, prices or Prices(), run)
    listed = refused_file(output)
    if not tally.num_pairs:
        raise _no_rows_error(file, writer.name, tally.refused, listed)
    seconds = time.monotonic() - start
    return _outcome(file, output, options, num_found, tally, writer, examiner, prices or Prices(), seconds)


def _outcome(
    file: Path,
    output: Path,
    options: SynthesisOptions,
    num_found: int,
    tally: _Tally,
    writer: CachedEngine,
    examiner: CachedEngine | None,
    prices: Prices,
    seconds: float,
) -> Synthesis:
    cost, note = _cost(prices, writer, examiner)
    return Synthesis(
        file=str(file),
        output=str(output),
        refused_file=str(refused_file(output)) if tally.refused else None,
        kind=options.kind,
        teacher=writer.name,
        judge=examiner.name if examiner else None,
        min_support=options.min_support,
        num_rows=tally.num_done,
        num_rows_left=num_found - tally.num_done,
        num_pairs=tally.num_pairs,
        num_refused=len(tally.refused),
        refused=_counts(tally.refused),
        mean_support=tally.support / tally.num_pairs,
        teacher_usage=writer.usage,
        judge_usage=examiner.usage if examiner is not None and examiner is not writer else None,
        cost_usd=cost,
        cost_note=note,
        seconds=seconds,
        stopped_by_budget=tally.stopped_by_budget,
    )


def _engines(
    context: Context, stack: ExitStack, teacher: str, judge: str | None, num_answers: int, batches: BatchUse | None
) -> tuple[CachedEngine, CachedEngine | None]:
    found = find_teacher(context, teacher, num_answers=num_answers, batches=batches)
    writer = stack.enter_context(closing(found))
    # One engine for both roles: the weights are loaded once, and the cache is shared.
    if judge is None or judge == teacher:
        return writer, None if judge is None else writer
    return writer, stack.enter_context(closing(find_teacher(context, judge, num_answers=num_answers)))


def _check(options: SynthesisOptions, max_rows: int | None, prices: Prices | None, file: Path, output: Path) -> None:
    problems = [
        ("pairs_per_passage", options.pairs_per_passage, options.pairs_per_passage >= 1, "at least 1"),
        ("min_support", options.min_support, 0 <= options.min_support <= 1, "a fraction from 0 to 1"),
        ("max_new_tokens", options.max_new_tokens, options.max_new_tokens >= 1, "at least 1"),
        ("temperature", options.temperature, 0 <= options.temperature < float("inf"), "0 (greedy) or more"),
        ("max_rows", max_rows, max_rows is None or max_rows >= 1, "at least 1"),
    ]
    for name, value, is_right, expected in problems:
        if not is_right:
            raise RequestError(f"{name}={value}", expected=expected, do=f"correct {name}")
    check_prices(prices)
    check_files(file, output)


def check_files(file: Path, output: Path) -> None:
    """Raise RequestError for an output that is no .jsonl file, or one of the files that are read."""
    if output.suffix.lower() not in _OUTPUT_ENDINGS or output.is_dir():
        raise RequestError(
            f"output {str(output)!r}", expected="a file that ends in .jsonl", do="name it like pairs.jsonl"
        )
    # resolve() follows links and `..`, so another spelling of the input is recognised too.
    if file.exists() and file.resolve() in (output.resolve(), refused_file(output).resolve()):
        raise RequestError(
            f"the output {output} would replace the rows themselves",
            expected="another file",
            do="choose another name for -o",
        )


def _check_rows(source: Source, context: Context) -> int:
    """The number of rows, all of which have a `text`; the teacher gets no request before that is checked."""
    from luthier.core.dataset import Row
    from luthier.ml.data.files.bad_field import BadFieldError, require_text
    from luthier.ml.data.rows.formats import problem_in
    from luthier.ml.data.rows.rows import read_rows

    # The file is read twice. Rows are checked first because a bad row at the end would waste all paid requests.
    num_rows, problems = 0, []
    with context.progress.task("Checking rows", None, "row") as task:
        for row in read_rows(source):
            num_rows += 1
            task.advance()
            if isinstance(row, Row):
                try:
                    require_text(row.fields, "text")
                except BadFieldError as error:
                    problems.append(problem_in(row, error, {}))
            else:
                problems.append(row)
    if problems or not num_rows:
        raise DataError(
            f"{len(problems):,} of {num_rows:,} rows of {source.name} hold no passage",
            expected="rows with their passage in `text`, as `luthier data ingest` writes them",
            do="make the rows with `luthier data ingest`, or repair these",
            problems=problems,
        )
    return num_rows


def _passages(source: Source) -> Iterator[Passage]:
    from luthier.core.dataset import Row
    from luthier.ml.data.provenance import PROVENANCE
    from luthier.ml.data.rows.rows import read_rows
    from luthier.ml.data.synthesis.synthesise import Passage

    for row in read_rows(source):
        if not isinstance(row, Row) or not isinstance(row.fields.get("text"), str):
            raise DataError(
                f"{source.name} was changed while it was read",
                expected="a file that does not change",
                do="wait until the program that writes the file has finished, then start again",
            )
        provenance = row.fields.get(PROVENANCE)
        yield Passage(row.id, row.fields["text"], provenance if isinstance(provenance, dict) else {})


@dataclass(slots=True)
class _Meter:
    """Counts batches, reports them, and ends the passages where the next batch may exceed the budget."""

    tally: _Tally
    teacher: CachedEngine
    num_rows: int
    prices: Prices
    run: SynthesisRun
    highest_cost: float = 0.0
    spent_before: float = 0.0

    def batch_done(self, num_passages: int, task: ProgressTask) -> None:
        """Take the next batch into account."""
        tally = self.tally
        tally.num_done += num_passages
        task.advance(num_passages)
        # Usage counts new requests only, so a run that continues from the cache starts with a low estimate.
        task.note(estimate(self.teacher, tally.num_done, self.num_rows, self.prices))
        cost = self._cost()
        refused = len(tally.refused)
        self.run.on_batch(SynthesisState(tally.num_done, self.num_rows, tally.num_pairs, refused, cost))
        if self.run.budget_usd is not None and cost is not None:
            self.highest_cost, self.spent_before = max(self.highest_cost, cost - self.spent_before), cost
            # The next batch is taken to cost as much as the dearest so far. What comes out of the cache costs nothing.
            is_over = self.highest_cost > 0 and cost + self.highest_cost > self.run.budget_usd
            tally.stopped_by_budget = tally.num_done < self.num_rows and is_over

    def reporting_waits(self, found: Iterator[SyntheticPair]) -> Iterator[SyntheticPair]:
        """The attempts; reports what was spent, and batches that continue at the provider, before it raises."""
        try:
            yield from found
        except StillRunningError as waiting:
            if self.run.on_waiting is not None:
                self.run.on_waiting(waiting, self._cost())
            raise
        except BaseException:
            # Answers of a part of the batch are kept, and were paid for. Also for SystemExit: a stop is one.
            self.run.on_stop(self._cost())
            raise

    def _cost(self) -> float | None:
        """What all new requests have cost, those of earlier attempts included; None without prices."""
        cost = self.prices.cost(self.teacher.usage)
        return None if cost is None else cost + self.run.spent_usd

    def within_budget(self, passages: Iterator[Passage]) -> Iterator[Passage]:
        """The passages as long as the budget lasts."""
        for passage in passages:
            if self.tally.stopped_by_budget:
                return
            yield passage


def _write(
    context: Context,
    source: Source,
    num_rows: int,
    teacher: CachedEngine,
    judge: CachedEngine | None,
    options: SynthesisOptions,
    output: Path,
    prices: Prices,
    run: SynthesisRun,
) -> _Tally:
    """Write both files; the one with the pairs only where there is a pair."""
    from luthier.ml.data.rows.outputs import write_rows
    from luthier.ml.data.synthesis.synthesise import BATCH_PASSAGES, attempts, refused_row_of, row_of
    from luthier.ml.inference.openai.batch_api import MAX_REQUESTS

    tally, kept = _Tally(), []
    judge_name = judge.name if judge is not None else None
    name = run.teacher_name or teacher.name
    write = partial(row_of, options=options, teacher=name, judge=judge_name, with_passage=run.with_passage)
    with context.progress.task("Writing pairs", num_rows, "row") as task:
        meter = _Meter(tally, teacher, num_rows, prices, run, spent_before=run.spent_usd)
        found = attempts(
            meter.within_budget(islice(_passages(source), num_rows)),
            teacher,
            judge,
            options,
            context.progress,
            batch_done=lambda num_passages: meter.batch_done(num_passages, task),
            batch_passages=MAX_REQUESTS if run.uses_batch_api else run.batch_passages or BATCH_PASSAGES,
        )
        for attempt in meter.reporting_waits(found):
            # No reason against it and a measured support: only both together mean that it was checked and kept.
            if attempt.reason is None and attempt.support is not None:
                tally.num_pairs += 1
                tally.support += attempt.support.fraction
                # Collected, not streamed: the output appears only when all is done, so a stop leaves no partial file.
                kept.append(write(attempt))
            else:
                tally.refused.append(attempt)
    rows = (refused_row_of(a, options, teacher=name, judge=judge_name) for a in tally.refused)
    if tally.refused:
        write_rows(rows, refused_file(output))
    else:
        # With --force a list of the previous output may be here; it would describe rows that do not exist any more.
        refused_file(output).unlink(missing_ok=True)
    if kept:
        write_rows(kept, output)
    return tally


def estimate(teacher: CachedEngine, num_done: int, num_rows: int, prices: Prices) -> str:
    """The expected tokens and cost of the whole file, from the rows so far; new requests only.

    Args:
        teacher: The engine, which has counted its tokens.
        num_done: Rows that are done, at least 1.
        num_rows: All rows.
        prices: What its tokens cost.
    """
    # Linear in rows: passages are of similar length after ingest, so nothing finer is needed for a progress note.
    usage, factor = teacher.usage, num_rows / num_done
    if not usage.num_requests:
        return "all from the cache so far"
    tokens = f"about {usage.num_prompt_tokens * factor:,.0f} + {usage.num_new_tokens * factor:,.0f} tokens in all"
    cost = prices.cost(usage)
    return tokens if cost is None else f"{tokens}, {cost * factor:.2f} USD"


def _cost(prices: Prices, teacher: CachedEngine, judge: CachedEngine | None) -> tuple[float | None, str]:
    cost = prices.cost(teacher.usage)
    if cost is None:
        return None, "no prices were given, so no cost is claimed"
    if judge is None:
        return cost, "the teacher's new tokens at the prices given"
    if judge is teacher:
        return cost, "the new tokens of teacher and judge, which are one, at the prices given"
    return cost, "the teacher's new tokens at the prices given; the judge's are not in it, since it has no prices"


def _counts(refused: list[SyntheticPair]) -> dict[str, int]:
    return dict(Counter(str(attempt.reason) for attempt in refused).most_common())


def refused_file(output: Path) -> Path:
    """Where what was refused is listed."""
    return output.with_name(f"{output.name}.refused.jsonl")


def _no_rows_error(file: Path, teacher: str, refused: list[SyntheticPair], refused_file: Path) -> DataError:
    from luthier.ml.data.files.bad_field import problem_of

    counts = ", ".join(f"{number:,} {reason}" for reason, number in _counts(refused).items())
    problems: list[RowProblem] = [
        problem_of(a.passage.id, value="", reason=f"{a.reason}: {a.explanation}") for a in refused
    ]
    return DataError(
        f"none of the {len(refused):,} pairs that {teacher} had to write from {file.name} could be kept, so no "
        f"file of pairs was written: {counts}",
        expected="pairs whose answers are in their passage",
        do=f"read the replies in {refused_file}; a larger, instruction-tuned teacher usually helps, or longer answers "
        "(--max-new-tokens) where replies were cut off",
        problems=problems,
    )
