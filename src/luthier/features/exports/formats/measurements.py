"""The measurements of a table of formats: exports, their quality, and what of it is stored so far.

Each format is made by `luthier export`, or has the reason why there is none. Quality is evaluated like that of any
system: rows in the source's tokens, and what each format answers. Progress is stored next to the exports, so that a
kill costs one export or one evaluation.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import ConflictError, ParityError, RequestError
from luthier.core.evaluation import Comparison, SystemResult
from luthier.core.evaluation_plan import MetricName
from luthier.core.ports import Generation, Progress, Prompt, Score
from luthier.core.records.export import SOURCE_LABEL, Export, ExportFormat, ExportPrecision, ExportSource, FormatPrice
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.features.exports.service import export
from luthier.features.recipes.checks import check_lengths, have_text_answers
from luthier.ml.export.format_benchmark.measure import Quality
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import Outcome, hold

if TYPE_CHECKING:
    from luthier.ml.export.format_benchmark.measure import AskedRow, RowQuality
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

EXPORTS: Final = "exports"
TABLE: Final = "formats.json"
PAGE: Final = "formats.html"
EXPORT, JUDGE = "export ", "judge "
_KEPT, _LOCK = "unfinished.json", "lock"


class Exported(Outcome):
    """An export, or why there is none."""

    price: FormatPrice | None = None


class Measured(Outcome):
    """The answers of a format to the rows.

    Attributes:
        quality: Likelihoods and texts of all rows.
        missing: Why there are none.
    """

    quality: Quality | None = None
    missing: str = ""

    @property
    def why_skipped(self) -> str:
        """There is no export to ask."""
        return self.missing


class FormatProgress:
    """The stored record of a table: exports that are made and qualities that are measured, by label.

    Speeds are not kept: they compare with each other only where they are measured together. Formats may be added to an
    unfinished table: what is made of the others holds.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        self.folder, self._asked = folder, asked
        self._prices, self._qualities = dict(found.get("prices", {})), dict(found.get("qualities", {}))
        self._before, self._began = float(found.get("seconds", 0.0)), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of work so far, in this attempt and in earlier ones that have stored a result."""
        # Monotonic, so only durations are kept across attempts, never a starting point.
        return self._before + time.perf_counter() - self._began

    def pipeline(self, names: Sequence[str]) -> Pipeline:
        """The record with these stages."""
        kept = {f"{EXPORT}{label}": {"price": one} for label, one in self._prices.items()}
        kept |= {f"{JUDGE}{label}": {"quality": one} for label, one in self._qualities.items()}
        stages = tuple(
            Stage(name=name, status="done" if name in kept else "waiting", came=kept.get(name, {})) for name in names
        )
        return Pipeline(pipeline_id=self.folder.name, kind="formats", asked=dict(self._asked), stages=stages)

    def save(self, pipeline: Pipeline) -> None:
        """Store the stages that are done."""
        from luthier.core.system.files import replace_text

        for stage in pipeline.stages:
            if stage.status == "done" and "price" in stage.came:
                self._prices[stage.name.removeprefix(EXPORT)] = stage.came["price"]
            if stage.status == "done" and "quality" in stage.came:
                self._qualities[stage.name.removeprefix(JUDGE)] = stage.came["quality"]
        document = {
            "asked": self._asked,
            "seconds": self.seconds,
            "prices": self._prices,
            "qualities": self._qualities,
        }
        # Write and rename: a kill leaves the record of the stage before, never half a JSON document.
        replace_text(self.folder / EXPORTS / _KEPT, json.dumps(document) + "\n")


def close_table(folder: Path, *, keeps_exports: bool) -> None:
    """The table is written: nothing is unfinished any more."""
    (folder / EXPORTS / _KEPT).unlink(missing_ok=True)
    (folder / EXPORTS / _LOCK).unlink(missing_ok=True)
    if not keeps_exports:
        shutil.rmtree(folder / EXPORTS, ignore_errors=True)


@contextmanager
def format_progress(folder: Path, asked: Mapping[str, Any]) -> Iterator[FormatProgress]:
    """The progress of a table in this folder (made where it is missing), from where an earlier attempt stopped.

    Args:
        folder: The folder of the table.
        asked: All that exports and qualities depend on, as JSON.

    Raises:
        ConflictError: The folder holds a table, or the unfinished one of another request, or a process works on it.
    """
    folder = folder.absolute()
    check_table_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / EXPORTS / _KEPT
    # A file lock, held by the kernel: it goes with the process, however that ends.
    with hold(folder / EXPORTS / _LOCK, f"the table of formats in {folder}"):
        found = _read(kept)
        # Versions of torch and transformers are part of `asked`: figures of two versions do not compare.
        if found and found["asked"] != asked:
            differing = [name for name in asked if found["asked"].get(name) != asked[name]]
            raise ConflictError(
                f"{folder} has the unfinished table of another request: {', '.join(differing)} differ",
                expected="the same request, which continues where it was stopped",
                do="ask for the same again, choose another folder with -o, or remove this one",
            )
        yield FormatProgress(folder, asked, found)


def check_table_folder(folder: Path) -> None:
    """Raise ConflictError where a folder holds a table, its page, or exports that no stopped attempt has left."""
    # The page is written before the table. With a lock next to it, an attempt stopped between the two.
    holds_page = (folder / PAGE).exists() and not (folder / EXPORTS / _LOCK).exists()
    if (folder / TABLE).exists() or holds_page or ((folder / EXPORTS).exists() and not _is_begun(folder)):
        raise ConflictError(
            f"{folder} already exists and has a table of formats in it, its page, or exports of one",
            expected="a folder without these",
            do="choose another with -o, or remove it first",
        )


def _is_begun(folder: Path) -> bool:
    """Whether the exports here are those of a table that was stopped: its lock is the first file."""
    return (folder / EXPORTS / _LOCK).exists() or not any((folder / EXPORTS).iterdir())


def _read(kept: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


_PROVED: Final = 8
# Files in an export that its runtime does not read are not part of its size.
_BESIDE: Final = (".md", ".sig", ".jsonl")


def source_price(source: ExportSource) -> FormatPrice:
    """The model as trained: its size on disk is that of base and adapter."""
    from luthier.ml.inference.models.weights import weight_files

    files = weight_files(Path(source.base_path))
    if source.adapter_path is not None:
        files += weight_files(Path(source.adapter_path))
    num_bytes = sum(file.stat().st_size for file in files)
    return FormatPrice(label=SOURCE_LABEL, format=None, precision=source.precision, num_bytes=num_bytes)


def place(folder: Path, to: ExportFormat, precision: ExportPrecision) -> Path:
    """Where an export is while it is measured."""
    return folder.absolute() / EXPORTS / f"{to}-{precision}"


def exported(
    context: Context, data: Path, source: ExportSource, to: ExportFormat, precision: ExportPrecision, folder: Path
) -> FormatPrice:
    """One format of a model: its export, written into its own folder, or why there is none.

    Args:
        context: The home.
        data: The file with the evaluated rows.
        source: The model.
        to: The format.
        precision: The precision within the format.
        folder: Of the table; what an attempt before a kill has left there is removed.
    """
    target = place(folder, to, precision)
    shutil.rmtree(target, ignore_errors=True)  # a kill came between its end and the note of it
    return _made(context, data, source, FormatPrice(label=f"{to}:{precision}", format=to, precision=precision), target)


def _made(context: Context, data: Path, source: ExportSource, price: FormatPrice, folder: Path) -> FormatPrice:
    assert price.format is not None
    to, precision = price.format, price.precision
    try:
        made: Export = export(
            context, source.name, to=to, output=folder, quantise=precision, held_out=data, num_prompts=_PROVED
        )
    except ParityError as error:
        # `export` has removed its folder after the failed proof, so the files are written again.
        _write_unproved(context, source, to, precision, folder)
        reason = f"its proof failed, so `luthier export` does not release it: {error.came}"
        return price.model_copy(update={"num_bytes": _size(folder), "reason": reason})
    except RequestError as error:
        return price.model_copy(update={"status": "missing", "reason": f"{error.came}; {error.do}"})
    return price.model_copy(update={"num_bytes": _size(folder), "parity": made.parity})


def _write_unproved(
    context: Context, source: ExportSource, to: ExportFormat, precision: ExportPrecision, folder: Path
) -> None:
    """What was not let out, to be measured all the same: a table without its worst rows would flatter."""
    from luthier.features.exports.folders import register_of, staged_folder
    from luthier.ml.export.exporters import registry

    with staged_folder(folder, needed_bytes=0, what=f"{to} in {precision}", register=register_of(context)) as target:
        registry.write(to, source, target, precision, context.progress, context.settings.tools_folder)


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix not in _BESIDE)


NOTEWORTHY_FRACTION: Final = 0.02
"""Perplexity that is higher by less is no loss that a user would notice, however sure it is."""


@dataclass(frozen=True, slots=True)
class JudgedFormats:
    """The judgement of all formats.

    Attributes:
        metric: The metric that quality is about.
        results: The metrics of each format, by label.
        comparisons: Each format minus the source.
    """

    metric: str
    results: Mapping[str, SystemResult]
    comparisons: Sequence[Comparison]

    def of(self, label: str) -> tuple[SystemResult | None, tuple[Comparison, ...]]:
        """The figures of a format, and each minus the source's."""
        own = tuple(c for c in self.comparisons if c.candidate == label and c.baseline == SOURCE_LABEL)
        return self.results.get(label), own


