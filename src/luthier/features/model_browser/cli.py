"""`luthier models`: base models, and what runs have made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.base_model import TrainingMemory
    from luthier.features.model_cards.service import TunedView
    from luthier.features.models.service import ModelView

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name from `luthier models list`, hub:org/name@revision, a folder, a .gguf file, or layers:15@MODEL.",
    ),
]
_ShownArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A name as for `luthier models pull`; also a run, a tuned model (ft:...), or a deployment."
    ),
]


def list_models(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the base models that Luthier knows, and which of them are on this machine."""
    from luthier.features.models import service as models

    with open_context(home) as context:
        views = models.list_models(context)
    return Answer(as_json, [view.model_dump(mode="json") for view in views], lambda console: _show_all(console, views))


def pull(name: NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Fetch a base model, check its digest, and make it ready to train. Does nothing if it is already on this
    machine."""
    from luthier.features.models import service as models

    with open_context(home) as context:
        view = models.pull_model(context, name)
    return Answer(as_json, view.model_dump(mode="json"), lambda console: _show_one(console, view))


def show(name: _ShownArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Show one base model: licence, size, path. For a run or a tuned model: its base, its verdict, its head."""
    from luthier.features.models import service as models
    from luthier.features.models.names import find_model

    with open_context(home) as context:
        found = find_model(context, name)
        if found.run_id is not None:
            from luthier.core.access import Caller
            from luthier.features.model_cards.service import find_tuned

            tuned = find_tuned(context, Caller(), found.run_id)
            return Answer(as_json, _tuned_document(tuned), lambda console: _show_tuned(console, tuned))
        view = models.show_model(context, found.name)
    return Answer(as_json, view.model_dump(mode="json"), lambda console: _show_one(console, view))


def rm(name: NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Delete a base model from this machine, unless a deployment, an unfinished run or a running command needs it. A
    folder of your own is only forgotten, never deleted."""
    from luthier.features.model_browser.removal import remove_local_base

    with open_context(home) as context:
        view = remove_local_base(context, name)

    def tell(console: Console) -> None:
        console.print(f"removed {view.name}", soft_wrap=True)

    return Answer(as_json, {"removed": view.name, "source": view.source, "num_bytes": view.num_bytes}, tell)


def check(
    name: NameArgument,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Rows to try instead of one of each kind.")
    ] = None,
    max_seconds: Annotated[
        float,
        typer.Option(
            "--max-seconds", metavar="SECONDS", help="Time limit for all parts together; the rest is skipped."
        ),
    ] = 600.0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Try a base model: rows, plan, loss, a step, text and scores, compared with transformers. Exit code 1 if a part
    fails.

    The model is downloaded if it is not on this machine; all other files are deleted afterwards.
    """
    from luthier.features.model_checks.service import check_model, show_check

    with open_context(home) as context:
        found = check_model(context, name, rows=rows, max_seconds=max_seconds)
    document = found.model_dump(mode="json") | {"works": found.works}
    return Answer(as_json, document, lambda console: show_check(console, found), exit_code=0 if found.works else 1)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "list": list_models,
    "pull": pull,
    "show": show,
    "check": check,
    "rm": rm,
}


def _show_all(console: Console, views: list[ModelView]) -> None:
    """One line a model, then what the columns mean."""
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import make_table, visible

    columns = ["name", "licence", "chat", "here", "size", "active", "context", "LoRA", "QLoRA", "full"]
    table = make_table(columns, num_text_columns=4)
    table.columns[0].no_wrap, table.columns[1].min_width = True, len("Apache-2.0")
    for view in views:
        memory = view.training_memory
        table.add_row(
            visible(view.name),
            visible(view.licence) + (" (gated)" if view.is_gated else ""),
            "yes" if view.has_chat_template else "no",
            figures.size(view.num_bytes) if view.num_bytes is not None else "no",
            figures.count(view.num_parameters),
            figures.count(view.num_active_parameters) if view.num_active_parameters else "",
            figures.count(view.context_length_tokens),
            *(_gigabytes(value) for value in _figures(memory)),
        )
    console.print(table)
    console.print("here: bytes on this machine; size: parameters; active: those that one token meets", soft_wrap=True)
    console.print(f"LoRA, QLoRA, full: GB, {_WHAT_MEMORY}", soft_wrap=True)
    console.print("gated: the hub requires an account that has accepted the model's terms (HF_TOKEN)", soft_wrap=True)


_WHAT_MEMORY = (
    "peak memory of one accelerator as the planner predicts it, rows of 2,048 tokens one at a time; what one device "
    "does not have is spread over several. `luthier plan` predicts your own run"
)


def _figures(memory: TrainingMemory | None) -> tuple[float | None, ...]:
    return (memory.lora_bytes, memory.qlora_bytes, memory.full_bytes) if memory else (None, None, None)


def _gigabytes(num_bytes: float | None) -> str:
    """As a figure of a column: one digit after the point where there is one before it."""
    if num_bytes is None:
        return "-"
    value = num_bytes / 1e9
    # 9.95 rounds to 10.0: the limit keeps both forms at two significant digits.
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _memory(num_bytes: float | None) -> str:
    from luthier.platform.cli import figures

    return "-" if num_bytes is None else figures.size(num_bytes, in_decimal=True)


def _show_one(console: Console, view: ModelView) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts

    active = f", {figures.count(view.num_active_parameters)} of them for a token" if view.num_active_parameters else ""
    rows = [
        ("name", view.name),
        ("title", view.title),
        ("licence", view.licence + (f"  {view.licence_url}" if view.licence_url else "")),
        ("parameters", figures.count(view.num_parameters) + active),
        ("context", f"{view.context_length_tokens:,} tokens"),
        ("chat template", "yes" if view.has_chat_template else "no: a base model, trained with plain text prompts"),
        ("architecture", view.architecture or "-"),
        ("size", figures.size(view.num_bytes) if view.num_bytes is not None else "-"),
        ("sha256", view.sha256 or "-"),
        ("path", view.path or in_home(f"not on this machine: luthier models pull {view.name}")),
    ]
    facts(console, rows + _of_catalogue(view) + ([("note", view.note)] if view.note else []))


def _tuned_document(view: TunedView) -> dict[str, Any]:
    record, result, evaluation = view.record, view.record.result, view.evaluation
    verdict = None if evaluation is None or evaluation.verdict is None else evaluation.verdict
    return {
        "name": view.name,
        "source": "run",
        "run_id": record.run_id,
        "base_model": record.base_model,
        "method": record.method,
        "names": list(view.names),
        "deployments": list(view.deployments),
        "path": None if result is None else result.adapter_path,
        "sha256": None if result is None else result.adapter_sha256,
        "evaluation_id": None if evaluation is None else evaluation.evaluation_id,
        "verdict": None if verdict is None else {"word": verdict.word, "headline": verdict.headline},
        "task_head": None if view.head is None else view.head.model_dump(mode="json"),
    }


def _show_tuned(console: Console, view: TunedView) -> None:
    from luthier.platform.cli.console import facts

    document = _tuned_document(view)
    rows = [
        ("name", view.name),
        ("run", view.record.run_id),
        ("base model", view.record.base_model),
        ("method", view.record.method),
        (
            "names",
            ", ".join((*view.names, *view.deployments))
            or in_home(f"none: luthier deploy {view.record.run_id} --as NAME"),
        ),
        ("verdict", document["verdict"]["headline"] if document["verdict"] else "none: it was not evaluated"),
        ("sha256", document["sha256"] or "-"),
        ("path", document["path"] or "-"),
    ]
    # A model that writes text is talked with; the facts of a head say what it gives.
    rows += [("gives", "text")] if view.head is None else list(view.head.facts.items())
    facts(console, rows)
    command = "luthier chat" if view.head is None else "luthier predict"
    console.print(in_home(f"Try it: {command} {view.name}{_example_options(view)}"), soft_wrap=True)


def _example_options(view: TunedView) -> str:
    """What `luthier predict` needs besides the model."""
    if view.head is None:
        return ""
    return " --query TEXT --text TEXT" if view.head.kind == "rank" else " --text TEXT"


def _of_catalogue(view: ModelView) -> list[tuple[str, str]]:
    """What is known of a model from the catalogue and from its hub."""
    rows = []
    if view.training_memory is not None:
        lora, qlora, full = map(_memory, _figures(view.training_memory))
        rows.append(("to train it", f"LoRA {lora}, QLoRA {qlora}, full {full}: {_WHAT_MEMORY}"))
    for name, values in view.template_options.items():
        rows.append(("template option", f"{name}: {' | '.join(json.dumps(value) for value in values)}"))
    if view.hub is not None:
        rows.append(("hub", view.hub + ("" if view.is_pinned else ": no commit is pinned, a pull takes the newest")))
    if view.is_gated:
        rows.append(("gated", "accept the terms on the model's page, and set HF_TOKEN to a token of that account"))
    if view.commit is not None:
        rows.append(("commit", view.commit))
    if view.never_fetched:
        rows.append(("never fetched", f"{', '.join(view.never_fetched)}: code and pickles stay where they are"))
    if view.sources:
        rows.append(("figures from", "; ".join(view.sources)))
    if view.unchecked:
        rows.append(("unchecked", f"{', '.join(view.unchecked)}: no public file that was read confirms it"))
    return rows
