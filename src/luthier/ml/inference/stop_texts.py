"""Stop texts of a request, which end an answer where its text has one.

They count in the text of the answer alone. A thought comes before it, and a call of a tool is cut nowhere: a line feed
in a call would leave arguments that are no JSON, reported as a whole call.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from luthier.ml.inference.models.templates.thinking import num_open
from luthier.ml.inference.tool_calls.call_spans import CallSpans

if TYPE_CHECKING:
    from luthier.ml.inference.tool_calls.channels import CallReader


class StopTexts:
    """Detects stop texts, also across pieces.

    If several match, the one completed first counts, so that the result does not depend on how the text is divided into
    pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found_text: str | None = None

    @property
    def found(self) -> bool:
        """Whether a stop text is complete."""
        return self.found_text is not None

    def add(self, text: str) -> str:
        """The text so far that is certainly not part of a stop text. Sets `found_text` when one is complete."""
        if not self._stops or self.found:
            return "" if self.found else text
        self._held += text
        # By the end position of the stop text: the one completed first.
        matches = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if matches:
            end, place = min(matches)
            self.found_text = self._held[place:end]
            return self._take(place)
        return self._take(len(self._held) - max(num_open(self._held, stop) for stop in self._stops))

    def end(self) -> str:
        """Flush what was held back, at the end of the text."""
        return "" if self.found else self._take(len(self._held))

    def _take(self, num: int) -> str:
        taken, self._held = self._held[:num], self._held[num:]
        return taken


class StopsBesideCalls:
    """Detects stop texts of an answer outside of its calls; what it returns has the calls as the model wrote them.

    Args:
        stops: the stop texts.
        calls: reads the calls of the answer, for this object alone; None where nothing may be called.
    """

    def __init__(self, stops: Sequence[str], calls: CallReader | None) -> None:
        self._stops = StopTexts(stops)
        # It reads character by character: only where there is something to look for.
        self._spans = CallSpans(calls) if calls is not None and any(stops) else None
        self._text, self._num_passed = "", 0

    @property
    def found_text(self) -> str | None:
        """The stop text that has ended the answer."""
        return self._stops.found_text

    def add(self, text: str) -> str:
        """The answer so far, with its calls, up to what may be part of a stop text or of a call."""
        if self._spans is None:
            return self._stops.add(text)
        self._text += text
        self._spans.add(text)
        return self._decided(self._spans)

    def end(self) -> str:
        """Flush what was held back, at the end of the answer."""
        if self._spans is None:
            return self._stops.end()
        self._spans.end()
        return self._decided(self._spans) + self._stops.end()

    def _decided(self, spans: CallSpans) -> str:
        """What has become certain, as text or as part of a call."""
        kinds = spans.kinds(self._num_passed)
        self._num_passed += len(kinds)
        passed = ""
        for is_text, run in groupby(kinds):
            num = len(list(run))
            part, self._text = self._text[:num], self._text[num:]
            if is_text:
                passed += self._stops.add(part)
            elif not self._stops.found:
                # A stop text does not continue behind a call.
                passed += self._stops.end() + part
        return passed