def asked_rows(
    source: ExportSource, examples: Sequence[Example]
) -> tuple[tuple[TokenisedExample, ...], tuple[AskedRow, ...]]:
    """The rows in the source's tokens, as its training has written them.

    Raises OverlongError for one over its context, RequestError for pairs.
    """
    from luthier.ml.data.tokenise.loss_mask import tokenise
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.export.format_benchmark.measure import AskedRow
    from luthier.ml.inference.engine_prompts import rewritten_examples
    from luthier.ml.inference.models.structure import context_length

    if any(example.rejected is not None for example in examples):
        raise RequestError(
            "preference pairs", expected="rows with an answer, or plain text", do="measure formats on other rows"
        )
    template = source_template(source)
    examples = rewritten_examples(source.opted_turns, examples, template)
    tokenised = tuple(tokenise(example, template) for example in examples)
    check_lengths(tokenised, context_length(str(source.base_path)), model=source.name)
    writes = have_text_answers(examples)
    rows = tuple(
        AskedRow(
            ids=tuple(one.input_ids),
            # Positions in `ids` (one row: [tokens]) whose token counts in the loss.
            learned=tuple(place for place, learned in enumerate(one.loss_mask) if learned),
            # 0 marks plain text: it is scored, and nothing is generated for it.
            num_prompt=one.num_prompt_tokens if writes else 0,
        )
        for one in tokenised
    )
    return tokenised, rows


