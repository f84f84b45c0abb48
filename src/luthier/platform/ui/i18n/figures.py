"""Figures, times and money of pages in another language, by Babel. JSON, exports and fields of forms stay English."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal

from markupsafe import Markup

from luthier.core.evaluation import Metric
from luthier.ml.charts import figures

_NUMBER: Final = re.compile(
    # A hyphen that follows a letter or a digit is none of a negative number: `run-1.5`, `0.1-0.5`.
    r"(?<![\w.,/])(?<![\w.,/)\]-]-)(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w,/-])|\d+\.\d+(?:(?=[kM]\b)|(?![\w,/-]|\.\d)))"
)
_PERCENT: Final = re.compile(r"(?<=\d)%(?![0-9A-Fa-f]{2})")
_END: Final = r"\$?[+−-]?[\d.,]+(?:\s?[A-Za-z]+)?"
_INTERVAL: Final = re.compile(rf"\[({_END}), ({_END})\]")
_MONEY: Final = re.compile(r"(?<![\w$\\/])\$([+−-]?\d[\d,]*(?:\.\d+)?)(?![\w/]|[.,]\d)")


FILTERS: Final = (
    *("number", "count", "percent", "rough", "duration", "size", "plain", "p_value", "signed", "short_count"),
)
"""The filters of `ml/charts/figures.py`. In attributes such as `value` a template keeps those of the source."""

_UNITS: Final[tuple[tuple[int, Literal["day", "hour", "minute"]], ...]] = (
    (86_400, "day"),
    (3_600, "hour"),
    (60, "minute"),
)


class Figures:
    """The filters of figures for one language.

    Args:
        language: The language, such as `de`.
        word: The translation of a short English text of this module, such as `never`.

    Attributes:
        decimal_mark: The sign before the decimals of a number.
    """

    def __init__(self, language: str, word: Callable[[str], str]) -> None:
        from babel import Locale

        self._locale, self._word = Locale.parse(language), word
        symbols = self._locale.number_symbols["latn"]
        self.decimal_mark, self._group = str(symbols["decimal"]), str(symbols["group"])
        self._percent = str(self._locale.percent_formats[None].pattern).lstrip("#,0.")

    def filters(self) -> dict[str, Callable[..., Any]]:
        """By the names that templates use."""
        source = {f"source_{name}": getattr(figures, name) for name in FILTERS}
        return (
            source
            | {name: self._localised_filter(getattr(figures, name)) for name in FILTERS}
            | {
                "ago": self.ago,
                "day": self.day,
                "size": self.size,
                "metric": self.metric,
                "usd": self.usd,
            }
        )

    def localised(self, text: str) -> str:
        """A text with the separators of its numbers as the language writes them; all else unchanged."""
        if self.decimal_mark != ".":
            # A comma between the ends of an interval would look like a decimal one.
            text = _INTERVAL.sub(r"[\1; \2]", text)
            text = _MONEY.sub(rf"\1{figures.NO_BREAK}$", text)
        text = _PERCENT.sub(self._percent, text)
        return _NUMBER.sub(lambda found: self._swapped(found[0]), text)

    def _swapped(self, number: str) -> str:
        return number.replace(",", "\0").replace(".", self.decimal_mark).replace("\0", self._group)

    def _localised_filter(self, made: Callable[..., str]) -> Callable[..., str]:
        def localised(*values: Any) -> str:
            return self._with_unit(made(*values))

        return localised

    def _with_unit(self, text: str) -> str:
        if (word := self._word(text)) != text:
            return word
        number, _, unit = text.partition(figures.NO_BREAK)
        return self.localised(f"{number}{figures.NO_BREAK}{self._word(unit)}" if unit.isalpha() else text)

    def size(self, num_bytes: float, beside: float | None = None, *, in_decimal: bool = False) -> str:
        """A number of bytes, as `ml.charts.figures.size` writes it."""
        return self._with_unit(figures.size(num_bytes, beside, in_decimal=in_decimal))

    def ago(self, moment: float | str | None, *, now: float | None = None) -> Markup:
        """A time as a `<time>`: how long ago (or in how long), with the exact one in UTC on hover."""
        from babel.dates import format_datetime

        if moment is None:
            return Markup("<span class=muted>{}</span>").format(self._word("never"))
        exact = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int | float) else _parsed(moment)
        title = f"{format_datetime(exact, 'd. MMMM y, HH:mm:ss', tzinfo=UTC, locale=self._locale)} UTC"
        words = self.relative(exact.timestamp() - (time.time() if now is None else now))
        iso = exact.isoformat(timespec="seconds")
        return Markup('<time datetime="{}" title="{}">{}</time>').format(iso, title, words)

    def day(self, moment: date | str) -> str:
        """A day as the language writes it in figures: `25.11.2026`."""
        return day_of(moment, str(self._locale))

    def relative(self, seconds: float) -> str:
        """How long ago (negative) or in how long (positive): `vor 5 Minuten`, `in 3 Tagen`."""
        from babel.dates import format_timedelta

        count, sign = abs(seconds), 1 if seconds > 0 else -1
        for unit, name in _UNITS:
            if count >= unit:
                # The unit is chosen here, as the script does that keeps times up to date.
                length = timedelta(seconds=sign * (count // unit) * unit)
                return format_timedelta(length, name, 1e9, add_direction=True, format="long", locale=self._locale)
        return self._word("just now") if seconds <= 5 else self._word(f"in {int(count)} s")

    def metric(self, value: Metric) -> Markup:
        """A figure of an evaluation with its unit and its 95% interval."""
        decimals = figures.decimals_for(value.low, value.high)
        text = Markup('<span class="figure">{}</span>').format(self.localised(figures.number(value.value, decimals)))
        if value.low != value.high:
            interval = self.localised(figures.interval(value.low, value.high, decimals))
            text += Markup(' <span class="interval">{}</span>').format(interval)
        return text + (Markup(' <span class="unit">{}</span>').format(self._word(value.unit)) if value.unit else "")

    def usd(self, value: float | None) -> str:
        """Money in US dollars: cents from a dollar on, two significant digits below."""
        from babel.numbers import format_currency

        if value is None:
            return self._word("not priced")
        if abs(value) >= 1 or value == 0:
            return format_currency(value, "USD", locale=self._locale)
        return self.localised(f"{value:#.2g}") + figures.NO_BREAK + "$"


def _parsed(moment: str) -> datetime:
    exact = datetime.fromisoformat(moment)
    return (exact.replace(tzinfo=UTC) if exact.tzinfo is None else exact).astimezone(UTC)


def day_of(moment: date | str, locale: str) -> str:
    """A day as a language writes it in figures: `25.11.2026`. A text that is no day, such as 30 February, stays."""
    from babel.dates import format_date

    try:
        exact = date.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError:
        return str(moment)
    return format_date(exact, "dd.MM.y", locale=locale)
