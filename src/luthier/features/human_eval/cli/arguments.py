"""What the commands of `luthier human-eval` share: options, links, and reading a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.features.human_eval.links import RaterLink

PanelArgument = Annotated[str, typer.Argument(metavar="PANEL", help="A panel's id, from `luthier human-eval list`.")]
ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project that the panel belongs to.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes.")]


def link_document(made: RaterLink, root: str) -> dict[str, str]:
    """A rater with the address that lets them in."""
    return {"rater": made.rater.name, "rater_id": made.rater.rater_id, "url": f"{root}{made.path}", "path": made.path}


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises NotFoundError."""
    from luthier.core.errors import NotFoundError

    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", expected="a file that can be read", do="correct it") from error