def max_answer_tokens(source: ExportSource, examples: Sequence[Example], max_new_tokens: int) -> int:
    """How many tokens an answer may take, its thought included."""
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.inference.models.templates.thinking import limits_of

    # The runtimes of exports know one limit for all new tokens, so the two limits become their sum.
    answer, thought = limits_of(examples, source_template(source), max_new_tokens, None)
    return answer + (thought or 0)


def judge_formats(
    source: ExportSource,
    examples: Sequence[Example],
    tokenised: Sequence[TokenisedExample],
    qualities: Mapping[str, Quality],
    *,
    metrics: Sequence[MetricName],
    max_new_tokens: int,
    progress: Progress,
    clusters: Sequence[Hashable] | None = None,
) -> JudgedFormats:
    """Metrics of each format with intervals, and each format minus the source, paired over the rows.

    Args:
        source: The model.
        examples: The evaluated rows.
        tokenised: The same rows as tokens.
        qualities: Answers and likelihoods of each format, by its label.
        metrics: Metrics to compute.
        max_new_tokens: The most tokens of an answer.
        progress: Shows the scoring.
        clusters: The group of each row; None where every row counts by itself.
    """
    from luthier.ml.data.tokenise.loss_mask import tokenise_sides
    from luthier.ml.evaluation.compare import SystemUnderTest, judge, primary_metric
    from luthier.ml.export.exporters.companions import source_template
    from luthier.ml.inference.engine_prompts import rewritten_examples

    template = source_template(source)
    prompts = tuple(Prompt(conversation=one.prompt, max_new_tokens=max_new_tokens) for one in examples)
    examples = rewritten_examples(source.opted_turns, examples, template)
    writes = have_text_answers(examples)
    # of a row that must be cut the last answer alone is measured
    cut = [len(tokenise_sides(e, template)) > 1 for e in examples]
    num_bytes = tuple(
        (e.last_answer_only if is_cut else e).learned_bytes for e, is_cut in zip(examples, cut, strict=True)
    )
    systems = [
        SystemUnderTest(
            name=label,
            model=source.base_name,
            adapter=source.adapter_path,
            num_few_shot=0,
            engine=_RecordedEngine(label, found, template, tokenised),
            prompts=prompts if writes else (),
            references=tuple(e.reference or "" for e in examples) if writes else (),
            row_ids=tuple(e.id for e in examples),
            # Samples are dropped below, so the prompts are not read; the tuple only has to have one entry a row.
            prompt_texts=tuple("" for _ in examples) if writes else (),
            tokenised=tuple(tokenised),
            num_bytes=num_bytes,
        )
        for label, found in qualities.items()
    ]
    # A fixed seed: the same answers evaluated again have the same intervals.
    results, comparisons = judge(systems, metrics=metrics, seed=0, progress=progress, clusters=clusters)
    return JudgedFormats(
        primary_metric(metrics, [e.reference for e in examples]),
        # A table of formats has no page of samples; with them the document would grow by rows times formats.
        {result.name: result.model_copy(update={"samples": ()}) for result in results},
        [c for c in comparisons if c.baseline == SOURCE_LABEL],
    )


