"""How a command ended: with an answer or with an error, and what to say of it."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from typing import Any, TextIO

import typer

from luthier.core.errors import LuthierError
from luthier.core.json_limits import json_utf8
from luthier.core.system.disk_full import is_disk_full, storage_full
from luthier.platform.cli.answer import Answer

# Typer's own class of wrong usage (it moved between versions); the public BadParameter is one of its children.
_USAGE_ERROR = typer.BadParameter.__mro__[1]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended. Without an answer and an error all was printed already (help, version).

    Attributes:
        exit_code: The exit code of the process.
        answer: The answer; None for an error.
        error: The error as a document, as `LuthierError.as_json` writes it.
        text: The error for a person.
    """

    exit_code: int
    answer: Answer | None = None
    error: dict[str, Any] | None = None
    text: str = ""

    def write_json(self, stdout: TextIO) -> None:
        """One document on stdout; the text of an error on stderr."""
        if self.error is not None:
            self._write_error()
        if self.answer is not None or self.error is not None:
            # Exactly one document in any case, so that programs can parse stdout without looking at the exit code.
            document = self.answer.document if self.answer is not None else {"error": self.error}
            stdout.write(json_utf8(document, indent=2, allow_nan=False).decode() + "\n")
            stdout.flush()

    def write_text(self) -> None:
        """The answer on stdout, or the error on stderr."""
        if self.error is not None:
            self._write_error()
        elif self.answer is not None:
            from luthier.platform.cli.console import stdout_console

            self.answer.show(stdout_console())

    def _write_error(self) -> None:
        from rich.text import Text

        from luthier.platform.cli.console import stderr_console, visible

        first, _, rest = visible(self.text).partition("\n")
        style = "bold red" if first.startswith("Error") else ""
        stderr_console().print(Text.assemble((first, style), f"\n{rest}" if rest else ""), soft_wrap=True)


def end_of(error: BaseException) -> Ending:
    """What an error means to the one who asked."""
    if isinstance(error, LuthierError):
        return Ending(error.exit_code, error=error.as_json(), text=f"Error: {error}")
    if isinstance(error, _USAGE_ERROR):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt):
        return _failed_command(130, "Interrupted", "interrupted", "the work to end by itself", "run the command again")
    # Before OSError in general, and by its causes: libraries wrap it in errors of their own.
    if is_disk_full(error):
        return end_of(storage_full(error))
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        came = f"{error.filename}: {error.strerror}"
        return _failed_command(
            1, type(error).__name__, came, "a place that can be used", "check it, its permissions and its disk"
        )
    trace = "".join(traceback.format_exception(error))
    came = f"{type(error).__name__}: {error}"
    do = "please report it with the lines above, the command, and what `luthier doctor` says"
    # Only a bug shows a traceback: every other ending says what to do.
    sys.stderr.write(trace)
    return _failed_command(1, "Bug", came, "Luthier to work, or to say what is wrong; this is a bug in Luthier", do)


def _failed_command(exit_code: int, kind: str, came: str, expected: str, do: str) -> Ending:
    document = {"type": kind, "came": came, "expected": expected, "do": do}
    return Ending(exit_code, error=document, text=f"Error: {came}\n  expected: {expected}\n  what to do: {do}")


def _usage(error: Any) -> Ending:
    came, context = error.format_message(), error.ctx
    path = context.command_path if context is not None else "luthier"
    expected = context.get_usage().removeprefix("Usage: ") if context is not None else "luthier COMMAND"
    do = f"see `{path} --help`"
    if came.startswith("Usage:"):  # a group without a command: its help is what the person needs
        document = {"type": "UsageError", "came": f"{path} without a command", "expected": expected, "do": do}
        return Ending(2, error=document, text=came)
    return _failed_command(2, "UsageError", came, expected, do)
