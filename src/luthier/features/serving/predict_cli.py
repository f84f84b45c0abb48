"""`luthier predict`: what a model with a task head gives of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luthier.platform.cli.command import ANY_MODEL, Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.serving.head_answers import Predictions


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"A model with a task head: {ANY_MODEL}.")],
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A text to read. Repeatable.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Rows to read: JSONL, JSON, CSV or Parquet.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="NAME", help="The column to read [default: prompt, text, input or messages]."),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", metavar="TEXT", help="For a reranker: the query that texts are ranked by.")
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option("--dimensions", metavar="N", min=1, help="For embeddings: how many numbers a vector has."),
    ] = None,
    input_type: Annotated[
        Literal["query", "document"] | None,
        typer.Option("--input-type", help="For embeddings: what the texts are.", show_default="document"),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Classify, score, rank or embed texts with a model that was trained for it; one line per text, in their order.

    Without --text and --file, each line of stdin is a text. Vectors are printed only with --json.
    """
    from luthier.core.errors import RequestError
    from luthier.core.text.utf8 import utf8_lines
    from luthier.features.serving.head_answers import predict, prompt_of, read_inputs
    from luthier.features.serving.loaded import show_deployment_note

    inputs = [prompt_of(one) for one in text or ()] + ([] if file is None else read_inputs(file, column))
    if text is None and file is None and not sys.stdin.isatty():
        lines = utf8_lines(sys.stdin, "what is on stdin")
        inputs = [prompt_of(line.rstrip("\n")) for line in lines if line.strip()]
    if not inputs:
        raise RequestError("nothing to read", expected="a text or rows", do="give --text TEXT or --file FILE")
    is_query = None if input_type is None else input_type == "query"
    with open_context(home) as context:
        show_deployment_note(context, model)
        found = predict(context, model, inputs, query=query, dimensions=dimensions, is_query=is_query)
    document: dict[str, Any] = {
        "model": model,
        "kind": found.head.kind,
        "classes": list(found.head.labels),
        "num_tokens": found.num_tokens,
        "results": list(found.rows),
    }
    return Answer(as_json, document, lambda console: _show(console, found))


def _show(console: Console, found: Predictions) -> None:
    from luthier.platform.cli.console import visible

    for row in found.rows:
        if "embedding" in row:
            line = f"a vector of {len(row['embedding']):,} numbers: see --json"
            line += "; the end of the text was cut off" if row.get("truncated") else ""
        elif "score" in row:
            line = f"{row['score']:.4f}"
        elif not row["probs"]:
            line = visible(row["label"])
        elif "labels" in row:
            line = ", ".join(
                f"{visible(label)} {share:.3f}"
                for label, share in zip(found.head.labels, row["probs"], strict=True)
                if label in row["labels"]
            )
        else:
            line = f"{visible(row['label'])}  {max(row['probs']):.3f}"
        console.print(line or "none", soft_wrap=True)
