"""What the tokens of a teacher cost, and the checks of prices and budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import RequestError

if TYPE_CHECKING:
    from luthier.ml.inference.engine_wrappers import Usage


@dataclass(frozen=True, slots=True)
class Prices:
    """What a teacher's tokens cost. None: not given, and then no cost is reported.

    Attributes:
        input_usd: US dollars for a million tokens of prompts.
        output_usd: US dollars for a million tokens of replies.
    """

    input_usd: float | None = None
    output_usd: float | None = None

    def cost(self, usage: Usage) -> float | None:
        """What the new requests cost; those out of the cache cost nothing. None without both prices."""
        return self.cost_of_tokens(usage.num_prompt_tokens, usage.num_new_tokens)

    def times(self, share: float) -> Prices:
        """The same at a share of the price, such as 0.5."""
        if self.input_usd is None or self.output_usd is None:
            return self
        return Prices(self.input_usd * share, self.output_usd * share)

    def cost_of_tokens(self, num_prompt: int, num_new: int) -> float | None:
        """What tokens of prompts and of replies cost. None without both prices."""
        if self.input_usd is None or self.output_usd is None:
            return None
        # Providers quote prices for a million tokens.
        return (num_prompt * self.input_usd + num_new * self.output_usd) / 1e6


def check_prices(prices: Prices | None) -> None:
    """Raise RequestError for one price without the other, and for what is no price."""
    given = [price for price in (prices.input_usd, prices.output_usd) if price is not None] if prices else []
    # `not 0 <= price < inf` refuses NaN as well.
    if len(given) == 1 or any(not 0 <= price < float("inf") for price in given):
        raise RequestError(
            f"prices {prices}",
            expected="US dollars a million tokens, 0 or more, for input and output both",
            do="give --price-input and --price-output, or neither",
        )


def check_budget(budget_usd: float | None, prices: Prices | None, *, at_once: bool = False) -> None:
    """Raise RequestError for a budget that is none, one without prices, or one of requests that are sent at once."""
    if budget_usd is None:
        return
    if at_once:
        raise RequestError(
            f"a budget of {budget_usd:g} USD with --batch, which requests all passages at once",
            expected="one of the two: a budget ends the work between small batches",
            do="limit the passages: --max-rows N",
        )
    if not 0 < budget_usd < float("inf") or prices is None or prices.input_usd is None:
        raise RequestError(
            f"a budget of {budget_usd:g} USD{'' if prices and prices.input_usd is not None else ' without prices'}",
            expected="more than 0 USD, and the prices of the teacher's tokens",
            do="give --price-input and --price-output with --budget-usd, or leave the budget out",
        )
