"""`luthier gates`: the rules that a model must meet before it is deployed in a project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, caller_of, open_context

if TYPE_CHECKING:
    from rich.console import Console

_ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project of the deployments.")]


def show(project: _ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Show the rules for the deployments of a project, and the file that they come from."""
    from luthier.features.release_gates.service import default_gate, read_gate

    with open_context(home) as context:
        path = default_gate(context, caller_of(context, project).project_id)
        gate = None if path is None else read_gate(path)
        text = "" if path is None else path.read_text(encoding="utf-8")
    document = {"file": None if path is None else str(path)}
    document_rules = {} if gate is None else gate.model_dump(mode="json")

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import visible

        if path is None:
            line = "no gate: every model that was evaluated may be deployed. Set one: luthier gates set FILE"
            console.print(in_home(line))
            return
        console.print(visible(f"# {path}"), soft_wrap=True)
        console.print(visible(text.rstrip()), soft_wrap=True, markup=False)

    return Answer(as_json, document | {"gate": document_rules or None}, tell)


def set_gate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML with rules, as docs/release_gates.md shows.")],
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Set the gate of a project; it applies from the next deployment on."""
    from luthier.features.release_gates import service as gates

    gates.read_gate(file)
    with open_context(home) as context:
        caller = caller_of(context, project)
        gate = gates.set_gate(context, caller, file.read_text(encoding="utf-8"))
        path = gates.own_gate(context, caller.project_id)
    text = f"{path}: {len(gate.rules)} rule{'' if len(gate.rules) == 1 else 's'}"
    document = {"file": str(path), "gate": gate.model_dump(mode="json")}
    return Answer(as_json, document, lambda console: console.print(text, soft_wrap=True))


def remove(project: _ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Remove the gate of a project; then a gate.yaml in the home applies again."""
    from luthier.features.release_gates import service as gates

    with open_context(home) as context:
        caller = caller_of(context, project)
        gates.remove_gate(context, caller)
        left = gates.default_gate(context, caller.project_id)
    text = "no gate holds now" if left is None else f"{left} holds now"
    document = {"file": None if left is None else str(left)}
    return Answer(as_json, document, lambda console: console.print(text, soft_wrap=True))


COMMANDS: dict[str, Callable[..., Answer]] = {"show": show, "set": set_gate, "remove": remove}
