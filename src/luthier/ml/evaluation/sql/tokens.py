"""A query as tokens: enough to find names, constants and operators in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

TokenKind = Literal["space", "text", "name", "number", "word", "sign"]
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])
    | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<word>\w+)
    | (?P<sign><>|[<>!=]=|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a query.

    Attributes:
        kind: what it is; a name is an identifier in quotes.
        text: as written.
    """

    kind: TokenKind
    text: str

    @property
    def value(self) -> str:
        """The text of a constant or name without its quotes."""
        if self.kind in ("text", "name"):
            mark = self.text[0]
            return self.text[1:-1].replace(mark * 2, mark)
        return self.text

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these words (in capitals), outside of quotes."""
        return self.kind == "word" and self.text.upper() in words


def tokens_of(query: str) -> list[Token]:
    """All pieces of the query; joined they are the query again."""
    return [Token(_kind(match.lastgroup), match.group()) for match in _TOKEN.finditer(query)]


def text_of(value: str) -> str:
    """A constant as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def name_of(value: str) -> str:
    """An identifier as SQL writes it."""
    return '"' + value.replace('"', '""') + '"'


def is_ordered(query: str) -> bool:
    """Whether the query as a whole asks for an order, so that the order of its rows counts."""
    depth, before = 0, Token("space", "")
    for token in tokens_of(query):
        if token.kind == "space":
            continue
        # ORDER BY inside parentheses orders a subquery or a window, not the result.
        depth += (token.text == "(") - (token.text == ")")
        if depth == 0 and before.is_word("ORDER") and token.is_word("BY"):
            return True
        before = token
    return False


def _kind(group: str | None) -> TokenKind:
    kinds: dict[str | None, TokenKind] = {
        "space": "space",
        "text": "text",
        "name": "name",
        "number": "number",
        "word": "word",
    }
    return kinds.get(group, "sign")
