"""SQL in the locked-down child: equal results are equal, and hostile queries do nothing."""

import sqlite3

import pytest

from luthier.core.errors import RequestError, library_words_hidden
from luthier.ml.evaluation.sandbox.process import Child
from luthier.ml.evaluation.sandbox.runners import Database, SqlRunner

SHOP = Database(script="CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, NULL);")


@pytest.fixture(scope="module")
def runner():
    with SqlRunner(seconds=5) as opened:
        yield opened


def one(runner, query, database=SHOP):
    return runner.run(database, [query])[0]


def test_results_are_equal_where_their_rows_are(runner):
    plain, down, real, other, wide = runner.run(
        SHOP,
        [
            "SELECT a FROM t",
            "SELECT a FROM t ORDER BY a DESC",
            "SELECT a * 1.0 AS c FROM t",
            "SELECT b FROM t",
            "SELECT a, a FROM t",
        ],
    )
    assert plain.in_order != down.in_order
    assert plain.in_any_order == down.in_any_order
    assert plain.in_order == real.in_order
    assert len({result.in_any_order for result in (plain, other, wide)}) == 3
    assert (plain.num_rows, plain.error) == (3, None)


@pytest.mark.parametrize(
    ("query", "other"),
    [
        ("SELECT 1", "SELECT '1'"),
        ("SELECT 'a'", "SELECT x'61'"),
        ("SELECT NULL", "SELECT 'null'"),
        ("SELECT 1 UNION ALL SELECT 1", "SELECT 1"),
        ("SELECT 1 WHERE 0", "SELECT 1, 2 WHERE 0"),
        ("SELECT 'a', 'b'", "SELECT 'a,b', ''"),
    ],
)
def test_what_is_not_the_same(runner, query, other):
    first, second = runner.run(SHOP, [query, other])
    assert first.error is second.error is None
    assert first.in_any_order != second.in_any_order


def test_fractions_are_equal_to_ten_digits(runner):
    first, second = runner.run(SHOP, ["SELECT 0.1 + 0.2", "SELECT 0.3"])
    assert first.in_order == second.in_order


@pytest.mark.parametrize(
    ("query", "other"),
    [
        ("SELECT 0.2 + 0.7 + 0.1", "SELECT 0.7 + 0.1 + 0.2"),
        ("SELECT 4.35 * 100", "SELECT 435"),
        ("SELECT 1000000.00001", "SELECT 1000000"),
    ],
)
def test_a_sum_that_misses_a_whole_number_by_rounding_is_that_number(runner, query, other):
    assert (0.2 + 0.7 + 0.1, 0.7 + 0.1 + 0.2, 4.35 * 100) == (0.9999999999999999, 1.0, 434.99999999999994)
    first, second = runner.run(SHOP, [query, other])
    assert first.error is second.error is None
    assert first.in_order == second.in_order


@pytest.mark.parametrize(
    ("query", "other"), [("SELECT 12345678901.5", "SELECT 12345678901"), ("SELECT 0.9999", "SELECT 1")]
)
def test_a_fraction_is_no_whole_number(runner, query, other):
    first, second = runner.run(SHOP, [query, other])
    assert first.in_order != second.in_order


HOSTILE = {
    "write": "INSERT INTO t VALUES (4, 'z')",
    "delete": "DELETE FROM t",
    "drop": "DROP TABLE t",
    "temporary table": "CREATE TEMP TABLE z AS SELECT 1",
    "attach": "ATTACH '/tmp/luthier-evil.db' AS evil",
    "vacuum into": "VACUUM INTO '/tmp/luthier-evil.db'",
    "pragma": "PRAGMA writable_schema = 1",
    "pragma as a table": "SELECT * FROM pragma_database_list",
    "extension": "SELECT load_extension('/tmp/evil.so')",
    "transaction": "BEGIN EXCLUSIVE",
    "two at once": "SELECT 1; DROP TABLE t",
    "nothing": "",
    "a comment": "-- SELECT 1",
    "too big": "SELECT zeroblob(1000000000)",
    "too deep": "SELECT " + "abs(" * 5000 + "1" + ")" * 5000,
    "too long": "SELECT '" + "x" * 200_000 + "'",
    "too many rows": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    "memory": "WITH RECURSIVE c(x) AS (SELECT zeroblob(900000) UNION ALL SELECT zeroblob(900000) FROM c) "
    "SELECT x FROM c ORDER BY x",
    "chance": "SELECT random()",
    "a null character": "SELECT 1 \0",
}


