"""Scores and labels in the replies of models that grade."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final

from luthier.core.conversation import ends_in_thoughts, json_objects, without_thoughts

# A comma is a decimal one, as in "8,5", unless it separates thousands; a list such as 3,4,5 has none. Digits are
# bounded so that a judge that repeats one does not take long to read.
_NUMBER: Final = r"-?(?:\d{1,20},\d{1,20}(?![.,]?\d)|\d{1,20}(?:\.\d{1,20})?|(?<!\w)\.\d{1,20})(?:[eE][-+]?\d{1,3})?"
_THOUSANDS: Final = re.compile(r"-?[1-9]\d{0,2},\d{3}\b")
_ANY_NUMBER: Final = re.compile(_NUMBER)
_FIRST: Final = re.compile(rf"[\s*_#\"'`(\[]*({_NUMBER})")
_ALONE: Final = re.compile(rf"[\s*_#\"'`(\[]*({_NUMBER})[\s*_\"'`)\].]*")
_OUT_OF: Final = re.compile(
    rf"({_NUMBER})[*_\s]*(?:/|\b(?:out of|of|von|sur|de|su|van)\b)[*_\s]*({_NUMBER})", re.IGNORECASE
)
# "Score: 8", "I would rate this answer a 7". The first number of "1 to 10" is the end of a scale.
_NAMED: Final = re.compile(
    r"\b(?:scor|rat(?:e|ed|es|ing)\b|grade|bewert|wertung|note\b|calific|puntuac|punteggio|voto\b|nota\b"
    r"|(?:give|assign|award|deserve|merit)(?:s|ed)?\b)"
    rf"[^\n\d.,;!?]{{0,40}}?({_NUMBER})(?![.,]?\d|\s*(?:to|through|bis|[-\u2013])\s*\d)",
    re.IGNORECASE,
)
# "Overall score: 7", "Gesamtnote: 2", which may come after scores of parts.
_TOTAL: Final = re.compile(
    r"\b(?:final|overall|total|gesamt)[^\W\d]*(?:[ \t]+[^\W\d]+)?[*_ \t]*(?:[:=]|\b(?:is|ist)\b)[*_ \t]*"
    rf"({_NUMBER})",
    re.IGNORECASE,
)
_LIST_MARK: Final = re.compile(r"^[ \t]*\d{1,2}[.)][ \t]+(?=\S)", re.MULTILINE)


def score_in(said: str, low: float, high: float) -> float | None:
    """The number that a model's answer gives as its score, without its thoughts.

    It is the field `result` of its JSON; otherwise that of an overall score; the number behind a word such as score or
    rating, or of "8/10" and "8 out of 10", where 10 is the upper end; the one that the answer begins with; the only one
    in it; or the one that is alone in its last line. Numbers of reasons, as in "It meets 2 of 3 criteria", are none.

    Args:
        said: the answer.
        low: lower end of the scale.
        high: upper end of the scale.

    Returns:
        The number; None where there is none, where several could be meant, or for one outside of the scale.
    """
    said = without_thoughts(said)
    if ends_in_thoughts(said):
        return None
    result = _result_in(said)
    try:
        found: float | None = float(said if result is None else result)
    except (TypeError, ValueError):
        # As 8/10, also where it is the result.
        text = said if result is None else result
        found = _stated(text.strip(), high) if isinstance(text, str) else None
    # A judge that repeats itself writes whole numbers beyond any float.
    return found if found is not None and math.isfinite(found) and low <= found <= high else None


def _stated(text: str, high: float) -> float | None:
    """The number that a text states as a score; None where there is none, or several that could be it."""
    if len(_LIST_MARK.findall(text)) > 1:
        text = _LIST_MARK.sub("", text)
    # Shares of something else, such as 2 of 3 criteria.
    text = _OUT_OF.sub(lambda share: share[0] if _value(share[2]) == high else " ", text)
    if len(total := {_value(one) for one in _TOTAL.findall(text)}) == 1:
        return total.pop()
    if stated := {_value(one) for one in _NAMED.findall(text)} | {_value(one) for one, _ in _OUT_OF.findall(text)}:
        return stated.pop() if len(stated) == 1 else None
    if first := _FIRST.match(text):
        return _value(first[1])
    numbers = {_value(one) for one in _ANY_NUMBER.findall(text)}
    if len(numbers) > 1 and (last := _ALONE.fullmatch(text.rsplit("\n", 1)[-1])):
        return _value(last[1])
    return numbers.pop() if len(numbers) == 1 else None


def _value(number: str) -> float:
    return float(number.replace(",", "" if _THOUSANDS.match(number) else "."))


def label_in(said: str, labels: Sequence[str], passing_labels: Sequence[str]) -> float | None:
    """Whether the label in a model's answer passes: 1 or 0; None unless it contains exactly one of the labels.

    Args:
        said: the answer, in which the field `result` of JSON decides; thoughts do not count.
        labels: all labels.
        passing_labels: those that pass.
    """
    said = without_thoughts(said)
    if ends_in_thoughts(said):
        return None
    result = _result_in(said)
    said = result if isinstance(result, str) else said
    plain = said.strip().strip("\"'.`").casefold()
    exact = [label for label in labels if label.strip().casefold() == plain]
    # A label within a sentence counts, but only without another label.
    found = exact or [label for label in labels if _has_word(said.casefold(), label.strip().casefold())]
    return float(found[0] in passing_labels) if len(found) == 1 else None


def has_result(said: str) -> bool:
    """Whether an answer, of which the rest may be cut off, has the JSON whose field `result` decides."""
    return _result_in(without_thoughts(said)) is not None


def _result_in(said: str) -> Any:
    """The field `result` of the JSON in an answer, in a fence or with prose around it, too; None without one."""
    return next((document["result"] for document in json_objects(said) if "result" in document), None)


def _has_word(text: str, word: str) -> bool:
    """Whether a text has a word that is no part of a longer one: `incorrect` is not `correct`."""
    place = text.find(word)
    while place >= 0:
        if not (_continues(text[place - 1 : place] if place else "") or _continues(text[place + len(word) :][:1])):
            return True
        place = text.find(word, place + 1)
    return False


def _continues(character: str) -> bool:
    """Whether a character beside a word is a part of it; in scripts without case, words are often written together."""
    return character.isdigit() or character.lower() != character.upper()
