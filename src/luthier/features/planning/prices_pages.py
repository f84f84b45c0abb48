"""/settings/prices: the prices of plans, bills and usage (devices, people, power, serving), and how to set them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.results.cost import PriceTable
from luthier.core.text.written_numbers import typed_number
from luthier.features.planning.currency import project_currency, set_project_currency
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import Page, redirect
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import Admin, HomeContext, Reader


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
_ADDRESS: Final = "/settings/prices"
PAGE = Page("Prices", _ADDRESS, "read", order=90, group="settings")


@router.get(_ADDRESS)
def prices(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The table, and the currency of the project."""
    return _page(request, context, caller)


@router.post(f"{_ADDRESS}/currency")
def change_currency(
    request: Request,
    context: HomeContext,
    caller: Admin,
    currency: Annotated[str, Form(max_length=20)] = "",
    per_usd: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """State the money of the project in another currency."""
    try:
        set_project_currency(context, caller, currency, _price(per_usd, decimal_mark_of(request)))
    except LuthierError as error:
        return _page(request, context, caller, {"currency": currency, "per_usd": per_usd}, error)
    return redirect(request, _ADDRESS, "The currency is changed.")


def _price(text: str, mark: str) -> float | None:
    if not text.strip():
        return None
    try:
        return typed_number(text, mark)
    except ValueError:
        raise RequestError(
            f"{text[:40]!r} as the price of a US dollar", expected="a number such as 0.92", do="correct it"
        ) from None


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    given: dict[str, str] | None = None,
    error: LuthierError | None = None,
) -> Response:
    kept = project_currency(context, caller.project_id)
    if given is None:
        mark = decimal_mark_of(request)
        given = {"currency": kept.code if kept else "USD", "per_usd": kept.written(mark) if kept else ""}
    values: dict[str, Any] = {"prices": price_list(context), "currency": kept, "given": given, "error": error}
    return show(request, "prices", values, status=200 if error is None else status_of(error))
