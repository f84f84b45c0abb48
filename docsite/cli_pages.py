"""Pages about the commands, from the commands themselves: what `luthier VERB --help` knows, one page a verb."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

HEAD = """# Commands

Every command takes `--home`, and all but `mcp` take `--json` (one document on stdout). Exit codes: 0 done, 1 the work
failed, 2 the request is wrong, 130 interrupted. These pages are generated from the help of the commands.

"""


def pages() -> dict[str, str]:
    """Markdown by file name: `index.md` with all verbs, and one page for each of them."""
    from luthier.cli.main import command_tree

    app = command_tree()
    verbs = dict(app.commands)  # type: ignore[attr-defined]
    lines = [f"| [`luthier {name}`]({_file(name)}) | {_cell(_short(verb))} |" for name, verb in verbs.items()]
    index = HEAD + "| command | what it does |\n|---|---|\n" + "\n".join(lines) + "\n"
    return {"index.md": index} | {_file(name): _page(f"luthier {name}", verb) for name, verb in verbs.items()}


def _file(name: str) -> str:
    """The page of a verb: `export benchmark` has a blank in its name, its address has none."""
    return f"{name.replace(' ', '-')}.md"


def _page(title: str, command: click.Command) -> str:
    return "\n\n".join([f"# {title}", *_parts(title, command, 2)]) + "\n"


def _parts(title: str, command: click.Command, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=title)
    below = getattr(command, "commands", {})
    if not below:
        yield "```console\n$ " + " ".join([title, *command.collect_usage_pieces(context)]) + "\n```"
    if command.help:
        yield _text(command.help)
    for kind, name in (("argument", "Arguments"), ("option", "Options")):
        rows = [_row(one, context) for one in command.params if one.param_type_name == kind]
        if rows and not below:
            yield f"| {name.lower()} | |\n|---|---|\n" + "\n".join(rows)
    for name, one in below.items():
        yield f"{'#' * level} {title} {name}"
        yield from _parts(f"{title} {name}", one, level + 1)


def _row(parameter: click.Parameter, context: click.Context) -> str:
    name, text = parameter.get_help_record(context) or (parameter.make_metavar(context), "")
    return f"| `{_cell(name)}` | {_cell(text)} |"


def _short(command: click.Command) -> str:
    return command.short_help or (command.help or "").partition("\n\n")[0].replace("\n", " ")


def _text(text: str) -> str:
    """Help text as Markdown: click keeps paragraphs after \\b as they are, so does a block of code."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        "```text\n" + one.removeprefix("\b\n") + "\n```" if one.startswith("\b") else _plain(one) for one in paragraphs
    )


def _plain(text: str) -> str:
    return re.sub(r"([<>*_])", r"\\\1", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
