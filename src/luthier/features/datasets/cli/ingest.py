"""`luthier data ingest`: documents to rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import open_context
from luthier.platform.cli.options import ForceOption, HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.ingestions import IngestOutcome

_NUM_SHOWN = 20


def ingest(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR_OR_FILES...", help="PDF, DOCX, PPTX, XLSX, HTML, EPUB, Markdown, text, mail (.eml)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the rows go (.jsonl).")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The base model whose tokens chunks are counted in.")
    ] = None,
    chunk_tokens: Annotated[int, typer.Option("--chunk-tokens", min=16, help="Most tokens of one row.")] = 512,
    overlap_tokens: Annotated[
        int, typer.Option("--overlap-tokens", min=0, help="Most tokens at the end of a row that begin the next again.")
    ] = 64,
    licence: Annotated[str | None, typer.Option("--licence", metavar="TEXT", help="Noted on every row.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes that read [default: one a CPU].")
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout-seconds", min=0.1, help="Longest time for one document.")
    ] = 120.0,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on where an interrupted ingest stopped, or start over.")
    ] = True,
    fail_on_error: Annotated[
        bool, typer.Option("--fail-on-error", help="Exit code 1 where a document could not be read.")
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Read documents into rows of text, each with its file, page or section, and digest."""
    from luthier.features.datasets import ingestions

    with open_context(home) as context:
        done = ingestions.ingest(
            context,
            places,
            output,
            model=model,
            chunk_tokens=chunk_tokens,
            overlap_tokens=overlap_tokens,
            licence=licence,
            num_workers=workers,
            timeout_seconds=timeout_seconds,
            is_fresh=not resume,
            force=force,
        )
    code = 1 if fail_on_error and done.ingestion.failed else 0
    return Answer(as_json, done.as_json(), lambda console: show_ingestion(console, done), code)


def show_ingestion(console: Console, done: IngestOutcome) -> None:
    """The counts, then what was not read and what to know, each with its file."""
    from luthier.ml.data.documents.documents import by_kind
    from luthier.platform.cli.console import facts, visible

    found = done.ingestion
    reused = f" ({found.num_reused:,} by an earlier, interrupted ingest)" if found.num_reused else ""
    rows = [
        ("rows", f"{found.num_rows:,} in {done.output}"),
        ("documents", f"{len(found.documents) - len(found.failed):,} of {len(found.documents):,} read{reused}"),
        ("length", f"{found.num_tokens:,} {done.unit}"),
        ("each document", str(done.outcome)),
    ]
    facts(console, rows)
    _list(console, "not read", [(one.file, one.reason or "") for one in found.failed])
    warned = [(one.file, "; ".join(one.warnings)) for one in found.documents if one.warnings]
    _list(console, "read, with notes", warned)
    kinds = list(by_kind(found.skipped))
    if kinds:
        console.print("\nleft out", style="bold")
    for kind, num, names in kinds:
        more = " ..." if num > len(names) else ""
        console.print(visible(f"  {kind}: {num:,} ({', '.join(names)}{more})"), soft_wrap=True)


def _list(console: Console, title: str, entries: list[tuple[str, str]]) -> None:
    from luthier.platform.cli.console import visible

    if not entries:
        return
    console.print(f"\n{title} ({len(entries):,})", style="bold")
    for file, said in entries[:_NUM_SHOWN]:
        console.print(visible(f"  {file}: {said}"), soft_wrap=True)
    if len(entries) > _NUM_SHOWN:
        console.print(f"  ... and {len(entries) - _NUM_SHOWN:,} more, in the outcome file", soft_wrap=True)
