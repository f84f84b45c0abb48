"""SQL for the text-to-SQL task: tokenised queries, described tables, and generated test databases.

Two queries are compared by running both. One database can agree by chance, so random databases are generated with the
query's constants and near misses of them; those are kept that distinguish the query from its neighbours, each one
change away.

A table may come without a database, as in WikiSQL, whose `SELECT COUNT Crop (kilotonnes) FROM 1-1057262-2` no database
reads. The same rule applies to the row's query and to answers:

- a name of the table or of a column, the longest first and in any capitals, is put into quotes where it occurs outside
  of them. It is not a name where it is a word of SQL itself, or a number that follows a comparison;
- an aggregate before a name without parentheses gets them: COUNT x becomes COUNT(x);
- a constant in single quotes ends at the quote after which the query can continue, so that 'O'Brien' is one.

Sources: Zhong, Yu, Klein, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites", 2020, section 3 (random
databases 3.2, neighbours 3.3); Zhong, Xiong, Socher, "Seq2SQL", 2017 (WikiSQL).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.ids import sha256_document
from luthier.ml.evaluation.sandbox.runners import Database, Result

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
        """The text of a constant or name, unquoted."""
        if self.kind in ("text", "name"):
            mark = self.text[0]
            return self.text[1:-1].replace(mark * 2, mark)
        return self.text

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these words (upper case), unquoted."""
        return self.kind == "word" and self.text.upper() in words


def tokens_of(query: str) -> list[Token]:
    """All tokens of the query; concatenated they give the query."""
    return [Token(_kind(match.lastgroup), match.group()) for match in _TOKEN.finditer(query)]


def text_of(value: str) -> str:
    """A constant as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def name_of(value: str) -> str:
    """A quoted SQL identifier."""
    return '"' + value.replace('"', '""') + '"'


def is_ordered(query: str) -> bool:
    """Whether the outer query has an ORDER BY, so that the order of its rows counts."""
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
# What may follow a constant: the end, an operator, or a keyword.
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
        name: from the description.
        columns: names in order, each once.
    """

    name: str
    columns: tuple[str, ...]


def described_table(text: str) -> Table | None:
    """The first table that a text describes as `table: NAME` with `columns: A, B` on the next line; None for none.

    A comma inside of parentheses, or without a space after it, belongs to a name. A repeated name is one column.
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
    """The longest name at this position outside of a word: its length there, and its spelling in the table."""
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
    """Each name, longest first, with its pattern: any white space, and a word boundary at the end."""
    usable = [n for n in names if n.upper() not in _WORDS and not re.fullmatch(r"[\s=<>()*,;'\"!]*", n)]
    found = []
    for name in sorted(usable, key=len, reverse=True):
        middle = r"\s+".join(map(re.escape, name.split()))
        found.append((name, re.compile(middle + (r"(?!\w)" if name[-1:].isalnum() else ""), re.IGNORECASE)))
    return found


def _is_inside_word(before: str, here: str) -> bool:
    return (before.isalnum() or before == "_") and (here.isalnum() or here == "_")


def _ends_a_name(after: str) -> bool:
    """Whether the following text shows that the name is a column and not an aggregate."""
    return bool(_AFTER_CONSTANT.match(after))


def _end_of_constant(query: str, start: int) -> int:
    """Index of the closing quote of a constant; the query's length if it is unclosed."""
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
    """Names separated by commas, ignoring commas inside parentheses."""
    joined: list[str] = []
    for part in _COMMA.split(columns):
        if joined and joined[-1].count("(") > joined[-1].count(")"):
            joined[-1] += f", {part}"
        else:
            joined.append(part)
    return [name.strip() for name in joined if name.strip()]


_COMPARISONS: Final = ("=", "<", ">", "<=", ">=", "!=")
_MOST = 80


