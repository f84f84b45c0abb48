"""`luthier export benchmark`: what each format of a model costs and what it loses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.counted import counted
from luthier.platform.cli.command import (
    ANY_MODEL,
    Answer,
    HomeOption,
    JsonOption,
    MappingOption,
    open_context,
    parse_mapping,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.export import FormatPrice, FormatTable, Spread


def benchmark(
    name: Annotated[str, typer.Argument(metavar="RUN", help=f"What to export: {ANY_MODEL}.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Held-out rows.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for the table and the page.")
    ],
    wanted: Annotated[
        str | None,
        typer.Option(
            "--formats",
            metavar="A,B",
            help="Formats with their precision, such as gguf:q8_0 [default: {usual}].",
        ),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", metavar="A,B", help="Metrics, as for `luthier eval`.")
    ] = None,
    mapping: MappingOption = None,
    num_rows: Annotated[
        int, typer.Option("--rows", min=1, metavar="N", help="Number of rows to measure quality on.")
    ] = 100,
    num_timed: Annotated[int, typer.Option("--timed", min=1, metavar="N", help="Number of prompts to time.")] = 8,
    num_rounds: Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="Number of rounds to time.")] = 3,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=2, help="Maximum tokens of an output.")] = 64,
    keeps_exports: Annotated[bool, typer.Option("--keep", help="Keep the exports, in DIR/exports.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Export a model in each format and measure size, memory, speed and quality, side by side with the model itself."""
    from luthier.features.exports.formats.tables import FormatRequest, measure_formats
    from luthier.features.suites.cli import parse_metrics

    named = None if wanted is None else tuple(one.strip() for one in wanted.split(",") if one.strip())
    with open_context(home) as context:
        found = measure_formats(
            context,
            FormatRequest(
                name=name,
                data=data,
                folder=output,
                formats=named,
                metrics=parse_metrics(metrics) if metrics is not None else None,
                mapping=parse_mapping(mapping or ()) or None,
                num_rows=num_rows,
                num_timed=num_timed,
                num_rounds=num_rounds,
                max_new_tokens=max_new_tokens,
                keeps_exports=keeps_exports,
            ),
        )
    return Answer(as_json, found.model_dump(mode="json"), lambda console: _show(console, found))


def _show(console: Console, found: FormatTable) -> None:
    from luthier.platform.cli.console import make_table, visible

    headers = [
        "format",
        "MB",
        "memory MB",
        "prompt tokens/s",
        "new tokens/s",
        found.metric,
        "minus source",
        "perplexity",
    ]
    table = make_table([*headers, ""])
    for price in found.prices:
        table.add_row(*_cells(price, found.metric))
    console.print(table)
    for price in found.prices:
        for line in (*price.losses, *([price.reason] if price.status == "missing" else [])):
            console.print(visible(f"{price.label}: {line}"), soft_wrap=True)
    for note in found.rows_notes:
        console.print(visible(note), soft_wrap=True)
    console.print(
        f"{counted(found.num_rows, 'row')} of {visible(found.data_file)}, {counted(found.num_rounds, 'round')} of "
        f"{counted(found.num_timed, 'prompt')}, {counted(found.num_threads, 'processor')}; report: {found.report_path}",
        soft_wrap=True,
    )


def _cells(price: FormatPrice, metric: str) -> list[str]:
    if price.quality is None:
        return [price.label, *([""] * 7), price.status]
    own = price.quality.metrics[metric]
    perplexity = price.quality.metrics.get("perplexity")
    change = next((c for c in price.comparisons if c.metric == metric), None)
    words = {True: "recommended", False: "not recommended for this model", None: ""}[price.is_recommended]
    return [
        price.label,
        # Decimal megabytes, as file managers and hubs show them.
        f"{price.num_bytes / 1e6:,.0f}",
        f"{price.peak_memory_bytes / 1e6:,.0f}",
        _spread(price.prompt_tokens_per_second),
        _spread(price.new_tokens_per_second),
        f"{own.value:.4g} [{own.low:.4g}, {own.high:.4g}]",
        f"{change.difference:+.3g} [{change.low:.3g}, {change.high:.3g}]" if change else "",
        f"{perplexity.value:.4g}" if perplexity else "",
        words if price.format is not None else "",
    ]


def _spread(found: Spread | None) -> str:
    return f"{found.median:,.4g} ({found.low:,.4g} to {found.high:,.4g})" if found else "-"
