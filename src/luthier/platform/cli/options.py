"""The options that many commands take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Where Luthier keeps its things [default: LUTHIER_HOME, or ~/.luthier].", metavar="DIR"
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set one value of the recipe, as training.epochs=3. Repeatable.", metavar="KEY=VALUE"),
]
BudgetHoursOption = Annotated[
    float | None,
    typer.Option("--budget-hours", metavar="H", help="Pause when this many hours are spent.", show_default=False),
]
BudgetUsdOption = Annotated[
    float | None,
    typer.Option("--budget-usd", metavar="USD", help="Pause when this much money is spent.", show_default=False),
]
BudgetTokensOption = Annotated[
    int | None,
    typer.Option("--budget-tokens", metavar="N", help="Pause when this many tokens are trained.", show_default=False),
]
BudgetKwhOption = Annotated[
    float | None,
    typer.Option("--budget-kwh", metavar="KWH", help="Pause when this much energy is used.", show_default=False),
]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", min=1, help="Train by so many processes of this machine, a GPU each."),
]
PricesOption = Annotated[
    Path | None,
    typer.Option("--prices", help="Your own prices, in the form that docs/cost.md shows.", metavar="FILE"),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that is there.")]
MappingOption = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FIELD=NAME", help="Which field is which, as prompt=question. Repeatable."),
]


def _free_page(path: Path | None) -> Path | None:
    """Before anything is worked out: a page replaces no file that is none."""
    if path is not None:
        from luthier.ml.data.rows.outputs import check_replaceable

        check_replaceable(path, "page", b"<!doctype html", b"<html")
    return path


PageOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots.", callback=_free_page)
]
SuitePageOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="PATH", help="With --suite: write the result as a page.", callback=_free_page),
]

DEFAULT_URL: Final = "http://127.0.0.1:8520"
UrlOption = Annotated[str, typer.Option("--url", metavar="URL", help="Where the server of this home answers.")]


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
    """`enable_thinking=false` -> {"enable_thinking": False}; values as YAML reads them.

    Raises:
        RequestError: A pair has no name, no plain value, or a name that was given before.
    """
    import yaml

    from luthier.core.errors import RequestError

    options: dict[str, bool | int | float | str] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
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


EngineOption = Annotated[
    Literal["auto", "transformers", "llama_cpp", "vllm"],
    typer.Option(
        "--engine", help="What runs them; auto: llama_cpp for GGUF files, else vllm with a GPU, else transformers."
    ),
]
