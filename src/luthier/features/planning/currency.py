"""The currency in which a project states money, and what a US dollar costs in it: set once, by a person.

Prices and defaults are stated in US dollars. Luthier takes no rate of exchange from anywhere: it has the one that
somebody has set, with the day on which that was.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context

_KIND: Final = "currency"
_CODE: Final = re.compile(r"[A-Z]{3}")
_DOLLAR: Final = "USD"


class ProjectCurrency(FrozenModel):
    """A currency other than US dollars.

    Attributes:
        code: Its three letters, such as EUR.
        per_usd: What a US dollar costs in it.
        as_of: The day on which that was set, as YYYY-MM-DD in UTC.
    """

    code: str
    per_usd: float
    as_of: str

    def written(self, decimal_mark: str) -> str:
        """The price as a person writes it into a field, never with three decimals alone: those could be thousands."""
        text = f"{self.per_usd:.12g}"
        whole, _, decimals = text.partition(".")
        return f"{whole}{decimal_mark}{decimals}0" if len(decimals) == 3 else text.replace(".", decimal_mark)


def project_currency(context: Context, project_id: str) -> ProjectCurrency | None:
    """The currency of a project; None for US dollars."""
    document = context.watches.get(project_id, _KIND)
    return None if document is None else ProjectCurrency.model_validate_json(document)


def set_project_currency(context: Context, caller: Caller, code: str, per_usd: float | None) -> ProjectCurrency | None:
    """State the money of the caller's project in a currency; returns it, or None for US dollars.

    Args:
        context: The home.
        caller: Whose project.
        code: Three letters; empty or USD for US dollars.
        per_usd: What a US dollar costs in it; None only for US dollars.

    Raises:
        RequestError: The code is none, or the price is missing or not above 0.
    """
    code = code.strip().upper() or _DOLLAR
    if not _CODE.fullmatch(code):
        raise RequestError(f"currency {code[:20]!r}", expected="three letters, such as EUR", do="correct the currency")
    if code == _DOLLAR:
        with context.database.transaction():
            context.watches.remove(caller.project_id, _KIND, "")
            record(context, caller, "project.currency_changed", caller.project_id, {"currency": _DOLLAR})
        return None
    if per_usd is None or not 0 < per_usd < 1e9:
        came = "no price of a US dollar" if per_usd is None else f"a US dollar for {per_usd:g} {code}"
        raise RequestError(
            came,
            expected=f"what a US dollar costs in {code}, above 0",
            do="look it up at your bank, and write it into the field: Luthier takes it from nowhere",
        )
    today = datetime.fromtimestamp(context.access.now(), UTC).date().isoformat()
    made = ProjectCurrency(code=code, per_usd=per_usd, as_of=today)
    with context.database.transaction():
        context.watches.put(caller.project_id, _KIND, "", made.model_dump_json())
        facts = {"currency": code, "per_usd": per_usd}
        record(context, caller, "project.currency_changed", caller.project_id, facts)
    return made
