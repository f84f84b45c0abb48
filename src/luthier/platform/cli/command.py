"""What all commands share: options, opening the home, the answer, and how a command ends.

A command returns one document and how to show it to a person. Only `cli.main` writes it out.
"""

from __future__ import annotations

import codecs
import io
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TextIO

import typer

from luthier.core.errors import LuthierError
from luthier.core.json_limits import json_utf8
from luthier.core.system.files import is_disk_full, storage_full
from luthier.core.text.printed_commands import in_home

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Caller
    from luthier.core.errors import RequestError
    from luthier.core.evaluation_plan import GoodEnoughRecipe
    from luthier.platform.home.context import Context

ANY_MODEL: Final = "a run, a tuned model (ft:...), a deployment, a base model, a folder or a GGUF file"
"""What `features/models/names.py` finds a model by; here too, since help texts load as little as they can."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The folder for all of Luthier's data [default: LUTHIER_HOME, or ~/.luthier].", metavar="DIR"
    ),
]
ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="Name or id of the project.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a value of the recipe, such as training.epochs=3. Repeatable.", metavar="KEY=VALUE"
    ),
]
BudgetHoursOption = Annotated[
    float | None,
    typer.Option("--budget-hours", metavar="H", help="Pause after this many hours.", show_default=False),
]
BudgetUsdOption = Annotated[
    float | None,
    typer.Option("--budget-usd", metavar="USD", help="Pause after spending this much money.", show_default=False),
]
BudgetTokensOption = Annotated[
    int | None,
    typer.Option("--budget-tokens", metavar="N", help="Pause after this many trained tokens.", show_default=False),
]
BudgetKwhOption = Annotated[
    float | None,
    typer.Option("--budget-kwh", metavar="KWH", help="Pause after using this much energy.", show_default=False),
]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", min=1, help="Train with this many processes here, each with its own GPU."),
]
AllowUnsignedOption = Annotated[
    bool,
    typer.Option(
        "--allow-unsigned", help="Accept unsigned uploads, such as older ones, although LUTHIER_CHECKPOINT_KEY is set."
    ),
]
CheckpointsOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        metavar="URL",
        help="Upload checkpoints to this place, such as s3://bucket/folder [default: LUTHIER_CHECKPOINTS].",
        show_default=False,
    ),
]
PricesOption = Annotated[
    Path | None,
    typer.Option("--prices", help="A file with your own prices (format: docs/cost.md).", metavar="FILE"),
]
GoodEnoughOption = Annotated[
    str | None,
    typer.Option(
        "--good-enough",
        metavar="[METRIC=]VALUE",
        help="The target that the model must reach: 0.9, label_accuracy=0.9, agreement=COLUMN (how often a second "
        "person's answers in that column agree with the rows), or error=20,answer=2 (what a wrong answer costs, and an "
        "answer by a person). The verdict states whether it is reached.",
    ),
]
OptimisedPromptOption = Annotated[
    int | None,
    typer.Option(
        "--optimised-prompt",
        metavar="TOKENS",
        min=0,
        help="Also evaluate the base model with the best prompt found by a search of this many tokens; 0: no search.",
    ),
]
ReflectionModelOption = Annotated[
    str | None,
    typer.Option(
        "--reflection-model",
        metavar="MODEL",
        help="With --optimised-prompt: a base model, a run or http(s)://host:port/v1#MODEL that writes new "
        "instructions from mistakes on training rows; a server is sent some of these rows.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
MappingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD=NAME", help="Map a field to a column of the file, such as prompt=question. Repeatable."
    ),
]


def _free_page(path: Path | None) -> Path | None:
    """Before anything is worked out: a page replaces no file that is none."""
    if path is not None:
        from luthier.ml.data.rows.outputs import check_replaceable

        check_replaceable(path, "page", b"<!doctype html", b"<html")
    return path


PageOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML page with charts.", callback=_free_page)
]
SuitePageOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="PATH", help="With --suite: write the result as an HTML page.", callback=_free_page),
]

DEFAULT_URL: Final = "http://127.0.0.1:8520"
UrlOption = Annotated[str, typer.Option("--url", metavar="URL", help="The address of the server of this home.")]
LinksUrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The address that links begin with [default: LUTHIER_PUBLIC_URL, or the one set for the project].",
    ),
]


def checked_url(url: str) -> str:
    """A URL without a slash at its end.

    Raises:
        RequestError: The text is no http or https URL.
    """
    from urllib.parse import urlsplit

    from luthier.core.errors import RequestError

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RequestError(
            f"--url {url!r}", expected="http://HOST:PORT or https://HOST", do="give it as `luthier up` printed it"
        )
    return url.rstrip("/")


def parse_template_options(pairs: Sequence[str]) -> dict[str, bool | int | float | str]:
    """`enable_thinking=false` -> {"enable_thinking": False}; values as a recipe has them: `no` is a text.

    Raises:
        RequestError: A pair has no name, no plain value, or a name that was given before.
    """
    from luthier.core.errors import RequestError
    from luthier.core.text.plain_yaml import parse_yaml

    options: dict[str, bool | int | float | str] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        try:
            value, _ = parse_yaml("--template-option", text)
        except RequestError:
            value = None
        if not separator or not name or name in options or not isinstance(value, bool | int | float | str):
            raise RequestError(
                f"--template-option {pair!r}" + (f" gives {name!r} a second time" if name in options else ""),
                expected="the name of an option, an equals sign and a value: true, false, a number or a word",
                do="write for example: --template-option enable_thinking=false",
            )
        options[name] = value
    return options


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """`prompt=question` -> {"prompt": "question"}.

    Raises:
        RequestError: A pair is incomplete, or its field was given before.
    """
    from luthier.core.errors import RequestError

    fields: dict[str, str] = {}
    for pair in pairs:
        field, separator, name = pair.partition("=")
        if not separator or not field or not name or field in fields:
            raise RequestError(
                f"--map {pair!r}" + (f" gives {field!r} a second time" if field in fields else ""),
                expected="a field of Luthier's, an equals sign and a field of the file, each field once",
                do="write for example: --map prompt=question --map completion=answer",
            )
        fields[field] = name
    return fields


def parse_good_enough(text: str | None) -> GoodEnoughRecipe | None:
    """`label_accuracy=0.9`, `0.9`, `agreement=COLUMN`, or `error=20,answer=2`. None stays None.

    A number alone is about the metric that the verdict rests on; costs of an error and of an answer by a person are
    about the share of right answers.

    Raises:
        RequestError: There is no number or column in it, or nothing before the equals sign.
    """
    if text is None:
        return None
    from luthier.core.evaluation_plan import GoodEnoughRecipe

    if text.startswith("agreement=") and text.partition("=")[2].strip():
        return GoodEnoughRecipe(agreement=text.partition("=")[2].strip())
    if costs := _COSTS.fullmatch(text.replace(" ", "")):
        return _by_costs(text, *map(float, costs.groups()))
    metric, separator, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or bool(separator) != bool(metric.strip()):
        raise _wrong_bar(text, "a number, METRIC=NUMBER, agreement=COLUMN, or error=COST,answer=COST")
    return GoodEnoughRecipe(metric=metric.strip() or None, value=number)


_COSTS: Final = re.compile(r"error=(\d+(?:\.\d+)?),answer=(\d+(?:\.\d+)?)")


def _by_costs(text: str, error: float, answer: float) -> GoodEnoughRecipe:
    from luthier.core.evaluation_plan import GoodEnoughRecipe

    if not 0 < answer < error:
        raise _wrong_bar(text, "costs above 0, that of an error above that of an answer by a person")
    return GoodEnoughRecipe.model_validate({"cost_of_an_error": error, "cost_of_an_answer": answer})


def _wrong_bar(text: str, expected: str) -> RequestError:
    from luthier.core.errors import RequestError

    return RequestError(
        f"--good-enough {text!r}",
        expected=expected,
        do="write for example: --good-enough 0.9, --good-enough label_accuracy=0.9, --good-enough "
        "agreement=second_label, or --good-enough error=20,answer=2",
    )


EngineOption = Annotated[
    Literal["auto", "transformers", "llama_cpp", "vllm"],
    typer.Option(
        "--engine",
        help="auto: llama_cpp for GGUF files; otherwise vllm with a GPU; otherwise transformers, or llama_cpp if a "
        "proved GGUF copy is faster.",
    ),
]


def refuse_beside_resume(context: typer.Context) -> None:
    """Refuse what would be ignored: with --resume the request is that of the beginning.

    Args:
        context: Of the command line.

    Raises:
        RequestError: Something else than --project, --home and --json is given beside --resume.
    """
    from luthier.core.errors import RequestError

    # By their source, not by their value: an option may be given with its default.
    given = {
        str(one.name): one.opts[0] if one.param_type_name == "option" else str(one.name).upper()
        for one in context.command.params
        if (source := context.get_parameter_source(str(one.name))) is not None and source.name == "COMMANDLINE"
    }
    extra = [name for key, name in given.items() if key not in ("resume", "project", "home", "as_json")]
    if "resume" in given and extra:
        raise RequestError(
            f"--resume with {', '.join(extra)}",
            expected="--resume alone: the request stays as it began",
            do="leave the rest out, or begin another one",
        )


_COMMAND: Final = re.compile(r"[a-z][a-z-]{0,30}")


def open_context(
    home: Path | None, *, checkpoints: str | None = None, allow_unsigned: bool = False, holds_models: bool = True
) -> Context:
    """The context that a command works in; use it in a `with` block.

    Args:
        home: The folder; None takes that of the environment.
        checkpoints: Where checkpoints are uploaded to; None takes the place of the environment.
        allow_unsigned: Whether uploads without a signature are used although there is a key.
        holds_models: Whether models that the command looks up by name are kept from removal until it has ended. Not for
            a server or a worker: the models that their jobs need are in the database.

    Raises:
        RequestError: The home cannot be used.
    """
    from luthier.platform.cli.progress import make_progress
    from luthier.platform.home.context import Context

    context = Context.open(home, progress=make_progress())
    if checkpoints is not None:
        from pydantic import SecretStr

        # A URL may hold a password.
        context.settings = context.settings.model_copy(update={"checkpoints": SecretStr(checkpoints)})
    if allow_unsigned:
        context.settings = context.settings.model_copy(update={"checkpoint_allow_unsigned": True})
    if holds_models:
        # The first word alone: later ones may be secret. A person finds the process by its number.
        word = next((word for word in sys.argv[1:2] if _COMMAND.fullmatch(word)), "")
        context.hold_models(f"luthier {word}".strip())
    return context


def caller_of(context: Context, project: str) -> Caller:
    """The person at this machine as the caller, in a project by its name or id.

    Generations that the command asks for from then on are those of the project.

    Raises:
        NotFoundError: There is no such project.
    """
    from luthier.core.access import Caller

    context.cache_project_id = context.access.project(project).project_id
    return Caller(project_id=context.cache_project_id)


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
            if isinstance(stdout, io.TextIOWrapper) and codecs.lookup(stdout.encoding).name != "utf-8":
                stdout.reconfigure(encoding="utf-8")  # as programs read JSON (RFC 8259), whatever the region's is
            stdout.write(_json(document) + "\n")
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


def _json(document: Any) -> str:
    """The document as JSON; null for a number that JSON does not have: the work is done, and its other figures hold."""
    try:
        return json_utf8(document, indent=2, allow_nan=False).decode()
    except ValueError:
        return json_utf8(_without_infinity(document), indent=2, allow_nan=False).decode()


def _without_infinity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_infinity(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def end_of(error: BaseException) -> Ending:
    """What an error means to the one who asked."""
    if isinstance(error, LuthierError):
        do, text = in_home(error.do), str(error)
        if text.endswith(error.do):
            text = text.removesuffix(error.do) + do
        return Ending(error.exit_code, error=error.as_json() | {"do": do}, text=f"Error: {text}")
    if isinstance(error, _USAGE_ERROR):
        return _usage(error)
    if isinstance(error, typer.Abort):
        # Typer raises it for Ctrl-C and Ctrl-D at its own question, and in place of any EOFError, such as that of
        # a compressed file that was cut off.
        if isinstance(error.__cause__, EOFError):
            return end_of(error.__cause__)
        error = KeyboardInterrupt()
    if isinstance(error, KeyboardInterrupt):
        return _failed_command(130, "Interrupted", "interrupted", "the work to end by itself", "run the command again")
    # Before OSError in general, and by its causes: libraries wrap it in their own errors.
    if is_disk_full(error):
        return end_of(storage_full(error))
    from luthier.core.system.machine_memory import is_out_of_memory, memory_short

    if is_out_of_memory(error):
        do = "end other programs, or run the command with less work at a time; what is finished is not computed again"
        return end_of(memory_short(error, what="memory ran out", do=do))
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
