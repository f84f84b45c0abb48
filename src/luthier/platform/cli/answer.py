"""What a command returns: one document, and how to show it to a person. Only `cli.main` writes it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a command.

    Attributes:
        as_json: Whether `--json` was given.
        document: For `--json`.
        show: Writes the same for a person.
        exit_code: 1 where the work failed without an error (a run that diverged and kept its last good state).
    """

    as_json: bool
    document: Any
    show: Callable[[Console], None]
    exit_code: int = 0
