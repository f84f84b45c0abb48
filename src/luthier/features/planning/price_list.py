"""Use case: what plans and bills reckon with: prices of devices, people and power, and what serving is counted at."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.cost import PriceTable
from luthier.platform.home.context import Context


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of this server.

    Attributes:
        table: Of devices, people and electricity.
        titles: Of the devices, by name.
        usd_per_million_prompt_tokens: Of tokens that a served model reads; None where no price is set.
        usd_per_million_new_tokens: Of tokens that it writes; None where no price is set.
    """

    table: PriceTable
    titles: dict[str, str]
    usd_per_million_prompt_tokens: float | None
    usd_per_million_new_tokens: float | None


def price_list(context: Context) -> PriceList:
    """The prices of this server, and of `luthier plan` where it is given no others."""
    from luthier.ml.planning.devices import accelerators
    from luthier.ml.planning.prices import load_prices

    titles = {device.name: device.title for device in accelerators()}
    return PriceList(
        table=load_prices(),
        titles={"cpu": "this machine's processor, were it rented"} | titles,
        usd_per_million_prompt_tokens=context.settings.serving_usd_per_million_prompt_tokens,
        usd_per_million_new_tokens=context.settings.serving_usd_per_million_new_tokens,
    )
