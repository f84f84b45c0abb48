"""The end of a JSON object that arrives in pieces, such as the arguments of a tool call."""

from __future__ import annotations


class CallArguments:
    """Finds the end of an object.

    Args:
        depth: of objects and lists that are open already.

    Attributes:
        has_ended: whether the end was found.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth, self._is_text, self._is_escaped = depth, False, False
        self.has_ended = False

    def num_own(self, text: str) -> int:
        """The number of characters of this next piece that belong to the object."""
        for place, character in enumerate(text):
            # Braces inside a string and quotes after a backslash do not count.
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_text:
                self._is_escaped = character == "\\"
                self._is_text = character != '"'
            elif character == '"':
                self._is_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.has_ended = True
                    return place + 1
        return len(text)