def neighbours(table: Table, query: str) -> tuple[str, ...]:
    """Another column, aggregate, comparison or constant in one place, or one condition less; at most 80, evenly."""
    tokens = tokens_of(query)
    changed: Iterator[Sequence[Token | str]] = (
        change
        for place in range(len(tokens))
        for change in (*_other_names(table, tokens, place), *_other_signs(tokens, place), *_less(tokens, place))
    )
    texts = ("".join(t if isinstance(t, str) else t.text for t in one) for one in changed)
    found = [text for text in dict.fromkeys(texts) if text != query]
    # Evenly spaced over the query, so that changes at its end are included.
    step = max(1, -(-len(found) // _MOST))
    return tuple(found[::step])


def _other_names(table: Table, tokens: list[Token], place: int) -> Iterator[list[Token | str]]:
    token = tokens[place]
    if token.kind != "name" or token.value.casefold() not in {column.casefold() for column in table.columns}:
        return
    for column in table.columns:
        if column.casefold() != token.value.casefold():
            yield [*tokens[:place], name_of(column), *tokens[place + 1 :]]
    before = next((t for t in reversed(tokens[:place]) if t.kind != "space"), None)
    if before is not None and before.is_word("SELECT"):
        for aggregate in AGGREGATES:
            yield [*tokens[:place], f"{aggregate}({token.text})", *tokens[place + 1 :]]


def _other_signs(tokens: list[Token], place: int) -> Iterator[list[Token | str]]:
    token = tokens[place]
    others: list[str] = []
    if token.is_word(*AGGREGATES):
        others = [aggregate for aggregate in AGGREGATES if aggregate != token.text.upper()] + [""]
    elif token.text in _COMPARISONS:
        others = [comparison for comparison in _COMPARISONS if comparison != token.text]
    elif token.kind == "text":
        others = [text_of(token.value + "x"), text_of(token.value[:-1])]
    elif token.kind == "number":
        others = [f"{token.text} + 1", f"{token.text} - 1"]
    elif token.is_word("AND"):
        others = ["OR"]
    for other in others:
        yield [*tokens[:place], other, *tokens[place + 1 :]]


def _less(tokens: list[Token], place: int) -> Iterator[list[Token | str]]:
    """Without the condition after WHERE or AND, up to the next AND or the end."""
    if not tokens[place].is_word("WHERE", "AND"):
        return
    after = [at for at in range(place + 1, len(tokens)) if tokens[at].is_word("AND")]
    if after:
        yield [*tokens[: place + 1], *tokens[after[0] + 1 :]]
    elif not any(token.is_word("ORDER", "GROUP", "LIMIT") or token.text == ")" for token in tokens[place:]):
        yield [*tokens[:place]]


Value = str | int | float | None
Run = Callable[[Database, Sequence[str]], list[Result]]
_FEWEST, _MAX_TRIES = 3, 24
_FEWEST_ROWS, _MAX_ROWS = 8, 24
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we", "xi")


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Databases for one query.

    Attributes:
        databases: the selected databases.
        results: of the query in each database.
        num_neighbours: number of queries one change away.
        num_same: those of them that no database distinguishes from it (some are equivalent).
        error: why the query itself does not run, so that there are no databases; otherwise None.
    """

    databases: tuple[Database, ...]
    results: tuple[Result, ...]
    num_neighbours: int
    num_same: int
    error: str | None = None


def made_up(table: Table, query: str, run: Run) -> MadeUp:
    """Databases for this query on this table, deterministic.

    Args:
        table: described by the row.
        query: the row's own query, with names in quotes.
        run: runs queries in a database.
    """
    others = neighbours(table, query)
    # Seeded by the content: the same row gets the same databases in every run and on every machine.
    chance = random.Random(sha256_document([table.name, list(table.columns), query]))  # noqa: S311
    constants, numeric = _constants(table, query), _numeric(table, query)
    databases: list[Database] = []
    results: list[Result] = []
    same = list(others)
    for attempt in range(_MAX_TRIES):
        # NULLs only in every second database: other neighbours need one without them.
        rows = _rows(table, constants, numeric, chance, has_gaps=attempt % 2 == 1)
        database = Database(script=_script(table, rows))
        # Only neighbours that no earlier database has distinguished are run again.
        own, *told = run(database, [query, *same])
        if own.error is not None:
            return MadeUp((), (), len(others), len(others), own.error)
        left = [other for other, result in zip(same, told, strict=True) if result.in_any_order == own.in_any_order]
        if len(left) < len(same) or attempt < _FEWEST:
            databases.append(database)
            results.append(own)
        same = left
        if not same and len(databases) >= _FEWEST:
            break
    return MadeUp(tuple(databases), tuple(results), len(others), len(same))


def _constants(table: Table, query: str) -> dict[str, list[Value]]:
    """By column, the constants it is compared with: those that follow it, up to the next column."""
    found: dict[str, list[Value]] = {}
    column: str | None = None
    is_pattern = False
    names = {name.casefold(): name for name in table.columns}
    for token in tokens_of(query):
        if token.kind == "name":
            column, is_pattern = names.get(token.value.casefold()), False
        elif token.is_word("LIKE"):
            is_pattern = True
        elif column is not None and token.kind in ("text", "number"):
            value = token.value.strip("%") if is_pattern else token.value
            found.setdefault(column, []).append(_number(value))
    return found


def _numeric(table: Table, query: str) -> set[str]:
    """The columns that the query computes with."""
    names = {name.casefold(): name for name in table.columns}
    tokens = [token for token in tokens_of(query) if token.kind != "space"]
    return {
        names[name.value.casefold()]
        for aggregate, name in zip(tokens, tokens[2:], strict=False)
        if aggregate.is_word(*AGGREGATES[1:]) and name.kind == "name" and name.value.casefold() in names
    }


def _rows(
    table: Table, constants: dict[str, list[Value]], numeric: set[str], chance: random.Random, *, has_gaps: bool
) -> list[list[Value]]:
    """The first few rows contain the query's first constants, so that it finds something; the others are random."""
    num_hits = chance.randint(1, 3)
    is_number = {column: column in numeric or chance.random() < 0.5 for column in table.columns}
    rows: list[list[Value]] = []
    for place in range(chance.randint(_FEWEST_ROWS, _MAX_ROWS)):
        row: list[Value] = []
        for column in table.columns:
            own = constants.get(column)
            if own and place < num_hits:
                row.append(own[0])
            elif own:
                row.append(_near(chance.choice(own), chance))
            elif has_gaps and chance.random() < 0.25:
                row.append(None)
            elif rows and chance.random() < 0.1:
                row.append(chance.choice(rows)[len(row)])
            else:
                row.append(chance.randint(1, 999_999) if is_number[column] else _word(chance))
        rows.append(row)
    chance.shuffle(rows)
    return rows


def _number(text: str) -> Value:
    """The number of a constant, quoted or not, as stored in an untyped column; otherwise its text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return text if not math.isfinite(number) else int(number) if number.is_integer() else number


def _near(constant: Value, chance: random.Random) -> Value:
    """The constant itself, something close to it, or something else of its kind."""
    if chance.random() < 0.35 or constant is None:
        return constant
    if isinstance(constant, str):
        close = [
            constant + " " + _word(chance),
            constant[:-1],
            constant.swapcase(),
            _word(chance),
            _word(chance).upper(),
        ]
        return chance.choice([value for value in close if value and value != constant])
    return constant + chance.choice([-1, 1, -0.5, chance.randint(-50, -2), chance.randint(2, 50)])


def _word(chance: random.Random) -> str:
    return "".join(chance.choice(_SYLLABLES) for _ in range(chance.randint(2, 4)))


def _script(table: Table, rows: Sequence[Sequence[Value]]) -> str:
    # NUMERIC: the constants '12' and 12 are the same, since the description has no types.
    columns = ", ".join(f"{name_of(column)} NUMERIC" for column in table.columns)
    values = ",\n".join("(" + ", ".join(map(_literal, row)) + ")" for row in rows)
    name = name_of(table.name)
    return f"CREATE TABLE {name} ({columns});\nINSERT INTO {name} VALUES\n{values};\n"


def _literal(value: Value) -> str:
    if value is None:
        return "NULL"
    return text_of(value) if isinstance(value, str) else repr(value)