@pytest.mark.parametrize("query", HOSTILE.values(), ids=HOSTILE)
def test_hostile_queries_only_fail(runner, query, tmp_path):
    assert one(runner, query).error
    assert one(runner, "SELECT count(*) FROM t").in_order == one(runner, "SELECT 3").in_order


def test_endless_queries_end_at_their_time():
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    with SqlRunner(seconds=0.3) as runner:
        assert one(runner, endless).error == "timeout"
        assert one(runner, "SELECT 1").error is None


def test_a_file_is_read_and_stays_as_it_is(tmp_path):
    path = tmp_path / "shop 1.db"
    with sqlite3.connect(path) as database:
        database.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (7);")
    database.close()
    before = path.read_bytes()
    with SqlRunner(seconds=5, files=[path]) as runner:
        database = Database(file=str(path))
        assert one(runner, "SELECT a FROM t", database).in_order == one(runner, "SELECT 7", database).in_order
        assert "not authorized" in one(runner, "DELETE FROM t", database).error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_that_cannot_be_made(tmp_path):
    with SqlRunner(seconds=5, files=[tmp_path / "no.db"]) as runner:
        for broken in (
            Database(script="CREATE TABLE t(a; INSERT"),
            Database(script="CREATE TABLE t(a); ATTACH '/tmp/luthier-evil.db' AS evil"),
            Database(file=str(tmp_path / "no.db")),
        ):
            with pytest.raises(RequestError, match="cannot be made"):
                one(runner, "SELECT 1", broken)
        assert one(runner, "SELECT 1").error is None


def made(path, script):
    """A database file made by this script."""
    with sqlite3.connect(path) as database:
        database.executescript(script)
    database.close()
    return path


def test_the_child_opens_what_was_placed_and_nothing_else(tmp_path):
    mine = made(tmp_path / "mine.db", "CREATE TABLE t(a); INSERT INTO t VALUES (7);")
    other = made(tmp_path / "other.db", "CREATE TABLE secret(a); INSERT INTO secret VALUES ('hush');")
    link = tmp_path / "link.db"
    link.symlink_to(other)
    with SqlRunner(seconds=5, files=[mine], needs_isolation=True) as runner:
        assert one(runner, "SELECT a FROM t", Database(file=str(mine))).error is None
        for place in (
            other,
            link,
            tmp_path / ".." / tmp_path.name / "other.db",
            "/etc/passwd",
            f"file:{other}",
            "../x",
        ):
            with pytest.raises(RequestError, match="unable to open database file"):
                runner.run(Database(file=str(place)), ["SELECT * FROM secret"])


def test_the_child_can_read_nothing_but_its_folder(tmp_path):
    """Asked from within: its root is its own folder, so that no path leads out of it."""
    mine = made(tmp_path / "mine.db", "CREATE TABLE t(a);")
    with Child("sql_child.py", seconds=60, most_memory_bytes=2**29, placed={"0.db": mine}) as child:
        in_force = child.ask({"policy": child.policy}, 60)["in_force"]
        assert in_force["seccomp"]
        assert in_force["landlock"] or in_force["root"]
        job = {"script": "", "queries": ["SELECT 1"], "seconds": 5, "hides_words": False}
        for name in ("/etc/passwd", str(mine), "../mine.db", "..", "/proc/self/environ"):
            assert "broken" in child.ask(job | {"file": name}, 60)
        assert child.ask(job | {"file": "0.db"}, 60)["results"][0]["num_rows"] == 1


def test_a_machine_that_cannot_lock_a_process_runs_nothing_of_others(monkeypatch):
    def ask(self, message, seconds):
        return {"in_force": {"seccomp": False, "landlock": False, "root": False}}

    monkeypatch.setattr(Child, "ask", ask)
    with SqlRunner(seconds=5, needs_isolation=True) as runner, pytest.raises(RequestError, match="cannot lock"):
        runner.run(SHOP, ["SELECT 1"])


def test_files_that_mean_harm_only_fail(tmp_path):
    views = made(
        tmp_path / "views.db",
        "CREATE TABLE t(a); INSERT INTO t VALUES (1);"
        "CREATE VIEW v AS SELECT load_extension('/tmp/evil.so') FROM t;"
        "CREATE VIEW w AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c;",
    )
    broken = tmp_path / "broken.db"
    content = bytearray(views.read_bytes())
    content[100:4000] = b"\xff" * 3900
    broken.write_bytes(content)
    text = tmp_path / "text.db"
    text.write_text("root:x:0:0:root:/root:/bin/bash\n" * 200)
    with SqlRunner(seconds=1, files=[views, broken, text]) as runner:
        for query in ("SELECT * FROM v", "SELECT * FROM w", "SELECT count(*) FROM w"):
            assert one(runner, query, Database(file=str(views))).error
        for path in (broken, text):
            with library_words_hidden():
                said = one(runner, "SELECT * FROM t", Database(file=str(path))).error
            assert said
            assert "root" not in said
        assert one(runner, "SELECT a FROM t", Database(file=str(views))).error is None


