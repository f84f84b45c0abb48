"""Regular expressions that callers bring, with a bound on time: `(.+)+x` on forty letters takes Python's `re` forever.

They are compiled and searched by the package `regex`, which knows the syntax of `re` and ends a search that takes too
long. Patterns of our own need none of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from luthier.core.errors import RequestError, are_library_words_hidden

MAX_CHARACTERS: Final = 2000
"""Of a pattern."""
SEARCH_SECONDS: Final = 2.0
"""Of one text; an honest pattern takes a thousandth of it."""


class BoundedPattern:
    """A pattern of a caller.

    Args:
        name: What it is called in errors, such as `pattern product`.
        pattern: In the syntax of Python's `re`.
        ignore_case: Whether capitals make no difference.

    Raises:
        RequestError: it is no regular expression, or too long for one.
    """

    def __init__(self, name: str, pattern: str, *, ignore_case: bool = False) -> None:
        import regex

        self.name, self.pattern = name, pattern
        try:
            # Compiling is not covered by the time-out, so the length of the pattern bounds it.
            if len(pattern) > MAX_CHARACTERS:
                raise ValueError(f"it has {len(pattern):,} characters, more than {MAX_CHARACTERS:,}")
            self._compiled = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
        except (regex.error, ValueError, OverflowError, RecursionError) as error:
            # A library's message may quote text of this machine; the position of the mistake is harmless.
            where = getattr(error, "pos", None)
            reason = "it has a mistake" + ("" if where is None else f" at character {where + 1}")
            raise RequestError(
                f"{name}: {pattern[:100]!r} is not a regular expression: "
                f"{reason if are_library_words_hidden() else error}",
                expected="one that Python's re takes",
                do="correct it",
            ) from error

    @property
    def groups(self) -> frozenset[str]:
        """The names of its groups."""
        return frozenset(self._compiled.groupindex)

    @property
    def fits_nothing(self) -> bool:
        """Whether it fits an empty text."""
        return self._compiled.match("") is not None

    def search(self, text: str) -> bool:
        """Whether it fits somewhere in a text.

        Raises:
            RequestError: that takes too long.
        """
        try:
            return self._compiled.search(text, timeout=SEARCH_SECONDS) is not None
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def fullmatch(self, text: str) -> bool:
        """Whether it fits the whole of a text.

        Raises:
            RequestError: that takes too long.
        """
        try:
            return self._compiled.fullmatch(text, timeout=SEARCH_SECONDS) is not None
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def finditer(self, text: str) -> Iterator[Any]:
        """The matches in a text, as `re.finditer` gives them.

        Raises:
            RequestError: that takes too long.
        """
        try:
            # The time-out covers the whole iteration, not each match.
            yield from self._compiled.finditer(text, timeout=SEARCH_SECONDS)
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def _too_slow(self, text: str) -> RequestError:
        return RequestError(
            f"{self.name}: {self.pattern[:100]!r} takes more than {SEARCH_SECONDS:g} s on a text of {len(text):,} "
            "characters",
            expected="a pattern whose time grows with the text alone",
            do="take repetitions within repetitions out of it, such as (a+)+",
        )
