"""Bills and budgets as text."""

from __future__ import annotations

from luthier.core.budget import Bill, BudgetPlan
from luthier.core.cost import Estimate
from luthier.platform.cli import figures


def bill_line(bill: Bill) -> str:
    """What is spent, and what it is expected to come to, on one line."""
    done = bill.left_seconds <= 0
    parts = [_hours(bill, done)]
    for unit, now, end in (("USD", bill.usd, bill.final_usd), ("kWh", bill.energy_kwh, bill.final_energy_kwh)):
        if now is not None and end is not None:
            parts.append(
                f"{_between(now)} {unit}" if done else f"{figures.number(now.value)} of {_between(end)} {unit}"
            )
    lost = f"; {figures.duration(bill.interrupted_hours * 3600)} of it lost to kills" if bill.interrupted_hours else ""
    return f"spent {', '.join(parts)}{lost}"


def budget_lines(budget: BudgetPlan) -> list[str]:
    """The caps of a run and the rates that they are counted at; nothing where there is no cap."""
    caps = [
        f"{figures.plain(value)} {unit}"
        for value, unit in (
            (budget.hours, "hours"),
            (budget.usd, "USD"),
            (budget.tokens, "tokens"),
            (budget.energy_kwh, "kWh"),
        )
        if value is not None
    ]
    if not caps:
        return []
    rates = []
    if budget.usd is not None and budget.usd_per_hour is not None:
        rates.append(
            f"money at {figures.number(budget.usd_per_hour.high)} USD an hour, the upper end of {budget.price_source}"
        )
    if budget.energy_kwh is not None and budget.watts is not None:
        rates.append(f"energy at {figures.number(budget.watts.high)} W, the upper end of {budget.watts_source}")
    counted = f" (counted: {'; '.join(rates)})" if rates else ""
    return [f"at most {', '.join(caps)}{counted}; judging counts, too"]


def _hours(bill: Bill, done: bool) -> str:
    now = figures.duration(bill.hours * 3600)
    if done:
        return now
    low, high = (figures.duration(end * 3600) for end in (bill.final_hours.low, bill.final_hours.high))
    return f"{now} of about {figures.duration(bill.final_hours.value * 3600)} [{low}, {high}]"


def _between(estimate: Estimate) -> str:
    if estimate.low == estimate.high:
        return figures.number(estimate.value)
    return f"{figures.number(estimate.value)} [{figures.number(estimate.low)}, {figures.number(estimate.high)}]"
