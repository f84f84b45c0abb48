"""Blocks between fences of three backticks, as models write them around code, SQL and JSON."""

from __future__ import annotations

import re

# Fences count at the beginning of a line alone: three backticks inside code do not end it.
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_OPENING = re.compile(r"\A\s*```[^\n`]*\n")


def fenced_blocks(text: str) -> list[str]:
    """The text between fences, in order; an unclosed fence is none."""
    return _FENCED.findall(text)


def outside_of_fences(text: str) -> str:
    """The text before, between and after the fenced blocks, without white space at its ends."""
    return _FENCED.sub("", text).strip()


def first_block(text: str) -> str:
    """The first fenced block; the whole answer where there is none, without a fence that is opened and never closed."""
    blocks = fenced_blocks(text)
    return blocks[0] if blocks else _OPENING.sub("", text)
