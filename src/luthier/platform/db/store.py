"""Stores over declared tables: records to rows and back, common statements, and a cache of immutable records.

A `RecordTable` declares how the records of one type are stored in one table. Its methods work within an open
transaction. A `Store` has one or more of them; its methods are one short transaction each, and stores of features add
only the queries that are their own.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Executable,
    RowMapping,
    Select,
    Table,
    UnaryExpression,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import LuthierError, NotFoundError, UnsupportedError
from luthier.core.registry import STORED
from luthier.core.text.suggest import suggest_ids
from luthier.platform.db.database import Database

Record = TypeVar("Record")
_MAX_SUGGESTED: Final = 1000
_MAX_KEY_CHARACTERS: Final = 255


@dataclass(frozen=True, slots=True)
class Codec:
    """How one field is written into its column and read from it.

    Attributes:
        dump: From the field to the column.
        load: From the column to the field.
    """

    dump: Callable[[Any], Any]
    load: Callable[[Any], Any]


WORDS: Final = Codec(" ".join, lambda text: tuple(text.split()))
"""A tuple of words, separated by blanks."""
JSON: Final = Codec(json.dumps, lambda text: json.loads(text or "{}"))
"""A mapping as JSON text."""


def json_of(model: type[BaseModel]) -> Codec:
    """The codec of an optional model as JSON text, NULL for None."""
    return Codec(
        lambda value: None if value is None else value.model_dump_json(),
        lambda text: None if text is None else model.model_validate_json(text, context=STORED),
    )


def not_in_list(after: str, expected: str, *, where: str = "in this list") -> UnsupportedError:
    """The refusal of a place in a list: an empty page would look like the end of it.

    Args:
        after: What was asked for, the id behind which the page begins.
        expected: What it should have been.
        where: What it is not.
    """
    return UnsupportedError(
        f"after={after[:100]!r} is not {where}",
        expected=expected,
        do="start again, without `after`",
        code="invalid_value",
        param="after",
    )


@dataclass(frozen=True, slots=True)
class Missing:
    """The error for a key that no record has.

    Attributes:
        came: A format string with `key`, such as "no study {key!r}".
        expected: What the key should have been.
        do: What to do about it.
        suggests: Whether the nearest keys are named.
    """

    came: str
    expected: str
    do: str
    suggests: bool = False


class RecordTable(Generic[Record]):
    """The records of one type in one table.

    A table with a column `document` keeps a whole record there, as JSON; its other columns repeat fields to search by.
    In any other table each field has the column of its name.

    Args:
        table: The table.
        record: The type of the records, a frozen model or dataclass.
        key: The column that names a record.
        missing: The error for a key that no record has.
        renamed: Fields by the columns that have other names.
        codecs: How fields are written that are not plain values, by column.
        overlay: Columns that are newer than the document.
        given: Columns that the caller of insert gives, though a field has the same name.
        clock: The field that an insert sets to the time of the database; empty for none.
    """

    def __init__(
        self,
        table: Table,
        record: type[Record],
        *,
        key: str = "",
        missing: Missing | None = None,
        renamed: Mapping[str, str] | None = None,
        codecs: Mapping[str, Codec] | None = None,
        overlay: Sequence[str] = (),
        given: Sequence[str] = (),
        clock: str = "",
    ) -> None:
        self.table, self.record, self.key, self.missing = table, record, key, missing
        self.overlay, self.clock, self._codecs = tuple(overlay), clock, codecs or {}
        # getattr: `model_fields` is a field of pydantic's classes only, which the type of `record` does not show.
        names = record.__dataclass_fields__ if is_dataclass(record) else getattr(record, "model_fields")  # noqa: B009
        fields = {column.name: (renamed or {}).get(column.name, column.name) for column in table.columns}
        self._fields = {column: field for column, field in fields.items() if field in names and column not in given}
        # A record with its own field `document` stores that there, not itself.
        self._is_document = "document" in table.columns and not {"document"} & {*self._fields, *given}
        columns = ("document", *overlay) if self._is_document else tuple(self._fields)
        self.select: Select[Any] = select(*(table.c[name] for name in columns))
        self._newest_first = [table.c.number.desc()] if "number" in table.columns else []
        self._built: dict[tuple[str, ...], Select[Any]] = {}

    def where(self, **_columns: Any) -> list[ColumnElement[bool]]:
        """Conditions that columns have these values; None leaves its column out."""
        # None means "any", never IS NULL: callers hand optional filters through.
        return [self.table.c[name] == value for name, value in _columns.items() if value is not None]

    def row(self, record: Record) -> dict[str, Any]:
        """The columns of a record."""
        found = {column: getattr(record, field) for column, field in self._fields.items()}
        found |= {name: codec.dump(found[name]) for name, codec in self._codecs.items()}
        if self._is_document:
            assert isinstance(record, BaseModel)
            found["document"] = record.model_dump_json()
        return found

    def of_row(self, row: RowMapping) -> Record:
        """The record of a row."""
        if not self._is_document:
            values = {field: row[column] for column, field in self._fields.items()}
            loaded = {self._fields[name]: codec.load(row[name]) for name, codec in self._codecs.items()}
            return self.record(**(values | loaded))
        assert issubclass(self.record, BaseModel)
        record = self.record.model_validate_json(row["document"], context=STORED)
        # Columns change without rewriting the document, so where both have a value the column's counts.
        changed = {name: row[name] for name in self.overlay}
        return record.model_copy(update=changed) if changed else record

    def insert(self, connection: Connection, record: Record, now: float | None = None, **_columns: Any) -> Record:
        """Add a record.

        Args:
            connection: Of a transaction that writes.
            record: The values of its columns.
            now: The time of its `clock` field, in seconds since 1970; None leaves it as it is.
            _columns: Values of columns that the record has no field for.

        Returns:
            The record with its time.
        """
        if self.clock and now is not None:
            assert isinstance(record, BaseModel)
            record = record.model_copy(update={self.clock: now})
        connection.execute(insert(self.table).values(**(self.row(record) | _columns)))
        return record

    def put(self, connection: Connection, record: Record, **_columns: Any) -> None:
        """Write a record in place of the one with its primary key, or add it.

        Args:
            connection: Of a transaction that writes.
            record: The values of its columns.
            _columns: Values of columns that the record has no field for.
        """
        row = self.row(record) | _columns
        is_it = [column == row[column.name] for column in self.table.primary_key]
        # Update, then insert: SQLAlchemy has no upsert for both dialects. Writers take turns, so there is no race.
        if connection.execute(update(self.table).where(*is_it).values(**row)).rowcount == 0:
            connection.execute(insert(self.table).values(**row))

    def first(
        self, connection: Connection, *where: ColumnElement[bool], is_locked: bool = False, **_columns: Any
    ) -> Record | None:
        """The first record that meets all conditions; None where there is none.

        Args:
            connection: An open transaction.
            where: Conditions.
            is_locked: Whether no other transaction may change the row before this one ends.
            _columns: Columns and their values; None leaves a column out.
        """
        asked = {name: value for name, value in _columns.items() if value is not None}
        return self._first(connection, asked, where, is_locked=is_locked)

    def _first(
        self,
        connection: Connection,
        values: Mapping[str, Any],
        where: Sequence[ColumnElement[bool]] = (),
        *,
        is_locked: bool = False,
    ) -> Record | None:
        query = self._built_by(tuple(values), lambda built: built.limit(1), "first")
        # Only where needed: each of these makes a copy, which has to be identified again.
        query = query.where(*where) if where else query
        query = query.with_for_update() if is_locked else query
        row = connection.execute(query, _bound(values)).mappings().first()
        return None if row is None else self.of_row(row)

    def newest(self, connection: Connection, limit: int | None = None, **_columns: Any) -> list[Record]:
        """Records whose columns have these values (None: any), at most `limit`, newest first if numbered."""
        asked = {name: value for name, value in _columns.items() if value is not None}
        # A limit is bound under a name that no column has.
        cut: BindParameter[int] | None = None if limit is None else bindparam("its_limit_")
        query = self._built_by(
            tuple(asked), lambda built: built.order_by(*self._newest_first).limit(cut), "all" if cut is None else "some"
        )
        values = _bound(asked) if cut is None else _bound(asked) | {"its_limit_": limit}
        return [self.of_row(row) for row in connection.execute(query, values).mappings()]

    def _built_by(self, names: tuple[str, ...], finish: Callable[[Select[Any]], Select[Any]], kind: str) -> Select[Any]:
        # Built once: SQLAlchemy takes five times as long to build and identify a short query as to execute it.
        found = self._built.get((kind, *names))
        if found is None:
            is_it = [self.table.c[name] == bindparam(f"its_{name}") for name in names]
            found = self._built[kind, *names] = finish(self.select.where(*is_it))
        return found

    def get(self, connection: Connection, key: str, *, is_locked: bool = False, **_scope: Any) -> Record:
        """The record of a key.

        Args:
            connection: An open transaction.
            key: The value of the key column.
            is_locked: Whether no other transaction may change the row before this one ends.
            _scope: Other columns and the values that they must have.

        Raises:
            NotFoundError: There is no such record.
        """
        scope = {name: value for name, value in _scope.items() if value is not None}
        found = self._first(connection, {self.key: key, **scope}, is_locked=is_locked)
        if found is None:
            raise self.not_found(connection, key, **_scope)
        return found

    def not_found(self, connection: Connection, key: str, **_scope: Any) -> NotFoundError:
        """The error for a key that no record has.

        Args:
            connection: Reads the nearest keys.
            key: As the caller has given it, of any length.
            _scope: Columns that the nearest keys must have, such as `project_id`.
        """
        assert self.missing is not None
        # The key comes from a caller and may be of any length.
        came = self.missing.came.format(key=key[:_MAX_KEY_CHARACTERS])
        if self.missing.suggests:
            query = select(self.table.c[self.key]).where(*self.where(**_scope)).order_by(*self._newest_first)
            came += f"; {suggest_ids(key, connection.execute(query.limit(_MAX_SUGGESTED)).scalars().all())}"
        return NotFoundError(came, expected=self.missing.expected, do=self.missing.do)

    def query(
        self,
        *where: ColumnElement[bool],
        order: Sequence[ColumnElement[Any] | UnaryExpression[Any]] | None = None,
        limit: int | None = None,
        **_columns: Any,
    ) -> Select[Any]:
        """The query for records.

        Args:
            where: Conditions.
            order: By which they are sorted; None for the newest first.
            limit: The most records; None for all.
            _columns: Columns that they must have; None as a value for any.
        """
        query = self.select.where(*where, *self.where(**_columns))
        return query.order_by(*(self._newest_first if order is None else order)).limit(limit)

    def change(self, connection: Connection, key: str, values: Mapping[str, Any], **_scope: Any) -> None:
        """Set columns of the record of a key.

        Args:
            connection: Of a transaction that writes.
            key: The value of its key column.
            values: Column -> value.
            _scope: Columns that the record must have, such as `project_id`.

        Raises:
            NotFoundError: There is no such record in the scope.
        """
        is_it = [self.table.c[self.key] == key, *self.where(**_scope)]
        if connection.execute(update(self.table).where(*is_it).values(**values)).rowcount == 0:
            raise self.not_found(connection, key, **_scope)

    def remove(self, connection: Connection, key: str, **_scope: Any) -> None:
        """Delete the record of a key.

        Args:
            connection: Of a transaction that writes.
            key: The value of its key column.
            _scope: Columns that the record must have, such as `project_id`.

        Raises:
            NotFoundError: There is no such record in the scope.
        """
        is_it = [self.table.c[self.key] == key, *self.where(**_scope)]
        if connection.execute(delete(self.table).where(*is_it)).rowcount == 0:
            raise self.not_found(connection, key, **_scope)


def _bound(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"its_{name}": value for name, value in values.items()}


class Store:
    """What stores have in common. Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def _write(self, conflict: LuthierError | None = None) -> Iterator[Connection]:
        """A transaction that writes; `conflict` is raised where it breaks a constraint."""
        try:
            with self._database.write() as connection:
                yield connection
        except IntegrityError as error:
            if conflict is None:
                raise
            raise conflict from error

    def _get(self, table: RecordTable[Record], key: str, **scope: Any) -> Record:
        with self._database.read() as connection:
            return table.get(connection, key, **scope)

    def _find(self, table: RecordTable[Record], *where: ColumnElement[bool], **columns: Any) -> Record | None:
        with self._database.read() as connection:
            return table.first(connection, *where, **columns)

    def _list(
        self,
        table: RecordTable[Record],
        *where: ColumnElement[bool],
        order: Sequence[ColumnElement[Any] | UnaryExpression[Any]] | None = None,
        limit: int | None = None,
        **columns: Any,
    ) -> list[Record]:
        if not where and order is None:
            with self._database.read() as connection:
                return table.newest(connection, limit, **columns)
        return self._records(table, table.query(*where, order=order, limit=limit, **columns))

    def _records(self, table: RecordTable[Record], query: Select[Any]) -> list[Record]:
        return [table.of_row(row) for row in self._rows(query)]

    def _rows(self, query: Executable, values: Mapping[str, Any] | None = None) -> Sequence[RowMapping]:
        with self._database.read() as connection:
            return connection.execute(query, values).mappings().all()

    def _scalars(self, query: Executable, values: Mapping[str, Any] | None = None) -> list[Any]:
        with self._database.read() as connection:
            return list(connection.execute(query, values).scalars())

    def _scalar(self, query: Executable) -> Any:
        with self._database.read() as connection:
            return connection.execute(query).scalar()

    def _insert(self, table: RecordTable[Record], record: Record, **columns: Any) -> Record:
        with self._write() as connection:
            now = self._database.clock(connection) if table.clock else None
            return table.insert(connection, record, now, **columns)

    def _save(self, table: RecordTable[Record], record: Record) -> None:
        """Write a record in place of the one with its key.

        Raises:
            NotFoundError: The table has no record of its key.
        """
        row = table.row(record)
        with self._write() as connection:
            table.change(connection, row[table.key], row)

    def _delete(self, table: RecordTable[Any], key: str, **scope: Any) -> None:
        with self._write() as connection:
            table.remove(connection, key, **scope)


