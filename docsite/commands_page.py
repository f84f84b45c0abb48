"""docs/commands.md: the list of all commands with one line each, from the commands themselves.

    python docsite/commands_page.py        # write it; a test holds the list and the commands together

The part of the page above the list is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
_BEGIN: Final = "<!-- commands: written by docsite/commands_page.py -->\n"
_END: Final = "<!-- end of commands -->\n"


def text() -> str:
    """The page as it is, with a new list."""
    above, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    below = rest.partition(_END)[2]
    return f"{above}{_BEGIN}\n" + "\n".join(_groups()) + f"\n{_END}{below}"


def _groups() -> Iterator[str]:
    """A table for each group of the help, in its order."""
    from luthier.cli.help import GROUPS
    from luthier.cli.main import command_tree

    commands: dict[str, Any] = dict(command_tree().commands)
    for title, names in GROUPS.items():
        yield from (f"### {title}", "", "| command | what it does |", "|---|---|")
        for name in names:
            yield from _rows(name, commands.pop(name))
        yield ""
    assert not commands, f"in no group of the help: {', '.join(commands)}"


def _rows(name: str, command: Any) -> Iterator[str]:
    """One row for a command, or one for each of its subcommands."""
    if below := getattr(command, "commands", {}):
        for verb, one in below.items():
            yield _row(f"{name} {verb}", one)
        return
    yield _row(name, command)


def _row(name: str, command: Any) -> str:
    line = command.short_help or (command.help or "").partition("\n\n")[0]
    return f"| `luthier {name}` | {' '.join(line.split()).replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
