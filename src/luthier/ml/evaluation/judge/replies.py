"""Read what a judge replied: a verdict, or why it is none. Nothing is guessed.

Tried in this order, the judge's thoughts left out:

1. JSON objects with the keys that were requested, in fences or with prose around; other keys are passed over;
2. lines that say nothing but a verdict: `B`, `[[B]]`, `Answer B`, `Better: B`, `Relevance: 4/5`.

All verdicts in a reply must be the same one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from luthier.core.ports import Generation
from luthier.core.records.calibration import NoVerdictKind
from luthier.core.reply_text import ends_in_thoughts, json_objects, without_thoughts
from luthier.core.results.suite import Criterion

Shown = Literal["A", "B", "tie"]
"""The answer shown first, the one shown second, or neither."""

_PREFERENCE_KEYS: Final = ("better", "winner", "verdict", "choice", "preference")
_WORDS: Final[Mapping[str, Shown]] = {
    "a": "A", "b": "B", "tie": "tie", "both": "tie", "neither": "tie", "equal": "tie", "draw": "tie",
}  # fmt: skip
_MAX_LINE_CHARACTERS: Final = 200
_LINE: Final = re.compile(
    r"[\W_]*(?:(?:the )?(?:better|best|winner|verdict|choice|preference)(?: answer)?(?: is)?[\W_]+)?"
    r"(?:(?:answer|option|response)[\W_]+)?(?P<word>a|b|tie|both|neither|equal|draw)[\W_]*(?:is better[\W_]*)?",
    re.IGNORECASE,
)
_SCORE: Final = re.compile(r"(?P<number>[+-]?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5)?", re.IGNORECASE)
_SCORE_LINE: Final = r"[\W_]*{name}[\W_]*?[:=-][\W_]*?(?P<score>[+-]?\d\S*(?:\s*(?:/|out of)\s*5)?)[\W_]*"
_REFUSAL: Final = re.compile(
    r"\b(?:i(?:'m| am)? (?:sorry|unable|not able|cannot|can ?not|can't|won't|will not|must decline|decline)"
    r"|sorry,|(?:i )?apologi[sz]e|as an? (?:ai|language model))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """A reply that is no verdict, and why.

    Attributes:
        kind: why there is no verdict.
        reply: its text.
    """

    kind: NoVerdictKind
    reply: str = ""


def read_preference(made: Generation) -> Shown | NoVerdict:
    """Which of two answers the judge prefers."""
    text = without_thoughts(made.text)
    if (missing := _nothing_said(text, made)) is not None:
        return missing
    found: list[Shown | None] = []
    for document in json_objects(text):
        # Judges vary the case of keys: "Winner", "BETTER".
        fields = {str(name).strip().casefold(): value for name, value in document.items()}
        said = [fields[key] for key in _PREFERENCE_KEYS if key in fields]
        found += [_preference(value) for value in said if not isinstance(value, dict)]
    if not found:
        matches = [_LINE.fullmatch(line) for line in _lines(text)]
        found = [_WORDS[match["word"].casefold()] for match in matches if match is not None]
    if not found:
        return _unsaid(text, made)
    if None in found:
        return NoVerdict("out of range", made.text)
    verdicts = {one for one in found if one is not None}
    return verdicts.pop() if len(verdicts) == 1 else NoVerdict("contradiction", made.text)


def read_scores(made: Generation, criteria: Sequence[Criterion]) -> dict[Criterion, int] | NoVerdict:
    """The score of each criterion."""
    text = without_thoughts(made.text)
    if (missing := _nothing_said(text, made)) is not None:
        return missing
    said: dict[Criterion, set[int | None]] = {criterion: set() for criterion in criteria}
    for document in json_objects(text):
        fields = {str(name).strip().casefold(): value for name, value in document.items()}
        for criterion in criteria:
            if criterion in fields:
                said[criterion].add(_score(fields[criterion]))
    if not any(said.values()):
        for criterion in criteria:
            pattern = re.compile(_SCORE_LINE.format(name=criterion), re.IGNORECASE)
            matches = [pattern.fullmatch(line) for line in _lines(text)]
            said[criterion] = {_score(match["score"]) for match in matches if match is not None}
        if len(criteria) == 1 and _SCORE.fullmatch(text):
            said[criteria[0]].add(_score(text))
    if not any(said.values()):
        return _unsaid(text, made)
    if any(None in scores for scores in said.values()):
        return NoVerdict("out of range", made.text)
    if any(len(scores) > 1 for scores in said.values()):
        return NoVerdict("contradiction", made.text)
    if not all(said.values()):
        return NoVerdict("cut off" if made.finish_reason == "length" else "incomplete", made.text)
    return {criterion: next(one for one in scores if one is not None) for criterion, scores in said.items()}


def _nothing_said(text: str, made: Generation) -> NoVerdict | None:
    if not text:
        return NoVerdict("cut off" if made.finish_reason == "length" else "empty", made.text)
    return NoVerdict("cut off", made.text) if ends_in_thoughts(text) else None


def _lines(text: str) -> list[str]:
    """The lines that may be a verdict and nothing else: the short ones."""
    return [line for line in text.splitlines() if len(line) <= _MAX_LINE_CHARACTERS]


def _unsaid(text: str, made: Generation) -> NoVerdict:
    """There are words, and no verdict in them."""
    if _REFUSAL.search(text.replace("\u2019", "'")[:300]):
        return NoVerdict("refusal", made.text)
    return NoVerdict("cut off" if made.finish_reason == "length" else "prose", made.text)


def _preference(value: Any) -> Shown | None:
    if not isinstance(value, str):
        return None
    match = _LINE.fullmatch(value)
    return None if match is None else _WORDS[match["word"].casefold()]


def _score(value: Any) -> int | None:
    """1 to 5, written as a number or as text; None for everything else."""
    match = _SCORE.fullmatch(value.strip()) if isinstance(value, str) else None
    number = float(match["number"]) if match is not None else 0.0
    # json_objects gives numbers as text. 4.5 is refused, not rounded: nothing is guessed.
    return int(number) if number in (1, 2, 3, 4, 5) else None
