"""Empty paths of a command line are refused: `--home "$UNSET"` would be the folder that the command is called in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer


def refuse_empty_paths(command: Any, function: Callable[..., Any]) -> None:
    """Have a command refuse empty texts for its paths.

    Args:
        command: What Typer has built; changed in place.
        function: What it was built of.
    """
    hints = get_type_hints(function)
    for parameter in command.params:
        if _is_path(hints.get(str(parameter.name))):
            parameter.process_value = partial(_checked, parameter, parameter.process_value)


def _is_path(hint: Any) -> bool:
    """Whether an annotation is about one path or several."""
    return hint is Path or any(_is_path(inner) for inner in get_args(hint))


def _checked(parameter: Any, process: Callable[..., Any], context: Any, value: Any) -> Any:
    given = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(one, str) and not one for one in given):
        raise typer.BadParameter("an empty text is no path; leave the option out, or name one", context, parameter)
    return process(context, value)
