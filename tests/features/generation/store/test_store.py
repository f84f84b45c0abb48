"""What the store promises about generations."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from luthier.core.ports import Generation
from luthier.features.generation.store import GenerationStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import metadata


def generation(words: str) -> Generation:
    return Generation(text=words, num_prompt_tokens=3, num_new_tokens=2, finish_reason="stop")


@pytest.fixture
def store(database: Database) -> GenerationStore:
    return GenerationStore(database)


def test_what_goes_in_comes_out(store: GenerationStore) -> None:
    store.keep({"a": generation("one\n\x00 \u2028 ü"), "b": generation("two")}, engine="e")
    store.keep({}, engine="e")
    assert store.find(["b", "a", "c"]) == {"a": generation("one\n\x00 \u2028 ü"), "b": generation("two")}
    assert store.find([]) == {}
    assert store.count() == 2


def test_the_first_generation_of_a_key_stays(store: GenerationStore) -> None:
    store.keep({"a": generation("one")}, engine="e")
    store.keep({"a": generation("other"), "b": generation("two")}, engine="e")
    assert store.find(["a", "b"]) == {"a": generation("one"), "b": generation("two")}


def test_more_keys_than_one_statement_takes(store: GenerationStore) -> None:
    keys = [str(number) for number in range(2345)]
    for start in range(0, 2345, 400):
        store.keep({key: generation(key) for key in keys[start : start + 400]}, engine="e")
    assert {key: made.text for key, made in store.find(keys).items()} == {key: key for key in keys}


def test_more_new_keys_than_one_statement_takes(store: GenerationStore) -> None:
    asked: list[int] = []

    def executing(_: object, __: object, ___: object, parameters: Any, ____: object, is_many: bool) -> None:
        asked.extend([] if is_many else [len(parameters)])

    store.keep({"7": generation("first"), "2000": generation("first")}, engine="e")
    new = {str(number): generation(str(number)) for number in range(2345)}
    event.listen(Engine, "before_cursor_execute", executing)
    try:
        store.keep(new, engine="e")
    finally:
        event.remove(Engine, "before_cursor_execute", executing)
    assert 1 < max(asked) <= 999, "the least that a build of SQLite may allow"
    assert store.count() == 2345
    assert {key: made.text for key, made in store.find(list(new)).items()} == {
        key: "first" if key in ("7", "2000") else key for key in new
    }


def test_a_database_of_before_gets_the_table_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "luthier.db"
    with Database.open(path) as database, database.write() as connection:
        connection.execute(text("INSERT INTO artifacts VALUES ('a', 'b', 1, 'c', NULL)"))
    with closing(sqlite3.connect(path)) as plain:
        first = {"runs", "plans", "events", "evaluations", "artifacts", "artifact_links"}
        for table in reversed(metadata.sorted_tables):
            if table.name not in first:
                plain.execute(f"DROP TABLE {table.name}")
        plain.execute("ALTER TABLE artifacts DROP COLUMN place")
        plain.execute("UPDATE alembic_version SET version_num = '0001'")
        plain.commit()
    with Database.open(path) as database:
        store = GenerationStore(database)
        store.keep({"a": generation("one")}, engine="e")
        assert store.count() == 1
        with database.read() as connection:
            assert connection.execute(text("SELECT num_bytes FROM artifacts")).scalar() == 1


def test_projects_do_not_share_generations(store: GenerationStore) -> None:
    one, other = store.of_project("proj-a"), store.of_project("proj-b")
    one.keep({"a": generation("one")}, engine="e")
    assert other.find(["a"]) == store.find(["a"]) == {}
    other.keep({"a": generation("other"), "b": generation("two")}, engine="e")
    one.keep({"a": generation("again")}, engine="e")
    assert one.find(["a", "b"]) == {"a": generation("one")}
    assert other.find(["a", "b"]) == {"a": generation("other"), "b": generation("two")}
    assert store.count() == 3


@pytest.mark.parametrize("projects", [("default",), ("default", "proj-b")])
def test_generations_from_before_projects_had_their_own_belong_to_the_only_project(
    tmp_path: Path, projects: tuple[str, ...]
) -> None:
    path = tmp_path / "luthier.db"
    with Database.open(path) as database:
        GenerationStore(database).keep({"a": generation("one")}, engine="e")
        for project in projects[1:]:
            AccessStore(database).add_project(project, project)
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("ALTER TABLE generations DROP COLUMN project_id")
        for newer in ("conversation_items", "conversations"):
            plain.execute(f"DROP TABLE {newer}")
        plain.execute("UPDATE alembic_version SET version_num = '0023'")
        plain.commit()
    with Database.open(path) as database:
        store = GenerationStore(database)
        assert store.count() == 1
        expected = {"a": generation("one")} if len(projects) == 1 else {}
        assert store.of_project("default").find(["a"]) == expected
        # A project that is made later does not see them either.
        AccessStore(database).add_project("proj-c", "c")
        assert store.of_project("default").find(["a"]) == expected
        assert store.of_project("proj-b").find(["a"]) == store.of_project("proj-c").find(["a"]) == {}
