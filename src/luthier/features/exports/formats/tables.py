"""Use case: the price of formats, what each export of a model costs and what it loses, measured on held-out rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison, SystemResult
from luthier.core.evaluation_plan import MetricName
from luthier.core.frozen_model import FrozenModel
from luthier.core.records.export import (
    SOURCE_LABEL,
    ExportFormat,
    ExportPrecision,
    ExportSource,
    FormatPrice,
    FormatTable,
)
from luthier.core.registry import EXPORTERS
from luthier.core.system.process_setup import usable_threads
from luthier.features.evaluations.evaluated_rows import BY_PROVENANCE, grouping_of, groups_of
from luthier.features.exports.formats.measurements import (
    EXPORT,
    JUDGE,
    PAGE,
    TABLE,
    Exported,
    FormatProgress,
    Measured,
    asked_rows,
    check_table_folder,
    close_table,
    exported,
    format_progress,
    judge_formats,
    losses_of,
    max_answer_tokens,
    place,
    source_price,
)
from luthier.features.exports.service import find_source
from luthier.features.recipes.checks import check_metrics, column_map, usual_metrics
from luthier.ml.evaluation.sampling import choose_samples
from luthier.ml.export.exporters.head_formats import refuse_head
from luthier.ml.export.exporters.registry import full_precision, usual_formats
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import Outcome, StageSpec, Workflow, WorkflowRun, run_stages

if TYPE_CHECKING:
    from luthier.ml.evaluation.row_groups import RowGroups
    from luthier.ml.export.format_benchmark.measure import AskedRow, Quality, Speed


@dataclass(frozen=True, slots=True)
class FormatRequest:
    """What a table of formats is to compare.

    Attributes:
        name: The model: a run, a tuned model or a base model.
        data: The file of held-out rows.
        folder: Where table and page are written.
        formats: Formats such as `gguf:q4_k_m`, with short names of types allowed; None takes the usual ones.
        metrics: What to measure; None takes what the rows can be evaluated by.
        mapping: Column map of the rows; None takes the run's own.
        num_rows: How many rows quality is measured on, chosen by a stable hash.
        num_timed: How many prompts speed is measured on.
        num_rounds: How often each prompt is timed.
        max_new_tokens: Limit of an answer, in tokens.
        keeps_exports: Keep the exports in `folder/exports`.
    """

    name: str
    data: Path
    folder: Path
    formats: Sequence[str] | None = None
    metrics: Sequence[MetricName] | None = None
    mapping: Mapping[str, str] | None = None
    num_rows: int = 100
    num_timed: int = 8
    num_rounds: int = 3
    max_new_tokens: int = 64
    keeps_exports: bool = False


def measure_formats(context: Context, request: FormatRequest) -> FormatTable:
    """Export a model in each format, measure all of them and the model itself, and write table and page.

    An export whose proof fails is measured all the same, and not recommended. A format whose runtime is missing, or
    that cannot hold the model, is a row with the reason. An interrupted run continues with the same request: exports
    and qualities are stored until the table is written.

    Raises:
        RequestError: Unknown formats or metrics, or numbers out of their range.
        ConflictError: The folder has a table, or the unfinished one of another request, or another process works on it.
        NotFoundError: No such model or file.
        DataError: The rows cannot be read.
    """
    from luthier.ml.data.rows.formats import load_file

    _check(request)
    check_table_folder(request.folder.absolute())
    # dict.fromkeys drops repeated formats and keeps the order in which they were named.
    named = usual_formats() if request.formats is None else request.formats
    wanted = [parse_format(text) for text in dict.fromkeys(named)]
    # Formats and folder are checked first: reading the rows and finding the model can take minutes.
    source = find_source(context, request.name)
    refuse_head(source, "a comparison of formats")
    runs = () if source.run_id is None else (source.run_id,)
    loaded = load_file(request.data, mapping=column_map(context, runs, request.data, request.mapping).mapping)
    examples = choose_samples(loaded.examples, request.num_rows)
    metrics = tuple(request.metrics) if request.metrics is not None else usual_metrics(examples)
    check_metrics(metrics, examples)
    tokenised, rows = asked_rows(source, examples)
    asked = _asked(request, source, loaded.sha256)
    with format_progress(request.folder, asked) as progress:
        most = max_answer_tokens(source, examples, request.max_new_tokens)
        grouped_by = None if source.run_id is None else grouping_of(context.runs.plan(source.run_id))
        groups = groups_of(examples, request.data, grouped_by or BY_PROVENANCE)
        of_rows = (request, source, wanted, examples, tokenised, rows)
        material = _Material(*of_rows, metrics, most, loaded.sha256, progress, groups)
        stages = WORKFLOW.stages(material)
        record = progress.pipeline([stage.name for stage in stages])
        run = WorkflowRun(context, Caller(), WORKFLOW, record, material)
        run_stages(run, progress.save)
        close_table(progress.folder, keeps_exports=request.keeps_exports)
        return FormatTable.model_validate_json((progress.folder / TABLE).read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class _Material:
    """What the stages share: the request, checked and with its rows read."""

    request: FormatRequest
    source: ExportSource
    wanted: Sequence[tuple[ExportFormat, ExportPrecision]]
    examples: Sequence[Example]
    tokenised: Sequence[TokenisedExample]
    rows: Sequence[AskedRow]
    metrics: Sequence[MetricName]
    max_answer_tokens: int
    data_sha256: str
    progress: FormatProgress
    groups: RowGroups | None


def _prices(run: WorkflowRun) -> list[FormatPrice]:
    """The model itself, and its exports."""
    labels = [f"{to}:{precision}" for to, precision in run.spec.wanted]
    made = [run.outcome(EXPORT + label, Exported).price for label in labels]
    return [source_price(run.spec.source), *(price for price in made if price is not None)]


def _export(run: WorkflowRun, to: ExportFormat, precision: ExportPrecision) -> Exported:
    asked: _Material = run.spec
    return Exported(price=exported(run.context, asked.request.data, asked.source, to, precision, asked.progress.folder))


def _is_there(run: WorkflowRun, outcome: Exported) -> bool:
    price = outcome.price
    return price is not None and (price.status == "missing" or Path(_place(run.spec.request, price)).exists())


def _price_of(run: WorkflowRun, label: str) -> FormatPrice:
    return next(price for price in _prices(run) if price.label == label)


def _begin_judging(run: WorkflowRun, label: str) -> Measured:
    price = _price_of(run, label)
    return Measured(missing=price.reason or price.status) if price.status == "missing" else Measured()


def _judge(run: WorkflowRun, label: str) -> Measured:
    from luthier.ml.export.format_benchmark.measure import measure_quality

    asked, price = run.spec, _price_of(run, label)
    found = measure_quality(
        price.format,
        _place(asked.request, price),
        asked.source,
        asked.rows,
        max_new_tokens=asked.max_answer_tokens,
        label=label,
        progress=run.context.progress,
    )
    return Measured(quality=found)


def _table(run: WorkflowRun) -> Outcome:
    """Speeds, measured together; what is lost; the table and its page."""
    from luthier.core.system.files import replace_text
    from luthier.ml.charts.judged_rows import metric_heading
    from luthier.ml.export.format_benchmark.page import write_format_page

    asked: _Material = run.spec
    request, progress, prices = asked.request, asked.progress, _prices(run)
    measured = {price.label: run.outcome(JUDGE + price.label, Measured).quality for price in prices}
    qualities = {label: quality for label, quality in measured.items() if quality is not None}
    # Speeds are measured here, after all exports are made: figures compare only within one session of the
    # machine, so they are never taken over from an attempt that was stopped.
    speeds = _speeds(run.context, request, asked.source, prices, asked.rows)
    judged = judge_formats(
        asked.source,
        asked.examples,
        asked.tokenised,
        qualities,
        metrics=asked.metrics,
        max_new_tokens=request.max_new_tokens,
        progress=run.context.progress,
        clusters=None if asked.groups is None else asked.groups.clusters([one.id for one in asked.examples]),
    )
    done = tuple(_price(price, judged.of(price.label), judged.metric, qualities, speeds) for price in prices)
    table = FormatTable(
        name=asked.source.name,
        base_name=asked.source.base_name,
        data_file=str(request.data),
        data_sha256=asked.data_sha256,
        num_rows=len(asked.examples),
        num_timed=min(request.num_timed, len(asked.rows)),
        num_rounds=request.num_rounds,
        num_threads=usable_threads(),
        max_new_tokens=request.max_new_tokens,
        metric=judged.metric,
        prices=_with_fronts(done, judged.metric),
        rows_notes=() if asked.groups is None else (asked.groups.sentence,),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        seconds=progress.seconds,
        report_path=str(progress.folder / PAGE),
    )
    write_format_page(progress.folder / PAGE, table, metric_heading)
    # The table is last: its existence shows `check_table_folder` that the work is complete.
    replace_text(progress.folder / TABLE, table.model_dump_json(indent=1) + "\n")
    return Outcome()


def _stages(asked: _Material) -> list[StageSpec]:
    title = "An export in {}, and how much room it takes"
    exports = [
        StageSpec(
            f"{EXPORT}{to}:{precision}",
            title.format(f"{to}:{precision}"),
            partial(_export, to=to, precision=precision),
            Exported,
            ("model", "base"),
            # A record may outlive its export (a folder was cleared manually): then the stage is run again.
            holds=_is_there,
        )
        for to, precision in asked.wanted
    ]
    judged = [
        StageSpec(
            JUDGE + label,
            f"What {label} makes of the rows",
            partial(_judge, label=label),
            Measured,
            ("rows", "num_rows", "max_new_tokens"),
            begin=partial(_begin_judging, label=label),
        )
        for label in (SOURCE_LABEL, *(f"{to}:{precision}" for to, precision in asked.wanted))
    ]
    return [*exports, *judged, StageSpec("table", "Speeds, losses, and the table", _table)]


WORKFLOW: Final = Workflow(
    kind="formats", noun="a table of formats", request=FrozenModel, stages=_stages, folder="formats"
)


def parse_format(text: str) -> tuple[ExportFormat, ExportPrecision]:
    """`gguf:f16` -> gguf and float16. Raises RequestError for what no exporter has."""
    format, _, precision = text.strip().partition(":")
    precision = full_precision(precision)
    whole = {name: kind for name, kind in EXPORTERS.declarations().items() if not kind.is_adapter}
    if format not in whole or precision not in whole[format].precisions:
        known = [f"{name}:{p}" for name, kind in whole.items() for p in kind.precisions]
        raise RequestError(
            f"the format {text!r}",
            expected=f"one of {', '.join(known)}",
            do="write format and precision with a colon: --formats gguf:q8_0,onnx:int4",
        )
    if whole[format].program:
        raise RequestError(
            f"the format {text!r} in a benchmark of formats",
            expected="formats that run inside the process that measures them",
            do=f"leave it out: {whole[format].title} is a separate program, whose memory would not be counted; "
            "benchmarks/serving_engines.py --vllm-python PATH measures its speed",
        )
    return format, precision


def _asked(request: FormatRequest, source: ExportSource, data_sha256: str) -> dict[str, Any]:
    """All that exports and qualities depend on. Formats may be added: what is made of the others holds."""
    return {
        "model": source.name,
        "base": source.base_sha256,
        "rows": data_sha256,
        "mapping": dict(request.mapping or {}),
        "num_rows": request.num_rows,
        "max_new_tokens": request.max_new_tokens,
        "versions": {name: version(name) for name in ("luthier", "torch", "transformers")},
    }


def _check(request: FormatRequest) -> None:
    for name in ("num_rows", "num_timed", "num_rounds", "max_new_tokens"):
        value = getattr(request, name)
        # The rate of new tokens excludes the first one, which belongs to the prompt, so one token has no rate.
        least = 2 if name == "max_new_tokens" else 1
        if value < least:
            raise RequestError(f"{name}={value}", expected=f"at least {least}", do=f"correct {name}")
    if request.formats is not None and not request.formats:
        raise RequestError("no formats", expected="at least one", do="name some: --formats gguf:q8_0,gguf:q4_k_m")


def _place(request: FormatRequest, price: FormatPrice) -> str:
    return "" if price.format is None else str(place(request.folder, price.format, price.precision))


def _speeds(
    context: Context,
    request: FormatRequest,
    source: ExportSource,
    prices: Sequence[FormatPrice],
    rows: Sequence[AskedRow],
) -> dict[str, list[Speed]]:
    """Prompts of rows without an answer to write are their first half."""
    from luthier.ml.export.format_benchmark.measure import measure_speeds

    timed = [
        # Rounded up, so that a text of one token still has a prompt of one.
        row if row.num_prompt else row.model_copy(update={"num_prompt": (len(row.ids) + 1) // 2})
        for row in rows[: request.num_timed]
    ]
    return measure_speeds(
        {price.label: (price.format, _place(request, price)) for price in prices if price.status == "measured"},
        source,
        timed,
        max_new_tokens=request.max_new_tokens,
        num_rounds=request.num_rounds,
        progress=context.progress,
    )


def _price(
    price: FormatPrice,
    judged: tuple[SystemResult | None, tuple[Comparison, ...]],
    metric: str,
    qualities: Mapping[str, Quality],
    speeds: Mapping[str, Sequence[Speed]],
) -> FormatPrice:
    """A row with all that was measured of it."""
    from luthier.ml.export.format_benchmark.measure import spread

    result, comparisons = judged
    if result is None:
        return price
    rounds = speeds[price.label]
    losses = losses_of(result, comparisons, metric)
    return price.model_copy(
        update={
            "runtime": qualities[price.label].runtime,
            "peak_memory_bytes": int(statistics.median(one.peak_memory_bytes for one in rounds)),
            "idle_memory_bytes": int(statistics.median(one.idle_memory_bytes for one in rounds)),
            "load_seconds": spread([one.load_seconds for one in rounds]),
            "prompt_tokens_per_second": spread([one.prompt_tokens_per_second for one in rounds]),
            "new_tokens_per_second": spread([one.new_tokens_per_second for one in rounds]),
            "quality": result,
            "comparisons": comparisons,
            # `reason` is set where the proof failed: measured for comparison, never recommended.
            "is_recommended": not losses and not price.reason,
            "losses": (*([price.reason] if price.reason else []), *losses),
        }
    )


def _with_fronts(prices: Sequence[FormatPrice], metric: str) -> tuple[FormatPrice, ...]:
    """Marks what no other format beats in quality and size, and in quality and speed."""
    from luthier.ml.export.format_benchmark.page import pareto_front

    measured = [p for p in prices if p.quality is not None]
    qualities = [_quality_of(p, metric) for p in measured]
    by_size = pareto_front([float(p.num_bytes) for p in measured], qualities)
    # pareto_front minimises its first argument and maximises quality, so speed is negated.
    by_speed = pareto_front([-_speed_of(p) for p in measured], qualities)
    fronts = {p.label: both for p, both in zip(measured, zip(by_size, by_speed, strict=True), strict=True)}
    return tuple(
        p.model_copy(update={"is_on_front_size": fronts[p.label][0], "is_on_front_speed": fronts[p.label][1]})
        if p.label in fronts
        else p
        for p in prices
    )


def _quality_of(price: FormatPrice, metric: str) -> float:
    assert price.quality is not None
    found = price.quality.metrics[metric]
    # Perplexity and losses are better when lower; the front needs one direction.
    return found.value if found.higher_is_better else -found.value


def _speed_of(price: FormatPrice) -> float:
    return price.new_tokens_per_second.median if price.new_tokens_per_second else 0.0


def _machine() -> dict[str, str]:
    import platform

    from luthier.ml.planning import hardware

    machine = hardware.measure()
    return {
        "processor": machine.cpu_name,
        "cores": str(machine.num_cores),
        "python": platform.python_version(),
        **{name: version(name) for name in ("luthier", "torch", "transformers")},
    }
