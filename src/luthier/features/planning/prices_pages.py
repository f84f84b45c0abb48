"""/settings/prices: the prices of plans, bills and usage (devices, people, power, serving), and how to set them."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.cost import PriceTable
from luthier.platform.home.context import Context
from luthier.platform.ui.render import Page
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import HomeContext, Reader


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
    from luthier.ml.planning.devices import OWN_GPU, accelerators, load_prices

    titles = {device.name: device.title for device in accelerators()}
    return PriceList(
        table=load_prices(),
        titles={
            "cpu": "this machine's processor, as if it were rented",
            OWN_GPU: "this machine's GPU, where it is none of these",
        }
        | titles,
        usd_per_million_prompt_tokens=context.settings.serving_usd_per_million_prompt_tokens,
        usd_per_million_new_tokens=context.settings.serving_usd_per_million_new_tokens,
    )


router = APIRouter()
PAGE = Page("Prices", "/settings/prices", "read", order=90, group="settings")


@router.get("/settings/prices")
def prices(request: Request, context: HomeContext, _caller: Reader) -> Response:
    """The table."""
    return show(request, "prices", {"prices": price_list(context)})
