"""`luthier import`: a recipe of a file that another tool is started with."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.platform.cli.command import Answer, ForceOption, HomeOption, JsonOption, SetOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.recipes.imports.service import Imported
    from luthier.features.recipes.imports.translation import Entry

_TITLES = {
    "translated": "translated",
    "set": "set by --set",
    "default": "defaults of the tool, written out",
    "harmless": "not needed: they do not change what is trained",
    "left_out": "left out by --allow-missing",
}


def import_recipe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other tool's file, as YAML or JSON.")],
    tool: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TOOL",
            help="axolotl, llama_factory, trl, unsloth or openai [default: recognised by the keys].",
        ),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            "--trainer",
            metavar="NAME",
            help="TRL's trainer, if the keys do not show it: sft, dpo, kto, reward or grpo.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the recipe to this file.")
    ] = None,
    overrides: SetOption = None,
    allowed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-missing", metavar="KEY", help="Leave out this key, which has no counterpart. Repeatable."
        ),
    ] = None,
    num_devices: Annotated[
        int,
        typer.Option(
            "--devices",
            metavar="N",
            min=1,
            help="Number of devices that the file is run on; multiplies the batch size.",
        ),
    ] = 1,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Translate a file of axolotl, LLaMA-Factory, TRL, Unsloth or OpenAI into a recipe.

    Every key is translated, listed as not needed, or refused: nothing is left out silently. Where the other tool has a
    default that changes training, its value is written into the recipe. For a refused key, set the recipe's own key
    with --set, or leave it out with --allow-missing.
    """
    from luthier.features.recipes.imports import service
    from luthier.ml.data.rows.outputs import write_output

    _check_options(tool, trainer, output, force=force)
    imported = service.import_recipe(
        file,
        target=(output.absolute().parent if output is not None else Path.cwd()),
        tool=tool,
        trainer=trainer,
        overrides=overrides or (),
        allowed=allowed or (),
        num_devices=num_devices,
    )
    if output is not None:
        from luthier.features.recipes.schema import LINE, write_schema

        write_output(output, (LINE + imported.text).encode(), force=force)
        write_schema(output.absolute().parent)
    is_local = _is_local(home, imported)
    document = imported.as_json() | {
        "output": str(output) if output is not None else None,
        "base_model_is_local": is_local,
    }
    return Answer(as_json, document, lambda console: _show(console, file, imported, output, is_local=is_local))


def _check_options(tool: str | None, trainer: str | None, output: Path | None, *, force: bool) -> None:
    from luthier.core.errors import RequestError
    from luthier.features.recipes.imports import service, trl
    from luthier.ml.data.rows.outputs import check_free

    for option, value, known in (("--from", tool, tuple(service.TOOLS)), ("--trainer", trainer, trl.TRAINERS)):
        if value is not None and value not in known:
            raise RequestError(f"{option} {value}", expected=f"one of {', '.join(known)}", do="correct the option")
    if output is not None and output.suffix.lower() not in (".yaml", ".yml"):
        raise RequestError(f"-o {output}", expected="a name that ends in .yaml", do="choose such a name")
    if output is not None:
        # Before the file is read, so that nothing is translated in vain.
        check_free([output], force=force)


def _is_local(home: Path | None, imported: Imported) -> bool:
    """Whether the base model is on this machine."""
    from luthier.core.errors import ModelSourceError, NotFoundError
    from luthier.ml.inference.models import sources

    with open_context(home) as context:
        try:
            return sources.find(imported.base_model, context.home) is not None
        except (NotFoundError, ModelSourceError):
            return False


def _show(console: Console, file: Path, imported: Imported, output: Path | None, *, is_local: bool) -> None:
    from luthier.platform.cli.console import facts, visible

    console.print(visible(f"{file}: {imported.version}"), soft_wrap=True, style="bold", markup=False)
    for outcome, title in _TITLES.items():
        chosen = [entry for entry in imported.entries if entry.outcome == outcome]
        if chosen:
            console.print(f"\n{title}", style="bold", markup=False)
            facts(console, [(f"  {entry.key}: {_short(entry.value)}", _right(entry)) for entry in chosen])
    if imported.notes:
        console.print("\ndifferent although every key is translated", style="bold", markup=False)
        for note in imported.notes:
            console.print(f"  {visible(note)}", soft_wrap=True, markup=False)
    console.print("")
    if output is None:
        console.print(visible(imported.text), soft_wrap=True, markup=False, highlight=False)
    else:
        console.print(f"recipe: {output}", soft_wrap=True, markup=False)
    name = imported.keys["base_model"]
    pull = "" if is_local else f"luthier models pull {shlex.quote(name)}, then "
    recipe = "RECIPE" if output is None else shlex.quote(str(output))
    console.print(visible(f"next: {pull}luthier plan {recipe}"), soft_wrap=True, markup=False)


def _right(entry: Entry) -> str:
    places = ", ".join(f"{place}: {_short(value)}" for place, value in entry.places.items())
    return " ".join(
        part for part in (f"-> {places}" if places else "", f"({entry.note})" if entry.note else "") if part
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