T = TypeVar("T")


class LRUCache(Generic[T]):
    """A least-recently-used cache, bounded by the total weight of its values. Thread-safe.

    A single value heavier than the bound stays until the next one is stored, so that reading on in it stays fast.
    """

    def __init__(self, most: int) -> None:
        self._most, self._weight, self._lock = most, 0, threading.Lock()
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def find(self, key: str) -> T | None:
        """The value, or None if it is not in the cache."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def keep(self, key: str, value: T, weight: int = 1) -> T:
        """Store a value and return it. Those that were read longest ago are removed while all together are too heavy.

        Args:
            key: Its name.
            value: The value; the newest stays, however heavy it is.
            weight: What it adds to the sum that the cache limits.
        """
        with self._lock:
            if key in self._values:
                self._weight -= self._values.pop(key)[1]
            self._values[key] = (value, weight)
            self._weight += weight
            # The newest value is last and always stays, however heavy it is.
            while self._weight > self._most and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]
        return value


_MAX_POSITIONS: Final = 10_000


class DeletedPositions(Generic[T]):
    """Where the last deleted records of lists were, until this process ends.

    A client that deletes while it pages through a list asks for what follows a record that it has deleted.
    """

    def __init__(self) -> None:
        self._kept: LRUCache[T] = LRUCache(_MAX_POSITIONS)

    def keep(self, owner: str, key: str, place: T | None) -> None:
        """Remember where a record was that is deleted by now.

        Args:
            owner: Whose list it was in.
            key: Its id.
            place: Where it was; None if there was none.
        """
        if place is not None:
            self._kept.keep(f"{owner} {key}", place)

    def place_of(self, owner: str, key: str, place: T | None, expected: str) -> T:
        """The place of a record in a list, also of a deleted one.

        Args:
            owner: Whose list it is.
            key: The id that a client asks for the records behind.
            place: Where it is; None if it is not there.
            expected: What is asked for instead, for the error.

        Raises:
            UnsupportedError: It is not in the list, or was deleted before the last start of this process.
        """
        found = self._kept.find(f"{owner} {key}") if place is None else place
        if found is None:
            raise not_in_list(key, expected)
        return found
