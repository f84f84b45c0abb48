"""/settings/prices: what plans, bills and usage are reckoned with, where it comes from, and how it is set."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.features.planning.price_list import price_list
from luthier.platform.ui.navigation import Page
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter()
PAGE = Page("Prices", "/settings/prices", "read", order=90, group="settings")


@router.get("/settings/prices")
def prices(request: Request, context: HomeContext, _caller: Reader) -> Response:
    """The table."""
    return show(request, "prices", {"prices": price_list(context)})