def losses_of(result: SystemResult, comparisons: Sequence[Comparison], metric: str) -> tuple[str, ...]:
    """What a format has lost beyond doubt, a sentence each: the metric that counts, or over 2% in perplexity."""
    from luthier.ml.charts.judged_rows import metric_title

    found = []
    for one in comparisons:
        if one.verdict != "worse" or one.metric not in (metric, "perplexity"):
            continue
        value = result.metrics[one.metric].value
        # `difference` is candidate minus source, so this is the value of the source.
        before = value - one.difference
        if one.metric == "perplexity" and one.difference < NOTEWORTHY_FRACTION * before:
            continue
        found.append(
            f"{metric_title(one.metric)} {value:.4g} instead of {before:.4g} "
            f"({one.difference:+.3g}, 95% interval {one.low:.3g} to {one.high:.3g})"
        )
    return tuple(found)


class _RecordedEngine:
    """An engine that replays what another process has measured."""

    def __init__(
        self, name: str, found: Quality, template: ChatTemplate, tokenised: Sequence[TokenisedExample]
    ) -> None:
        from luthier.ml.inference.engine_prompts import WholeAnswers
        from luthier.ml.inference.thoughts import Thoughts

        self.name, self._found, self._thoughts, self._tokenised = name, found, Thoughts(template), tokenised
        self._answers = WholeAnswers(template)

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The text that the format wrote to each prompt, without thoughts and calls of tools."""
        return [self._generation(*one) for one in zip(prompts, self._found.rows, self._tokenised, strict=True)]

    def _generation(self, prompt: Prompt, row: RowQuality, one: TokenisedExample) -> Generation:
        # A template may end the prompt inside a thought; the text then starts there without an opening tag.
        is_open = self._thoughts.is_open(one.input_ids[: one.num_prompt_tokens])
        marks = self._answers.marks(prompt)
        found, num_thinking = self._thoughts.split(row.written, is_open=is_open, marks=marks)
        said, calls = self._answers.split(prompt, found.content)
        return Generation(
            text=said,
            num_prompt_tokens=one.num_prompt_tokens,
            num_new_tokens=len(row.written),
            finish_reason="stop" if row.is_ended else "length",
            reasoning=found.reasoning,
            num_thinking_tokens=num_thinking,
            ends_in_thought=not found.is_closed,
            tool_calls=calls,
        )

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """The likelihoods that the format gave."""
        return [
            Score(nll_nats=row.nll_nats, num_tokens=one.num_trained_tokens, num_correct=row.num_correct)
            for row, one in zip(self._found.rows, examples, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""
