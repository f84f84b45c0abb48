"""`luthier data cache`: what downloaded data files and mixtures take on the disk, and how to get it back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.planning.data_cache import CacheUse


def cache(
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Remove what no unfinished run needs and what was not used within the last hour."),
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show the cache of downloaded data files and of mixtures with their limits; --clear empties it."""
    from luthier.features.planning.data_cache import cache_use

    with open_context(home) as context:
        found = cache_use(context, clear=clear)
    return Answer(as_json, {"folders": [asdict(one) for one in found]}, lambda console: _show(console, found))


def _show(console: Console, found: list[CacheUse]) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, visible

    rows = []
    for one in found:
        held = f"{one.num_entries:,} with {figures.size(one.num_bytes)} of at most {figures.size(one.max_bytes)}"
        removed = f", {one.num_removed:,} removed with {figures.size(one.num_removed_bytes)}" if one.num_removed else ""
        rows.append((one.what, f"{held}{removed}: {visible(one.folder)}"))
    facts(console, rows)
