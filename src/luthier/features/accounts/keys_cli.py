"""`luthier keys`: who the server lets in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, cast

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context
from luthier.platform.cli.figures import utc

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import ApiKey, Scope


def create(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Who or what the key is for.")],
    scopes: Annotated[
        str, typer.Option("--scopes", metavar="A,B", help="What the key may do: read, train, infer, or admin for all.")
    ],
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project it belongs to.")] = "default",
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="SPAN", help="Time until it expires: 30d, 12h.", show_default="never"),
    ] = None,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            "--requests-per-minute", metavar="N", min=1, help="Maximum requests per minute.", show_default="no limit"
        ),
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-day",
            metavar="N",
            min=1,
            help="Maximum tokens per day, read and written.",
            show_default="no limit",
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Create a key. It is shown only once: Luthier stores only a digest of it."""
    from luthier.platform.auth import service as access
    from luthier.platform.home.duration import parse_duration

    expires_in = None if expires is None else parse_duration(expires, option="--expires")
    with open_context(home) as context:
        made, key = access.create_key(
            context,
            name,
            # The cast is for mypy only; `create_key` refuses unknown scopes.
            scopes=cast("tuple[Scope, ...]", tuple(scope.strip() for scope in scopes.split(",") if scope.strip())),
            project=project,
            expires_in_seconds=expires_in,
            requests_per_minute=requests_per_minute,
            tokens_per_day=tokens_per_day,
        )

    def tell(console: Console) -> None:
        console.print(key, soft_wrap=True)
        console.print(f"key {made.key_id}: store it now, it is not shown again", soft_wrap=True)

    return Answer(as_json, {"key": key, **_document(made)}, tell)


def list_keys(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the keys, newest first."""
    from luthier.platform.auth import service as access

    with open_context(home) as context:
        found = access.list_keys(context)
    return Answer(as_json, [_document(key) for key in found], lambda console: _show_all(console, found))


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of a key, from `luthier keys list`.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Revoke a key; running servers notice it within 5 seconds."""
    from luthier.platform.auth import service as access

    with open_context(home) as context:
        key = access.revoke_key(context, key_id)
    return Answer(as_json, _document(key), lambda console: console.print(f"revoked {key.key_id}", soft_wrap=True))


def _document(key: ApiKey) -> dict[str, object]:
    return {"id": key.key_id, **key.model_dump(mode="json", exclude={"key_id"})}


def _show_all(console: Console, found: list[ApiKey]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print(in_home("no keys yet: make one with `luthier keys create --name NAME --scopes admin`"))
        return
    headers = ["key", "name", "project", "scopes", "ends", "revoked", "requests/min", "tokens/day"]
    table = make_table(headers, num_text_columns=6)
    for key in found:
        limits = [f"{limit:,}" if limit is not None else "-" for limit in (key.requests_per_minute, key.tokens_per_day)]
        ends = "never" if key.expires_at is None else f"{utc(key.expires_at)} UTC"
        revoked = "no" if key.revoked_at is None else f"{utc(key.revoked_at)} UTC"
        table.add_row(
            key.key_id, visible(key.name), visible(key.project_id), " ".join(key.scopes), ends, revoked, *limits
        )
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {"create": create, "list": list_keys, "revoke": revoke}