def test_hidden_words_tell_the_kind_of_an_error_alone(runner):
    steal = "SELECT json_extract('{}', (SELECT b FROM t WHERE a = 1))"
    assert "'x'" in one(runner, steal).error
    with library_words_hidden():
        assert one(runner, steal).error == "fails while it runs: OperationalError"
        assert "no such column: absent" in one(runner, "SELECT absent FROM t").error
        with pytest.raises(RequestError) as caught:
            runner.run(Database(script="CREATE TABLE t(a); INSERT INTO t SELECT json('quoted');"), ["SELECT 1"])
        assert "malformed" not in caught.value.came


@pytest.mark.parametrize(
    "query",
    [
        "SELECT date('now')",
        "SELECT datetime('NOW', '-30 days')",
        "SELECT a FROM t WHERE julianday() > a",
        "SELECT strftime('%Y')",
        "SELECT unixepoch('subsec')",
        "SELECT timediff('now', '2000-01-01')",
        "SELECT CURRENT_DATE",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT time(b) FROM (SELECT 'no' || 'w' AS b)",
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_query_that_depends_on_the_day_is_refused(query, in_file, tmp_path):
    """Else the same answers would have another score tomorrow."""
    path = made(tmp_path / "shop.db", SHOP.script)
    with SqlRunner(seconds=5, files=[path]) as runner:
        found = one(runner, query, Database(file=str(path)) if in_file else SHOP)
        assert found.error.startswith("depends on the current time")


def test_dates_that_do_not_depend_on_the_day_are_computed_as_sqlite_does(tmp_path):
    pairs = {
        "SELECT date('2024-01-31', '+1 month')": "SELECT '2024-03-02'",
        "SELECT strftime('%Y', '2024-05-06'), strftime('now', '2024-05-06')": "SELECT '2024', 'now'",
        "SELECT julianday('2000-01-01 12:00')": "SELECT 2451545",
        "SELECT datetime(0, 'unixepoch', 'localtime')": "SELECT '1970-01-01 00:00:00'",
        "SELECT date(NULL), date('no date')": "SELECT NULL, NULL",
        "SELECT timediff('2000-01-02', '2000-01-01')": "SELECT '+0000-00-01 00:00:00.000'",
        "SELECT 'now', current FROM (SELECT 1 AS current)": "SELECT 'now', 1",
    }
    path = made(tmp_path / "shop.db", SHOP.script)
    with SqlRunner(seconds=5, files=[path]) as runner:
        for database in (SHOP, Database(file=str(path))):
            for query, right in pairs.items():
                found, expected = runner.run(database, [query, right])
                assert (found.error, found.in_order) == (None, expected.in_order), query


def test_a_script_is_built_at_a_fixed_time(runner):
    script = (
        "CREATE TABLE t(a, day TEXT DEFAULT CURRENT_TIMESTAMP, CHECK (date(day) IS NOT NULL));"
        "INSERT INTO t(a) VALUES (1); CREATE VIEW v AS SELECT date(day) AS day FROM t;"
        "CREATE VIEW w AS SELECT date('now') AS day;"
    )
    database = Database(script=script)
    built = one(runner, "SELECT day FROM t", database)
    assert built.in_order == one(runner, "SELECT '2000-01-01 00:00:00'", database).in_order
    assert one(runner, "SELECT day FROM v", database).in_order == one(runner, "SELECT '2000-01-01'", database).in_order
    assert one(runner, "SELECT day FROM w", database).error.startswith("depends on the current time")


def test_views_of_a_file_compute_dates_but_have_no_clock(tmp_path):
    path = made(
        tmp_path / "views.db",
        "CREATE TABLE t(day); INSERT INTO t VALUES ('2024-05-06 07:08');"
        "CREATE VIEW v AS SELECT date(day) AS one FROM t; CREATE VIEW w AS SELECT date('now') AS one FROM t;",
    )
    database = Database(file=str(path))
    with SqlRunner(seconds=5, files=[path]) as runner:
        found, right = runner.run(database, ["SELECT one FROM v", "SELECT '2024-05-06'"])
        assert (found.error, found.in_order) == (None, right.in_order)
        assert "not authorized" in one(runner, "SELECT one FROM w", database).error
