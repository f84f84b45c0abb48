"""Use case: the quote of a run that is only described: a model's config.json, a number of rows, and their length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.cost import Market, PriceTable, Quote

if TYPE_CHECKING:
    from luthier.ml.planning.hypothetical_run import HypotheticalRun


def estimate_quote(
    model: Path,
    described: HypotheticalRun,
    *,
    on: str,
    prices: PriceTable | None = None,
    market: Market = "on_demand",
) -> Quote:
    """The price, time and memory of a described run of a model on a device, part by part.

    model: a folder in which config.json lies; weights are not needed. on: `cpu` or NAME[:COUNT]. prices: None takes the
    table that is shipped. Where the run does not fit as it is, the fastest way that trains the same is priced, and the
    quote's notes say what was changed; where none fits, the quote says so and what would.

    Raises ModelSourceError for a folder without a config that can be read, RequestError for an unknown device, a device
    without a price, and numbers that no run has, RecipeError for a rank above that of a matrix.
    """
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning import hardware
    from luthier.ml.planning.devices import alternatives_to, device_of
    from luthier.ml.planning.hypothetical_run import hypothetical_workload
    from luthier.ml.planning.prices import load_prices
    from luthier.ml.planning.quote import make_quote

    device = device_of(on, hardware.measure())
    structure = read_structure(str(model))
    return make_quote(
        lambda where: hypothetical_workload(structure, described, where),
        device,
        longest_tokens=described.longest_tokens,
        num_rows=described.num_rows,
        num_tokens=round(described.num_tokens),
        prices=prices if prices is not None else load_prices(),
        market=market,
        other_devices=alternatives_to(device),
        takes_what_fits=True,
    )
