"""Generated databases that distinguish a query from nearly equal ones.

Source: Zhong, Yu, Klein, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites", 2020, section 3: random
databases that hold the query's own constants and near misses of them (3.2), of which those are kept that tell the query
from its neighbours, each one change away (3.3).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.core.digest import sha256_document
from luthier.ml.evaluation.sandbox.sql import Database, Result
from luthier.ml.evaluation.sql.neighbours import neighbours
from luthier.ml.evaluation.sql.tables import AGGREGATES, Table
from luthier.ml.evaluation.sql.tokens import name_of, text_of, tokens_of

Value = str | int | float | None
Run = Callable[[Database, Sequence[str]], list[Result]]
_FEWEST, _MAX_TRIES = 3, 24
_FEWEST_ROWS, _MAX_ROWS = 8, 24
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we", "xi")


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Databases for one query.

    Attributes:
        databases: those that are kept.
        results: of the query in each.
        num_neighbours: queries one change away.
        num_same: those of them that no database distinguishes from it (some ask for the same in other words).
        error: why the query itself does not run, and nothing was made; None where it runs.
    """

    databases: tuple[Database, ...]
    results: tuple[Result, ...]
    num_neighbours: int
    num_same: int
    error: str | None = None


def made_up(table: Table, query: str, run: Run) -> MadeUp:
    """Databases for this query on this table, always the same ones.

    Args:
        table: as the row describes it.
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
        # NULLs in every second database only: a neighbour that differs in NULLs alone needs one without them, too.
        rows = _rows(table, constants, numeric, chance, has_gaps=attempt % 2 == 1)
        database = Database(script=_script(table, rows))
        # Only neighbours that no earlier database has told apart are run again.
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
    """By column, what the query holds it against: the constants that follow it, up to the next column."""
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
    """The first few rows hold the query's first constants, so that it finds something; the others by chance."""
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
    """The number that a constant is, with quotes or without, as a column without a type holds it; else its text."""
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
