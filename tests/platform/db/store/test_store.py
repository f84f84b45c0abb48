"""Records to rows and back, within a project, with one kind of error for what is not there; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Column, Double, Integer, MetaData, String, Table, Text, event, select
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.db.database import Database
from luthier.platform.db.store import JSON, WORDS, Missing, RecordTable, Store, json_of

_METADATA = MetaData()
_plain = Table(
    "plain",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("plain_id", String(64), nullable=False, unique=True),
    Column("project_id", String(64), nullable=False),
    Column("tags", Text, nullable=False),
    Column("sizes", Text),
    Column("inner", Text),
    Column("made_at", Double),
)
_whole = Table(
    "whole",
    _METADATA,
    Column("owner", String(64), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("closed_at", Integer),
    Column("document", Text, nullable=False),
)


class Inner(FrozenModel):
    text: str


class Plain(FrozenModel):
    plain_id: str
    project_id: str
    tags: tuple[str, ...] = ()
    sizes: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    inner: Inner | None = None
    made_at: float | None = None


class Whole(FrozenModel):
    number: int
    note: str = ""
    closed_at: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    owner: str
    place: int


PLAIN = RecordTable(
    _plain,
    Plain,
    key="plain_id",
    clock="made_at",
    codecs={"tags": WORDS, "sizes": JSON, "inner": json_of(Inner)},
    missing=Missing("no plain {key!r}", "the id of one", "look again", suggests=True),
)
WHOLE = RecordTable(_whole, Whole, renamed={"place": "number"}, overlay=("closed_at",))


class PlainStore(Store):
    def add(self, record: Plain) -> Plain:
        return self._insert(PLAIN, record)

    def get(self, project_id: str, key: str) -> Plain:
        return self._get(PLAIN, key, project_id=project_id)

    def list(self, project_id: str, **more: Any) -> list[Plain]:
        return self._list(PLAIN, project_id=project_id, **more)

    def save(self, record: Plain) -> None:
        self._save(PLAIN, record)

    def remove(self, project_id: str, key: str) -> None:
        self._delete(PLAIN, key, project_id=project_id)

    def add_two(self, record: Plain) -> None:
        with self._write(ConflictError("taken", expected="another", do="choose")) as connection:
            PLAIN.insert(connection, record)
            PLAIN.insert(connection, record)


@pytest.fixture
def store(database: Database) -> PlainStore:
    with database.write() as connection:
        _METADATA.create_all(connection)
    return PlainStore(database)


@pytest.fixture
def statements(database: Database, store: PlainStore) -> Iterator[list[str]]:
    """The statements that were carried out, those that begin and end transactions left out."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("SELECT plain", "INSERT", "UPDATE", "DELETE")):
            seen.append(statement)

    event.listen(database._engine, "before_cursor_execute", note)
    yield seen
    event.remove(database._engine, "before_cursor_execute", note)


def plain(number: int, project_id: str = "a", **fields: Any) -> Plain:
    return Plain(plain_id=f"plain-{number}", project_id=project_id, **fields)


def test_what_goes_in_comes_out(store: PlainStore, database: Database) -> None:
    made = store.add(plain(1, tags=("x", "y"), sizes={"s": 1}, inner=Inner(text="é")))
    with database.read() as connection:
        assert made.made_at == pytest.approx(database.clock(connection), abs=3600), "the time is the database's"
    assert store.get("a", "plain-1").model_copy(update={"made_at": None}) == made.model_copy(update={"made_at": None})
    assert store.add(plain(2)).inner is None
    assert store.get("a", "plain-2").sizes == {}


def test_another_project_never_sees_it_nor_is_told_of_it(store: PlainStore) -> None:
    store.add(plain(1))
    for act in (store.get, store.remove):
        with pytest.raises(NotFoundError, match=r"no plain 'plain-1'; there are none yet"):
            act("b", "plain-1")
    with pytest.raises(NotFoundError, match=r"no plain 'plain-2'; nearest: plain-1") as caught:
        store.get("a", "plain-2")
    assert (caught.value.expected, caught.value.do) == ("the id of one", "look again")
    assert store.list("b") == []
    store.remove("a", "plain-1")
    assert store.list("a") == []


def test_a_key_without_end_is_not_repeated_whole(store: PlainStore) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.get("a", "x" * 10_000)
    assert len(caught.value.came) < 400


def test_a_page_is_one_statement_and_the_newest_comes_first(store: PlainStore, statements: list[str]) -> None:
    for number in range(5):
        store.add(plain(number))
    statements.clear()
    assert [one.plain_id for one in store.list("a", limit=2)] == ["plain-4", "plain-3"]
    assert len(statements) == 1
    assert "LIMIT" in statements[0]
    assert [one.plain_id for one in store.list("a", order=[_plain.c.number], limit=1)] == ["plain-0"]


def test_a_filter_of_none_leaves_its_column_out(store: PlainStore) -> None:
    for number in range(3):
        store.add(plain(number, tags=("odd",) if number % 2 else ()))
    assert len(store.list("a", tags=None)) == 3
    assert [one.plain_id for one in store.list("a", tags="odd")] == ["plain-1"]


def test_a_record_is_saved_in_place_of_the_one_with_its_key(store: PlainStore) -> None:
    store.add(plain(1))
    store.save(plain(1, tags=("z",)))
    assert [one.tags for one in store.list("a")] == [("z",)]
    with pytest.raises(NotFoundError, match="plain-7"):
        store.save(plain(7))


def test_a_broken_constraint_is_the_given_error_and_nothing_is_written(store: PlainStore) -> None:
    with pytest.raises(ConflictError, match="taken") as caught:
        store.add_two(plain(1))
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert store.list("a") == []
    store.add(plain(1))
    with pytest.raises(IntegrityError):
        store.add(plain(1))


def test_a_document_is_whole_and_its_columns_follow_it(store: PlainStore, database: Database) -> None:
    with database.write() as connection:
        WHOLE.put(connection, Whole(number=3, note="first"), owner="o")
        WHOLE.put(connection, Whole(number=3, note="second"), owner="o")
        WHOLE.put(connection, Whole(number=4), owner="o")
        connection.execute(_whole.update().where(_whole.c.place == 4).values(closed_at=9))
    with database.read() as connection:
        assert WHOLE.first(connection, owner="o", place=3) == Whole(number=3, note="second")
        closed = WHOLE.first(connection, owner="o", place=4)
        assert closed is not None
        assert closed.closed_at == 9, "the column is newer than the document"
        assert connection.execute(select(_whole.c.place).order_by(_whole.c.place)).scalars().all() == [3, 4]


def test_a_dataclass_is_a_record_too(store: PlainStore, database: Database) -> None:
    pairs = RecordTable(_whole, Pair, given=("document",))
    with database.write() as connection:
        pairs.insert(connection, Pair("o", 1), document="{}")
        assert pairs.first(connection, owner="o") == Pair("o", 1)


def test_a_column_named_document_may_hold_one_field(store: PlainStore, database: Database) -> None:
    table = RecordTable(_whole, Whole, renamed={"place": "number", "document": "note"})
    with database.write() as connection:
        table.insert(connection, Whole(number=1, note="not JSON"), owner="o")
        assert table.first(connection, owner="o") == Whole(number=1, note="not JSON")
