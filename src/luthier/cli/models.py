"""`luthier models`: base models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.answer import Answer
from luthier.cli.opening import open_context
from luthier.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.model_check import ModelCheck
    from luthier.service.models import ModelView

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `luthier models list`, hub:org/name@revision, a folder, a .gguf file, or layers:15@MODEL.",
    ),
]


def list_models(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the base models that Luthier knows, and which of them are on this machine."""
    from luthier.service import models

    with open_context(home) as context:
        views = models.list_models(context)
    return Answer(as_json, [view.model_dump(mode="json") for view in views], lambda console: _show_all(console, views))


def pull(name: NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Fetch a base model, check its digest, and make it ready to train. Costs nothing where it is there already."""
    from luthier.service import models

    with open_context(home) as context:
        view = models.pull_model(context, name)
    return Answer(as_json, view.model_dump(mode="json"), lambda console: _show_one(console, view))


def show(name: NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Show one base model: licence, size, where it lies."""
    from luthier.service import models

    with open_context(home) as context:
        view = models.show_model(context, name)
    return Answer(as_json, view.model_dump(mode="json"), lambda console: _show_one(console, view))


def rm(name: NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Delete a base model from this machine. A folder of your own is only forgotten, never deleted."""
    from luthier.service import models

    with open_context(home) as context:
        view = models.remove_model(context, name)

    def tell(console: Console) -> None:
        console.print(f"removed {view.name}", soft_wrap=True)

    return Answer(as_json, {"removed": view.name, "source": view.source, "num_bytes": view.num_bytes}, tell)


def check(
    name: NameArgument,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Rows to try in place of one of each kind.")
    ] = None,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", metavar="SECONDS", help="Of all parts together; the rest is left out.")
    ] = 600.0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Try a base model: rows, plan, loss, a step, text and scores, against transformers. Exit code 1: not all work.

    The model is pulled where it is not on this machine; all else that is made is thrown away.
    """
    from luthier.service.model_check import check_model

    with open_context(home) as context:
        found = check_model(context, name, rows=rows, max_seconds=max_seconds)
    document = found.model_dump(mode="json") | {"works": found.works}
    return Answer(as_json, document, lambda console: _show_check(console, found), exit_code=0 if found.works else 1)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "list": list_models,
    "pull": pull,
    "show": show,
    "check": check,
    "rm": rm,
}


def _show_all(console: Console, views: list[ModelView]) -> None:
    from luthier.cli import figures
    from luthier.cli.console import make_table, visible

    table = make_table(["name", "licence", "chat", "on this machine", "parameters", "context"], num_text_columns=4)
    for view in views:
        table.add_row(
            visible(view.name),
            visible(view.licence),
            "yes" if view.has_chat_template else "no",
            figures.size(view.num_bytes) if view.num_bytes is not None else "no",
            figures.count(view.num_parameters),
            figures.count(view.context_length_tokens),
        )
    console.print(table)


def _show_check(console: Console, found: ModelCheck) -> None:
    from luthier.cli import figures
    from luthier.cli.console import facts, make_table, visible

    rows = [
        ("model", found.model),
        ("architecture", found.architecture or "-"),
        ("parameters", figures.count(found.num_parameters)),
        ("context", f"{found.context_length_tokens:,} tokens"),
        ("layers", found.layers),
    ]
    facts(console, rows)
    table = make_table(["part", "ends", "by which path, or why not", "figures", "s"], num_text_columns=4)
    for one in found.checks:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in one.measures.items())
        ending = one.status.replace("_", " ")
        table.add_row(visible(one.name), ending, visible(one.path or one.reason), shown, f"{one.seconds:.1f}")
    console.print(table)
    for one in found.checks:
        if one.remedy:
            console.print(f"{visible(one.name)}: {visible(one.remedy)}", soft_wrap=True)


def _show_one(console: Console, view: ModelView) -> None:
    from luthier.cli import figures
    from luthier.cli.console import facts

    rows = [
        ("name", view.name),
        ("title", view.title),
        ("licence", view.licence + (f"  {view.licence_url}" if view.licence_url else "")),
        ("parameters", figures.count(view.num_parameters)),
        ("context", f"{view.context_length_tokens:,} tokens"),
        ("chat template", "yes" if view.has_chat_template else "no: a base model, trained with plain text prompts"),
        ("architecture", view.architecture or "-"),
        ("size", figures.size(view.num_bytes) if view.num_bytes is not None else "-"),
        ("sha256", view.sha256 or "-"),
        ("path", view.path or f"not on this machine: luthier models pull {view.name}"),
    ]
    facts(console, rows + ([("note", view.note)] if view.note else []))
