"""The three questions as pages ask them: fields of a form, and the answer with its range.

Of an evaluation that does not say what its model answers alone, the answer rests on assumptions; a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import Depends, Query

from luthier.core.errors import LuthierError, RequestError
from luthier.core.evaluation import Evaluation
from luthier.core.text.written_numbers import typed_number
from luthier.features.planning.currency import ProjectCurrency
from luthier.features.roi.service import compute_roi
from luthier.ml.charts.figures import Fact
from luthier.ml.charts.judged_rows import Tone
from luthier.platform.db.store import LRUCache
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.results.roi_result import RoiResult
    from luthier.ml.planning.roi.questions import Questions

QUESTIONS: Final = {
    "answers_per_week": "answers a week",
    "minutes_each": "minutes for each",
    "cost_of_an_error": "cost of a wrong answer",
}
_Text = Annotated[str, Query(max_length=40)]
_EITHER: Final = {".": re.compile(r"[1-9]\d{0,2}\.\d{3}"), ",": re.compile(r"[1-9]\d{0,2},\d{3}")}
"""By the mark before decimals of the page: a number with three decimals, or a thousand as the other language writes it.

The other mark is none: `1.000` is a thousand on a page in German, and `1,000` on one in English."""


def _asked(
    answers_per_week: _Text = "",
    minutes_each: _Text = "",
    cost_of_an_error: _Text = "",
    currency: Annotated[str, Query(max_length=3)] = "",
    currency_per_usd: _Text = "",
) -> dict[str, str]:
    given = {
        "answers_per_week": answers_per_week,
        "minutes_each": minutes_each,
        "cost_of_an_error": cost_of_an_error,
        "currency": currency,
        "currency_per_usd": currency_per_usd,
    }
    return {name: value.strip() for name, value in given.items()}


QuestionsAsked = Annotated[dict[str, str], Depends(_asked)]
"""The dependency of handlers that ask the three questions and their currency; text as it was typed."""


@dataclass(frozen=True, slots=True)
class ShortAnswer:
    """The answer to the three questions beside a verdict.

    Attributes:
        badge: yes, no or not settled; `assumed` where the answer rests on assumptions.
        tone: its colour.
        headline: one sentence.
        figures: value, payback time and probability, each with its range.
        num_draws: that the ranges are from.
        understood: the questions with their figures, as they were read.
        assumed: why the answer rests on assumptions and not on the evaluation; empty where it rests on that.
    """

    badge: str
    tone: Tone
    headline: str
    figures: tuple[Fact, ...]
    num_draws: int
    assumed: str = ""
    understood: str = ""


_KEPT: Final[LRUCache[ShortAnswer]] = LRUCache(500)
"""Answers that were calculated, so that a reload does not calculate them again."""


@dataclass(frozen=True, slots=True)
class WorthPart:
    """The form beside a verdict with its answer.

    Attributes:
        evaluation_id: of the evaluation.
        given: the fields as they were typed.
        answer: None until all questions are answered.
        error: why there is no answer.
    """

    evaluation_id: str
    given: Mapping[str, str]
    answer: ShortAnswer | None = None
    error: LuthierError | None = None

    @property
    def query(self) -> dict[str, str]:
        """What the address of the page holds."""
        return {name: value for name, value in self.given.items() if value}


def worth_part(
    context: Context,
    evaluation: Evaluation,
    given: Mapping[str, str],
    *,
    decimal_mark: str = ".",
    currency: ProjectCurrency | None = None,
) -> WorthPart:
    """The form, and the answer where the questions are answered. Wrong fields are an error of the part.

    Args:
        context: The home.
        evaluation: With its verdict.
        given: The fields as they were typed.
        decimal_mark: That of the page.
        currency: Of the project, which a page asks in.
    """
    is_blank = not any(given.values())
    given = in_currency(currency, given, decimal_mark)
    if is_blank:
        return WorthPart(evaluation.evaluation_id, given)
    # An answer is thousands of draws; the same questions on the same evaluation have the same one.
    key = "\n".join((str(context.home), evaluation.evaluation_id, decimal_mark, *given.values()))
    try:
        answer = _KEPT.find(key) or _KEPT.keep(
            key, _short_answer(context, evaluation, questions_of(given, decimal_mark=decimal_mark))
        )
    except LuthierError as error:
        return WorthPart(evaluation.evaluation_id, given, error=error)
    return WorthPart(evaluation.evaluation_id, given, answer)


def in_currency(currency: ProjectCurrency | None, given: Mapping[str, str], decimal_mark: str) -> dict[str, str]:
    """The fields with the currency of the project and the price of a US dollar in it, where they name none.

    Args:
        currency: Of the project; None for US dollars.
        given: The fields as they were typed.
        decimal_mark: That of the page.
    """
    if currency is None or given.get("currency", "").upper() not in ("", currency.code):
        return dict(given)
    per_usd = given.get("currency_per_usd") or currency.written(decimal_mark)
    return {**given, "currency": currency.code, "currency_per_usd": per_usd}


def questions_of(given: Mapping[str, str], *, decimal_mark: str = ".") -> Questions:
    """The questions from the fields of a form; `accuracy_today`, `rate_per_hour`, `currency` and
    `currency_per_usd` may be missing.

    Args:
        given: The fields as they were typed.
        decimal_mark: That of the page: a number in which it may also separate thousands is refused.

    Raises:
        RequestError: a figure is missing, is no number, or could be either of two.
    """
    from luthier.ml.planning.roi.questions import Questions, read_accuracy

    numbers = {name: _number(words, given.get(name, ""), decimal_mark) for name, words in QUESTIONS.items()}
    today, rate = given.get("accuracy_today", ""), given.get("rate_per_hour", "")
    per_usd = given.get("currency_per_usd", "")
    accuracy, counted = read_accuracy(_share(today), "right answers today:") if today else (None, None)
    return Questions(
        **numbers,
        accuracy_today=accuracy,
        counted_today=counted,
        rate_per_hour=_number("an hour of people", rate, decimal_mark) if rate else None,
        currency=given.get("currency", "").upper() or "USD",
        currency_per_usd=_number("price of a US dollar", per_usd, decimal_mark) if per_usd else None,
    )


def understood(asked: Questions) -> str:
    """The questions with their figures, so that a person sees how what they typed was read."""
    return (
        f"Calculated from: answers a week {asked.answers_per_week:,.12g}, minutes each {asked.minutes_each:,.12g}, "
        f"cost of a wrong answer {asked.cost_of_an_error:,.12g} {asked.currency}."
    )


def _short_answer(context: Context, evaluation: Evaluation, asked: Questions) -> ShortAnswer:
    assumed = why_assumed(evaluation)
    measured = None if assumed else evaluation.evaluation_id
    return _answered(compute_roi(context, asked, verdict=measured).result, assumed, understood(asked))


def why_assumed(evaluation: Evaluation) -> str:
    """Why an answer about a model has to rest on assumptions: its evaluation measured no share that it answers alone.

    Empty where it did.
    """
    judged = evaluation.systems[-1].name
    if any(one.system == judged for one in evaluation.label_confidence):
        return ""
    why = evaluation.label_confidence_left_out or (
        "its probabilities of labels are not stored" if evaluation.labels else "its answers are not labels"
    )
    # Without probabilities there is no measured share of cases that the model answers alone.
    return (
        f"This evaluation does not measure which cases the model can answer alone ({why}). Assumed: 20% to 80% of "
        "cases, 90% to 99% of these correctly. The figures of the evaluation are not part of the calculation."
    )


def _answered(result: RoiResult, assumed: str, understood: str) -> ShortAnswer:
    from luthier.ml.planning.roi import answer

    figures = answer.key_figures(result)
    # The break-even gains need the whole page to be understood.
    shown = tuple(one for one in figures if not one.name.startswith("Break-even"))
    badge, tone = answer.BADGES[result.answer], answer.TONES[result.answer]
    if assumed:
        badge, tone = "assumed", "open"
    return ShortAnswer(badge, tone, result.headline, shown, result.num_draws, assumed, understood)


def _number(words: str, text: str, decimal_mark: str) -> float:
    if _EITHER[decimal_mark].fullmatch(text):
        # A thousand times more or less decides what it is worth; no reader of the page can tell which was meant.
        sign = "comma" if decimal_mark == "," else "point"
        raise RequestError(
            f"{words}: a {sign} with three digits behind it can be read in two ways",
            expected="a figure such as 1000 or 2.5",
            do="write it without a separator of thousands, or with fewer decimals",
        )
    try:
        return typed_number(text, decimal_mark)
    except ValueError as error:
        raise RequestError(
            f"{words}: {text!r}" if text else f"no {words}",
            expected="a number from 0 on",
            do="write a figure such as 400 or 2.5",
        ) from error


def _share(text: str) -> str:
    """A percentage as a share, and a decimal comma as a point; a count unchanged."""
    try:
        return str(typed_number(text.removesuffix("%")) / 100) if text.endswith("%") else text.replace(",", ".")
    except ValueError:
        return text
