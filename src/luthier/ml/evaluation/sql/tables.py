"""A table that is only described: its name and columns, and queries that write these without quotes.

WikiSQL (Zhong, Xiong, Socher, "Seq2SQL", 2017) writes `SELECT COUNT Crop (kilotonnes) FROM 1-1057262-2`, which no
database reads. Here, by one rule for the row's own query and for answers alike:

- a name of the table or of a column, the longest first and in any capitals, is put into quotes where it occurs outside
  of them. It is no name where it is a word of SQL itself, or a number that follows a comparison;
- an aggregate before a name without parentheses gets them: COUNT x becomes COUNT(x);
- a constant in single quotes ends at the quote after which the query can go on, so that 'O'Brien' is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.ml.evaluation.sql.tokens import name_of, text_of

AGGREGATES: Final = ("COUNT", "MAX", "MIN", "SUM", "AVG")
_DESCRIPTION = re.compile(r"^[ \t]*table:[ \t]*(\S[^\n]*?)[ \t]*\n[ \t]*columns:[ \t]*(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_COMMA = re.compile(r",\s+")
# fmt: off
_WORDS: Final = frozenset((
    "SELECT", "FROM", "WHERE", "AND", "OR", "NOT", "AS", "ON", "JOIN", "BY", "IN", "LIKE", "BETWEEN", "NULL",
    "IS", "DISTINCT", "LIMIT", "ASC", "DESC", "HAVING", "CASE", "WHEN", "THEN", "ELSE", "END", "UNION",
    "EXCEPT", "INTERSECT", "ALL", "EXISTS",
))
# fmt: on
# What may follow a constant: the end, a sign, or a word that continues with the query.
_AFTER_CONSTANT = re.compile(
    r"\s*(?:\Z|[),;=<>!|+*/-]|(?:AND|OR|ORDER|GROUP|HAVING|LIMIT|UNION|EXCEPT|INTERSECT|AS|THEN|ELSE|WHEN|END|IN|IS|"
    r"LIKE|BETWEEN|NOT|FROM|WHERE|COLLATE)\b)",
    re.IGNORECASE,
)
_COMPARISON_BEFORE = re.compile(r"[=<>]\s*\Z")
_AGGREGATE_BEFORE = re.compile(rf"\b(?:{'|'.join(AGGREGATES)})\s+\Z", re.IGNORECASE)
_QUOTED_NAME = re.compile(r'"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]')


@dataclass(frozen=True, slots=True)
class Table:
    """A described table.

    Attributes:
        name: as it is described.
        columns: names in order, each once.
    """

    name: str
    columns: tuple[str, ...]


def described_table(text: str) -> Table | None:
    """The first table that a text describes as `table: NAME` with `columns: A, B` on the next line; None for none.

    A comma inside of parentheses, or without a space after it, belongs to a name. A name that comes twice is one
    column.
    """
    found = _DESCRIPTION.search(text)
    if found is None:
        return None
    columns: dict[str, str] = {}
    for column in _split(found[2]):
        columns.setdefault(column.casefold(), column)
    return Table(found[1], tuple(columns.values()))


def written_out(query: str, table: Table) -> str:
    """The query with all names of the table in quotes, by the rule above."""
    names = _patterns((table.name, *table.columns))
    done: list[str] = []
    place = 0
    while place < len(query):
        # The last pieces are enough to see a comparison or an aggregate right before this place.
        so_far = "".join(done[-4:])
        if query[place] == "'":
            end = _end_of_constant(query, place)
            done.append(text_of(query[place + 1 : end].replace("''", "'")) if end < len(query) else query[place:])
            place = end + 1
        elif quoted := _QUOTED_NAME.match(query, place):
            done.append(quoted[0])
            place = quoted.end()
        elif found := _name_at(query, place, names, so_far):
            length, name = found
            is_aggregated = bool(_AGGREGATE_BEFORE.search(so_far))
            done.append(f"({name_of(name)})" if is_aggregated else name_of(name))
            place += length
        else:
            word = re.compile(r"\w+|.", re.DOTALL).match(query, place)
            assert word is not None
            done.append(word[0])
            place = word.end()
    return "".join(done)


def _name_at(
    query: str, place: int, names: Sequence[tuple[str, re.Pattern[str]]], before: str
) -> tuple[int, str] | None:
    """The longest name at this position outside of a word: how long it is there, and how the table writes it."""
    for name, pattern in names:
        found = pattern.match(query, place)
        if found is None or (place and _is_inside_word(query[place - 1], query[place])):
            continue
        if name.isdigit() and _COMPARISON_BEFORE.search(before):
            continue
        after = query[found.end() :].lstrip()
        upper = name.upper()
        if upper in ("ORDER", "GROUP") and after[:2].upper() == "BY":
            continue
        if upper in AGGREGATES and not _ends_a_name(after):
            continue
        return found.end() - place, name
    return None


def _patterns(names: Sequence[str]) -> list[tuple[str, re.Pattern[str]]]:
    """Each name, the longest first, with what matches it: white space of any length, and no word going on behind."""
    usable = [n for n in names if n.upper() not in _WORDS and not re.fullmatch(r"[\s=<>()*,;'\"!]*", n)]
    found = []
    for name in sorted(usable, key=len, reverse=True):
        middle = r"\s+".join(map(re.escape, name.split()))
        found.append((name, re.compile(middle + (r"(?!\w)" if name[-1:].isalnum() else ""), re.IGNORECASE)))
    return found


def _is_inside_word(before: str, here: str) -> bool:
    return (before.isalnum() or before == "_") and (here.isalnum() or here == "_")


def _ends_a_name(after: str) -> bool:
    """Whether what follows shows that a column called like an aggregate is meant: the query goes on, or ends."""
    return bool(_AFTER_CONSTANT.match(after))


def _end_of_constant(query: str, start: int) -> int:
    """Index of the closing quote of a constant; the query's length where nothing closes it."""
    place = query.find("'", start + 1)
    while place >= 0:
        if query[place : place + 2] == "''" and not (place == start + 1 and _AFTER_CONSTANT.match(query, place + 1)):
            place = query.find("'", place + 2)
        elif _AFTER_CONSTANT.match(query, place + 1):
            return place
        else:
            place = query.find("'", place + 1)
    return len(query)


def _split(columns: str) -> list[str]:
    """Names between commas, joined again where the comma is inside parentheses."""
    joined: list[str] = []
    for part in _COMMA.split(columns):
        if joined and joined[-1].count("(") > joined[-1].count(")"):
            joined[-1] += f", {part}"
        else:
            joined.append(part)
    return [name.strip() for name in joined if name.strip()]
