"""`luthier data fetch` and `luthier data cache`: remote sources of rows, downloaded once, and their disk use."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.datasets.remote import RemoteRows
    from luthier.features.planning.data_cache import CacheUse


def fetch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="hub:ORG/DATASET[@REVISION][/CONFIG or FILE][[SPLIT]], or an address: https://, s3://, gs://, az://.",
        ),
    ],
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Check for a newer revision of a source that was downloaded before.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Download rows from the hub, a web address or an object store; what was downloaded before needs no network."""
    from luthier.features.datasets.remote import fetch_rows

    with open_context(home) as context:
        found = fetch_rows(context, source, refresh=refresh)
    return Answer(as_json, found.as_json(), lambda console: _show_fetched(console, found, refresh))


def _show_fetched(console: Console, found: RemoteRows, is_refreshed: bool) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    rows = [("revision", visible(found.revision))]
    if found.before not in (None, found.revision):
        rows.append(("before", visible(str(found.before))))
    rows += [(figures.size(one.num_bytes), visible(str(one.path))) for one in found.files]
    facts(console, rows)
    if found.was_there:
        hint = "no newer revision was found." if is_refreshed else "--refresh looks for a newer revision."
        console.print(f"Already on this machine; {hint}", soft_wrap=True)


def cache(
    clear: Annotated[
        bool,
        typer.Option(
            "--clear", help="Remove files that no unfinished run needs and that were not used in the last hour."
        ),
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show the cache of downloaded data files and of mixtures with their limits; --clear empties it."""
    from luthier.features.planning.data_cache import cache_use

    with open_context(home) as context:
        found = cache_use(context, clear=clear)
    return Answer(as_json, {"folders": [asdict(one) for one in found]}, lambda console: _show_cache(console, found))


def _show_cache(console: Console, found: list[CacheUse]) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    rows = []
    for one in found:
        held = f"{one.num_entries:,} with {figures.size(one.num_bytes)} of at most {figures.size(one.max_bytes)}"
        removed = f", {one.num_removed:,} removed with {figures.size(one.num_removed_bytes)}" if one.num_removed else ""
        rows.append((one.what, f"{held}{removed}: {visible(one.folder)}"))
    facts(console, rows)
