"""A case from three questions: answers a week, minutes each, and the cost of an error. All else has a stated default.

Today people answer. The tuned model answers alone where it is sure enough, and people answer the rest. One more right
answer saves what an error costs.

No default is measured: each is a range that is wide on purpose, and the answer lists all of them. What matters most
(`tornado`) is what to find out first. Defaults in money are stated in US dollars: in another currency they are
converted at the rate that is given, and refused without one, since the same figures would mean another amount.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from luthier.core.errors import RequestError
from luthier.core.results.roi import Case, Counted

WEEKS_A_MONTH: Final = 52 / 12
_MINUTES_AN_HOUR: Final = 60.0


@dataclass(frozen=True, slots=True)
class Default:
    """The default where a value is not given.

    Attributes:
        key: of the case.
        low: the least.
        typical: the most likely value.
        high: the most.
        words: what it is, as a sentence has it.
        is_money: an amount of `DEFAULT_CURRENCY`.
    """

    key: str
    low: float
    typical: float
    high: float
    words: str
    is_money: bool = False

    def converted(self, per_usd: float) -> Default:
        """The default in a currency of which a US dollar costs `per_usd`."""
        if not self.is_money:
            return self
        return replace(self, low=self.low * per_usd, typical=self.typical * per_usd, high=self.high * per_usd)


DEFAULT_CURRENCY: Final = "USD"
"""What defaults in money are stated in."""
RATE: Final = Default(
    "people.rate_per_hour", 20, 35, 60, "an hour of the people who answer, with overheads", is_money=True
)
ACCURACY: Final = Default("today.accuracy", 0.9, 0.95, 0.99, "share of answers that people get right today")
ALONE: Final = (
    Default("tuned.alone.share", 0.2, 0.5, 0.8, "share of cases that the model can answer alone"),
    Default("tuned.alone.accuracy", 0.9, 0.95, 0.99, "accuracy of what it answers alone"),
)
DEFAULTS: Final = (
    Default(
        "tuned.cost_per_call", 0, 0.001, 0.01, "an answer of a small model on a computer of your own", is_money=True
    ),
    Default("people.preparation_hours", 2, 6, 20, "hours of collecting the rows"),
    Default("people.annotation_hours", 0, 4, 20, "hours of labelling rows that have no answer yet"),
    Default("people.review_hours", 1, 3, 8, "hours of reviewing the rows"),
    Default(
        "training.cost", 0, 5, 50, "trainings until it is right, on a computer of your own or rented", is_money=True
    ),
    Default("evaluation.hours", 1, 2, 6, "hours of reading its answers before it is used"),
    Default("upkeep.retrain_every_months", 3, 6, 12, "months until it is trained again"),
    Default("upkeep.work_hours_per_retraining", 1, 3, 8, "hours of work for that"),
    Default("upkeep.review_hours_per_month", 0.5, 1, 4, "hours a month of reviewing its answers"),
)


@dataclass(frozen=True, slots=True)
class Questions:
    """What a small firm knows.

    Attributes:
        answers_per_week: How many cases are answered.
        minutes_each: How long a person takes for one.
        cost_of_an_error: In the currency, what a wrong answer costs beyond the work on it.
        accuracy_today: The share that people get right; None takes the default.
        counted_today: The same as a count of answers that somebody checked.
        rate_per_hour: Of the people; None takes the default.
        currency: Of all money.
        currency_per_usd: What a US dollar costs, which defaults in money are converted at; required where `currency`
            is another one.
    """

    answers_per_week: float
    minutes_each: float
    cost_of_an_error: float
    accuracy_today: float | None = None
    counted_today: Counted | None = None
    rate_per_hour: float | None = None
    currency: str = DEFAULT_CURRENCY
    currency_per_usd: float | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """Them as options of `luthier worth`."""
        asked = {
            "--answers-per-week": f"{self.answers_per_week:.12g}",
            "--minutes-each": f"{self.minutes_each:.12g}",
            "--cost-of-an-error": f"{self.cost_of_an_error:.12g}",
        }
        if self.counted_today is not None:
            asked["--accuracy-today"] = f"{self.counted_today.num_correct}/{self.counted_today.num_answers}"
        elif self.accuracy_today is not None:
            asked["--accuracy-today"] = f"{self.accuracy_today:.12g}"
        if self.rate_per_hour is not None:
            asked["--rate-per-hour"] = f"{self.rate_per_hour:.12g}"
        if self.currency != DEFAULT_CURRENCY:
            asked["--currency"] = self.currency
        if self.currency_per_usd is not None:
            asked["--currency-per-usd"] = f"{self.currency_per_usd:.12g}"
        return tuple(part for pair in asked.items() for part in pair)


def read_accuracy(text: str, called: str) -> tuple[float | None, Counted | None]:
    """A share of right answers, or a count such as 47/50.

    Args:
        text: what was given.
        called: its name in the request.

    Raises:
        RequestError: neither.
    """
    right, slash, of = text.partition("/")
    try:
        return (None, Counted(num_correct=int(right), num_answers=int(of))) if slash else (float(text), None)
    except ValueError as error:  # pydantic's too
        raise RequestError(
            f"{called} {text}",
            expected="a share such as 0.95, or right answers of those that were checked, such as 47/50",
            do="correct it",
        ) from error


def case_of(asked: Questions, *, is_measured: bool) -> tuple[Case, tuple[str, ...]]:
    """The case, and a sentence that names every default that it rests on.

    Args:
        asked: the answers to the questions.
        is_measured: an evaluation says what the model answers alone; else that is a default too.

    Raises:
        RequestError: a figure is negative or too large, nothing is answered, an accuracy is not a share between 0 and
            1, a currency is no code of three letters, or it is not US dollars and no rate of exchange is given.
    """
    _check(asked)
    per_usd = asked.currency_per_usd or 1.0
    rate_default, *defaults = (one.converted(per_usd) for one in (RATE, *DEFAULTS))
    rate = _given(rate_default, asked.rate_per_hour)
    hours_each = asked.minutes_each / _MINUTES_AN_HOUR
    today: dict[str, Any] = {"cost_per_call": {end: value * hours_each for end, value in rate.items()}}
    # Every default that is used ends up in the sentence that lists them.
    taken = [*defaults, *([] if asked.rate_per_hour is not None else [rate_default])]
    alone_at: float | None = None
    if asked.counted_today is not None:
        today["counted"] = asked.counted_today.model_dump()
        # No threshold reaches 1, so a count without an error asks for what its number can show.
        counted = asked.counted_today
        # Laplace's rule of succession: a little below the observed share, and never exactly 0 or 1.
        alone_at = (counted.num_correct + 1) / (counted.num_answers + 2)
    else:
        accuracy = _given(ACCURACY, asked.accuracy_today)
        today["accuracy"] = accuracy
        alone_at = accuracy["typical"]
        taken += [ACCURACY] if asked.accuracy_today is None else []
    document: dict[str, Any] = {
        "name": f"{asked.answers_per_week:,g} answers a week, {asked.minutes_each:g} minutes each",
        "currency": asked.currency,
        "calls": {
            "per_month": asked.answers_per_week * WEEKS_A_MONTH,
            # Nothing here is paid by its tokens.
            "input_tokens": 1,
            "output_tokens": 1,
            "value_of_one_more_correct": asked.cost_of_an_error,
        },
        "today": today,
        "people": {"rate_per_hour": rate},
        "verdict": {"today": "given", "alone_at": alone_at} if is_measured else {},
    }
    if not is_measured:
        taken += ALONE
    for one in (*defaults, *(() if is_measured else ALONE)):
        _put(document, one.key, {"low": one.low, "typical": one.typical, "high": one.high})
    notes = [_named(taken, asked.currency)]
    if asked.currency != DEFAULT_CURRENCY:
        document["currency_per_usd"] = per_usd
        notes.append(_converted(per_usd, asked.currency))
    return Case.model_validate(document), tuple(notes)


def _check(asked: Questions) -> None:
    rate = asked.rate_per_hour or 0.0
    figures = {
        "answers a week": asked.answers_per_week,
        "minutes each": asked.minutes_each,
        "cost of an error": asked.cost_of_an_error,
        "rate an hour": rate,
        "answers a month": asked.answers_per_week * WEEKS_A_MONTH,
        "cost of an answer": max(rate, RATE.high * (asked.currency_per_usd or 1.0))
        * asked.minutes_each
        / _MINUTES_AN_HOUR,
    }
    wrong = [f"{name} {value:g}" for name, value in figures.items() if not 0 <= value < 1e12]
    if wrong or asked.answers_per_week == 0:
        raise RequestError(
            ", ".join(wrong) or "no answers a week",
            expected="at least one answer a week, and figures from 0 on",
            do="correct the figure; a cost of an error of 0 means that a wrong answer costs nothing",
        )
    if not re.fullmatch("[A-Z]{3}", asked.currency):
        raise RequestError(
            f"currency {asked.currency}", expected="three capital letters, such as USD", do="correct the currency"
        )
    _check_exchange(asked.currency, asked.currency_per_usd)
    if asked.accuracy_today is not None and not 0 < asked.accuracy_today < 1:
        percent = f": write {asked.accuracy_today / 100:g} for {asked.accuracy_today:g}%"
        raise RequestError(
            f"accuracy today {asked.accuracy_today:g}",
            expected="a share between 0 and 1",
            do=f"correct it{percent if 1 < asked.accuracy_today < 100 else ''}; or count: 47/50",
        )


def _check_exchange(currency: str, per_usd: float | None) -> None:
    if per_usd is not None and not 0 < per_usd < 1e9:
        raise RequestError(
            f"a US dollar for {per_usd:g} {currency}", expected="a price above 0", do="correct the price"
        )
    if currency == DEFAULT_CURRENCY and per_usd not in (None, 1.0):
        raise RequestError(
            f"a US dollar for {per_usd:g} {currency}",
            expected="1, or nothing: the defaults are stated in US dollars",
            do="leave the price of a US dollar out, or correct the currency",
        )
    if currency != DEFAULT_CURRENCY and per_usd is None:
        raise RequestError(
            f"money in {currency}, without the price of a US dollar in it",
            expected="that price: assumptions such as what an hour costs are stated in US dollars",
            do=f"give the price of a US dollar in {currency}, or use a case file with your own figures (docs/roi.md)",
        )


def _given(default: Default, value: float | None) -> dict[str, float]:
    if value is not None:
        return {"low": value, "typical": value, "high": value}
    return {"low": default.low, "typical": default.typical, "high": default.high}


def _put(document: dict[str, Any], key: str, value: dict[str, float]) -> None:
    *parents, last = key.split(".")
    level = document
    for parent in parents:
        level = level.setdefault(parent, {})
    level[last] = value


def _converted(per_usd: float, currency: str) -> str:
    return f"Assumed amounts of money were converted from US dollars, at {per_usd:g} {currency} for a dollar."


def _named(taken: Sequence[Default], currency: str) -> str:
    listed = "; ".join(f"{one.words}: {one.low:g} to {one.high:g} ({one.key})" for one in taken)
    return (
        f"Assumed, as it was not given, and not taken from any statistic (money in {currency}): {listed}. Write a "
        "case file to set them yourself (docs/roi.md)."
    )
