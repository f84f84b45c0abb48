"""What a repair has masked: counts and examples by kind, for its summary.

A summary is passed on, so a value is shown by its form only (`+49 •• ••••••`): enough to see that a sum was taken for a
telephone number, too little to reach anybody.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any, Final

from luthier.ml.data.personal_data.find import FindNames, find_personal_data
from luthier.ml.data.personal_data.recognizers import KINDS, Span
from luthier.ml.data.personal_data.secrets import Secret, find_secrets

MAX_EXAMPLES: Final = 3
_AROUND: Final = 32
_SHOWN_DIGITS: Final = 2
_LETTERS: Final = re.compile(r"[^\W\d_]+")
_HIDDEN: Final = "•"
_CUT: Final = "…"


class MaskedValues:
    """Counts and examples by kind, filled row by row: `see` each value of a row, then `end` the row."""

    def __init__(self, find_names: FindNames | None = None) -> None:
        self.find_names = find_names
        self._num_values: Counter[tuple[str, str]] = Counter()
        self._num_rows: Counter[tuple[str, str]] = Counter()
        self._examples: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self._seen: list[tuple[tuple[str, str], str, str]] = []

    def see(self, action: str, text: str, span: Span | Secret, stand_in: str) -> None:
        """Note a value that is masked in the row that was begun.

        Args:
            action: the id of the action that masks it.
            text: the text that holds it.
            span: where it is in the text.
            stand_in: what takes its place.
        """
        key = (action, span.kind)
        if len(self._examples[key]) < MAX_EXAMPLES and all(seen != key for seen, _, _ in self._seen):
            self._seen.append((key, *self._excerpts(text, span, stand_in)))

    def end(self, line: int, done: Counter[Any]) -> None:
        """Count what was done in a row, and keep the examples of it.

        Args:
            line: of the row, for its examples.
            done: (action, kind) -> number of values.
        """
        for key, num in done.items():
            if num and key[0] in ("personal_data", "secret"):
                self._num_values[key] += num
                self._num_rows[key] += 1
        for key, before, after in self._seen:
            # A text may be masked in a trial that is then dropped (`change_text`): only what was done is shown.
            if done.get(key):
                self._examples[key].append({"line": line, "before": before, "after": after})
        self._seen.clear()

    def as_json(self) -> list[dict[str, Any]]:
        """For the summary: the kinds in a fixed order."""
        order = {kind: place for place, kind in enumerate(KINDS)}
        keys = sorted(self._num_values, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))  # type: ignore[call-overload]
        return [
            {
                "action": action,
                "kind": kind,
                "num_values": self._num_values[action, kind],
                "num_rows": self._num_rows[action, kind],
                "examples": self._examples[action, kind],
            }
            for action, kind in keys
        ]

    def _excerpts(self, text: str, span: Span | Secret, stand_in: str) -> tuple[str, str]:
        """The words around a value, with the value by its form, and with its stand-in."""
        start, end = max(0, span.start - _AROUND), min(len(text), span.end + _AROUND)
        left = self._hidden(text[start : span.start], is_cut=start > 0, at_start=True)
        right = self._hidden(text[span.end : end], is_cut=end < len(text), at_start=False)
        value = form_of(text[span.start : span.end]) if isinstance(span, Span) else _HIDDEN * 8
        return f"{left}{value}{right}", f"{left}{stand_in}{right}"

    def _hidden(self, text: str, *, is_cut: bool, at_start: bool) -> str:
        """The text with all that may be personal in it by its form. A word that the cut went through is left out, as
        half of a value is not recognised."""
        if is_cut:
            text = re.sub(r"^\S*", _CUT, text) if at_start else re.sub(r"\S*$", _CUT, text, count=1)
        spans: list[Span | Secret] = [*find_personal_data(text, self.find_names), *find_secrets(text)]
        # From the right, so that earlier offsets stay valid.
        for span in sorted(spans, key=lambda span: span.start, reverse=True):
            text = text[: span.start] + form_of(text[span.start : span.end]) + text[span.end :]
        return text


def form_of(value: str) -> str:
    """A value with the first letter of each word and its first two digits; dots represent the rest."""
    shown = _LETTERS.sub(lambda match: match[0][0] + _HIDDEN * (len(match[0]) - 1), value)
    num_digits = 0
    characters = []
    for character in shown:
        num_digits += character.isdigit()
        characters.append(_HIDDEN if character.isdigit() and num_digits > _SHOWN_DIGITS else character)
    return "".join(characters)
