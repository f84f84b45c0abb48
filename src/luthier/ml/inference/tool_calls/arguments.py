"""Names of tools, and the end of the arguments of a call, a JSON object that arrives in pieces."""

from __future__ import annotations

from typing import Final

MAX_NAME_CHARACTERS: Final = 128
"""As Anthropic and the Model Context Protocol have it; OpenAI allows 64."""
TOOL_NAME: Final = rf"[a-zA-Z0-9_-]{{1,{MAX_NAME_CHARACTERS}}}"
"""The names that a tool may have, as a regular expression."""


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
