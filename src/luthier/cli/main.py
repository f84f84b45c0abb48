"""The entry point: `luthier VERB ...`. Turns every ending into an exit code and, under --json, into one document.

0    done
1    the work failed (or a bug, which alone shows a traceback)
2    the request is wrong
130  interrupted
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_type_hints

import typer
import typer.core

from luthier.cli import completion
from luthier.cli.commands import COMMANDS, Command, CommandGroup
from luthier.cli.help import epilog, write_commands
from luthier.cli.home_option import home_in, with_home
from luthier.core.aliases import COMMANDS as OLD_COMMANDS
from luthier.core.aliases import warn_renamed
from luthier.core.import_string import import_string
from luthier.core.system.process_setup import (
    collect_rarely,
    end_process,
    follow_starter,
    is_watched,
    keep_few_kernels,
    keep_products_exact,
    wait_briefly,
)
from luthier.core.text.printed_commands import naming_home
from luthier.platform.cli.command import Answer, Ending, end_of
from luthier.platform.cli.streams import NoReaderError, closed_elsewhere, discard


class _Commands(typer.core.TyperGroup):
    """Commands by their names of one or two words, and by the names that they had in an earlier version.

    `export` and `monitor` are commands with arguments, `export benchmark` and `monitor check` are others: the longest
    name that fits is taken. After `--` nothing is a name: `luthier monitor -- check` is about a model called check.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Old names first: they may have two words of which the first is a command today.
        for num_words in (2, 1):
            given = " ".join(args[:num_words])
            if given in OLD_COMMANDS:
                warn_renamed("command", f"luthier {given}", f"luthier {OLD_COMMANDS[given]}")
                args = [*OLD_COMMANDS[given].split(), *args[num_words:]]
                break
        two_words = " ".join(args[:2])
        if two_words in self.commands:
            args = [two_words, *args[2:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Carry out the command; at a connection that breaks, Typer would end the process without a word."""
        try:
            return super().invoke(ctx)
        except NoReaderError:
            raise
        except BrokenPipeError as error:
            raise closed_elsewhere() from error

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - as of click
        """The names of the commands; Typer would build each of them for that."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of the help in groups, from the table: no command is imported for its line."""
        write_commands({name: _line_of(name) for name in self.list_commands(ctx)}, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What the Tab key offers; names of two words would be cut at the blank."""
        return [item for item in super().shell_complete(ctx, incomplete) if " " not in str(item.value)]


class _LazyCommands(Mapping[str, Any]):
    """Commands by name, each built when it is first looked up.

    Typer evaluates the annotations of every option. For all commands together that takes longer than the other steps of
    a start, and one command line needs one or two of them.

    Args:
        builders: called when a name is first asked for; gives what builds each command.
    """

    def __init__(self, builders: Callable[[], Mapping[str, Callable[[], Any]]]) -> None:
        self._builders = functools.cache(builders)
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._builders()[name]()
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in self._builders()

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders())

    def __len__(self) -> int:
        return len(self._builders())


def command_tree() -> typer.core.TyperGroup:
    """The group of all commands; each command and each group is imported and built when it is first looked up."""
    # Help is plain text: rich's would cost half of the time that a start may take.
    app = typer.Typer(
        name="luthier",
        cls=_Commands,
        help="Fine-tune language models on your own machine, and get an honest answer to: was it worth it?",
        epilog=epilog(),
        rich_markup_mode=None,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_common)
    tree = typer.main.get_group(app)
    builders = {
        name: functools.partial(_command, name, entry)
        if isinstance(entry, Command)
        else functools.partial(_group, name, entry)
        for name, entry in COMMANDS.items()
    }
    tree.commands = cast(Any, _LazyCommands(lambda: builders))
    return tree


def _command(name: str, entry: Command) -> Any:
    """What Typer builds of one command."""
    kind = None if entry.kind is None else import_string(entry.kind)
    return _built_by_typer(
        name, import_string(entry.target), cls=kind, short_help=entry.short_help, epilog=entry.epilog
    )


def _group(name: str, entry: CommandGroup) -> typer.core.TyperGroup:
    """What Typer builds of a command with subcommands, which are built on lookup."""
    app = typer.Typer(name=name, help=entry.help, rich_markup_mode=None, no_args_is_help=True)
    group = typer.main.get_group(app)

    def builders() -> dict[str, Callable[[], Any]]:
        functions = {verb: one for verbs in entry.verbs for verb, one in import_string(verbs).items()}
        return {verb: functools.partial(_built_by_typer, verb, one) for verb, one in functions.items()}

    group.commands = cast(Any, _LazyCommands(builders))
    return group


def _built_by_typer(name: str, function: Callable[..., Any], **_options: Any) -> Any:
    """A command as its own app would have it; its numbers are finite and its paths not empty."""
    app = typer.Typer(rich_markup_mode=None)
    app.command(name, **_options)(function)
    built = typer.main.get_command_from_info(
        app.registered_commands[0],
        pretty_exceptions_short=app.pretty_exceptions_short,
        rich_markup_mode=app.rich_markup_mode,
    )
    _refuse_empty_paths(built, function)
    for parameter in built.params:
        parameter.callback = functools.partial(_finite, parameter.callback)
    return built


def _refuse_empty_paths(command: Any, function: Callable[..., Any]) -> None:
    """Have a command refuse empty texts for its paths: `--home "$UNSET"` would be the folder that it is called in.

    Args:
        command: What Typer has built; changed in place.
        function: What it was built of.
    """
    hints = get_type_hints(function)
    for parameter in command.params:
        if _is_path(hints.get(str(parameter.name))):
            parameter.process_value = functools.partial(_not_empty, parameter, parameter.process_value)


def _is_path(hint: Any) -> bool:
    """Whether an annotation is about one path or several."""
    return hint is Path or any(_is_path(inner) for inner in get_args(hint))


def _not_empty(parameter: Any, process: Callable[..., Any], context: Any, value: Any) -> Any:
    given = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(one, str) and not one for one in given):
        raise typer.BadParameter("an empty text is not a path; leave the option out, or name one", context, parameter)
    return process(context, value)


def _finite(callback: Callable[..., Any] | None, context: Any, parameter: Any, value: Any) -> Any:
    """What the callback of an option gives, for all but "nan" and "inf".

    Typer reads both as numbers, and some of its versions let NaN through a smallest and a largest value.

    Raises:
        RequestError: A number that is not finite.
    """
    for given in value if isinstance(value, list | tuple) else (value,):
        if isinstance(given, float) and not math.isfinite(given):
            from luthier.core.errors import RequestError

            name = max(parameter.opts, key=len)
            raise RequestError(f"{name} {given}", expected="a finite number", do=f"correct {name}")
    return value if callback is None else callback(context, parameter, value)


def _line_of(name: str) -> str:
    """What the help of `luthier` says about a command."""
    entry = COMMANDS[name]
    return entry.short_help if isinstance(entry, Command) else _group(name, entry).get_short_help_str(limit=100)


def main(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code."""
    home = home_in(arguments)
    with contextlib.nullcontext() if home is None else naming_home(functools.partial(with_home, home=home)):
        return _carried_out(arguments)


def _carried_out(arguments: Sequence[str]) -> int:
    wants_json = _wants_json(arguments)
    # Kept before it is redirected: the document goes there.
    stdout = sys.stdout
    # Even if a library prints, stdout carries the one document and nothing else.
    quiet = contextlib.redirect_stdout(sys.stderr) if wants_json else contextlib.nullcontext()
    with quiet:
        ending = _carry_out(arguments)
    try:
        if wants_json:
            ending.write_json(stdout)
        else:
            ending.write_text()
        stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; how the command has ended is not for it to decide.
        discard(stdout)
    except OSError as error:
        # The disk below the file that stdout goes to is full, or fails. Not tried again at exit.
        discard(stdout)
        if ending.error is None:  # else that was written already
            ending = end_of(error)
            ending.write_text()
    return ending.exit_code


def run() -> None:
    """What the installed script calls."""
    follow_starter()
    # Before any command imports torch, which reads these variables when it is loaded.
    wait_briefly()
    keep_few_kernels()
    keep_products_exact()
    collect_rarely()
    _escape_unprintable()
    code = 0
    try:
        code = main(sys.argv[1:])
    except BrokenPipeError:
        # The reader of a command that writes while it works is gone: no one reads the rest.
        # Python flushes stdout again at exit, and would print a second error about the broken pipe.
        discard(sys.stdout)
    except KeyboardInterrupt:
        code = 130
    # Taking torch and what it has loaded down would keep the shell waiting for a second.
    if "torch" in sys.modules and not is_watched():
        end_process(code)
    sys.exit(code)


def _escape_unprintable() -> None:
    """Write characters that the encoding of stdout lacks as escapes, as Python does on stderr.

    A pipe of Windows has the encoding of the region, in which the first such character would end the command.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _carry_out(arguments: Sequence[str]) -> Ending:
    command = command_tree()
    if completion.VARIABLE in os.environ:
        completion.prepare()
    try:
        # standalone_mode=False: click raises instead of printing and exiting, so that endings are ours to write.
        answer = command.main(args=list(arguments), prog_name="luthier", standalone_mode=False)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place that can report it
        if getattr(error, "ctx", error) is None:
            # The parser of options does not know which command it parses for.
            error.ctx = _called(command, arguments)  # type: ignore[union-attr]
        return end_of(error)
    if isinstance(answer, Answer):
        return Ending(answer.exit_code, answer=answer)
    if answer == 130:  # typer's word for an interrupt
        return end_of(KeyboardInterrupt())
    return Ending(answer if isinstance(answer, int) else 0)


def _called(command: Any, arguments: Sequence[str]) -> typer.Context:
    """The context of the command that the first words of a command line name."""
    names = ["luthier"]
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
        names.append(word)
    return typer.Context(command, info_name=" ".join(names))


def _wants_json(arguments: Sequence[str]) -> bool:
    options = list(arguments)
    if "--" in options:
        # Behind `--` it is the name of a thing.
        options = options[: options.index("--")]
    return "--json" in options and not {"--help", "--version"} & set(options)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"luthier {version('luthier')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
]


def _common(version: VersionOption = False) -> None:
    """Options of `luthier` itself; the help of the app says what it is."""
