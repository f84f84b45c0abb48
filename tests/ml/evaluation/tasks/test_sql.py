"""SQL by execution, on files, statements and described tables."""

import json
import sqlite3

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import DataError, NotFoundError
from luthier.core.results.suite import SqlTask
from luthier.ml.evaluation.sql import described_table
from luthier.ml.evaluation.tasks.execution import Sql, SqlJudge, query_of
from luthier.ml.evaluation.tasks.protocol import Resources

SCRIPT = "CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'z');"
PROMPT = "table: 1-77-2\ncolumns: Player, School/Club Team, No. in season\nQ: Who is it?"


def task(**settings):
    return SqlTask(kind="sql", name="queries", data="rows.jsonl", **settings)


def test_answers_are_right_where_their_results_are(bench):
    outputs = {
        "SELECT a FROM t WHERE b <> 'x'": (1, 1),
        "```sql\nSELECT 2 UNION ALL SELECT 2;\n```": (1, 1),
        "SELECT a FROM t WHERE a = 2;\n\nThis gives both.": (1, 1),
        "SELECT DISTINCT a FROM t WHERE a = 2": (0, 1),
        "SELECT b FROM t WHERE a = 2": (0, 1),
        "SELECT a FROM u": (0, 0),
        "DROP TABLE t": (0, 0),
        "": (0, 0),
    }
    own = "SELECT a FROM t WHERE a = 2"
    for output, expected in outputs.items():
        found = bench.figures(Sql(), task(database_field="db"), [bench.row(1, answer=own, db=SCRIPT)], [output])
        assert (found["execution_accuracy"], found["sql_valid"]) == expected, output


def test_order_counts_only_where_the_own_query_asks_for_it(bench):
    for own, right in (("SELECT b FROM t ORDER BY b", 0.0), ("SELECT b FROM t", 1.0)):
        rows = [bench.row(1, answer=own, db=SCRIPT)]
        found = bench.figures(Sql(), task(database_field="db"), rows, ["SELECT b FROM t ORDER BY b DESC"])
        assert found["execution_accuracy"] == right


def test_rows_whose_own_query_does_not_run_are_counted_apart(bench):
    rows = [bench.row(1, answer="SELECT a FROM t", db=SCRIPT), bench.row(2, answer="SELECT c FROM t", db=SCRIPT)]
    found = bench.figures(Sql(), task(database_field="db"), rows, ["SELECT a FROM t", "SELECT a FROM t"])
    assert found == {"execution_accuracy": 1.0, "sql_valid": 1.0, "own_query_runs": 0.5}
    with pytest.raises(DataError, match="no such column: c"):
        bench.metrics(Sql(), task(database_field="db"), rows[1:])


def test_files_by_name(bench, tmp_path):
    for name in ("one.db", "two.db"):
        with sqlite3.connect(tmp_path / name) as database:
            database.executescript(SCRIPT + f"INSERT INTO t VALUES (9, '{name}');")
        database.close()
    own = "SELECT b FROM t WHERE a = 9"
    rows = [bench.row(1, answer=own, db="one.db"), bench.row(2, answer=own, db="two.db")]
    found = bench.figures(Sql(), task(database_field="db"), rows, ["SELECT 'one.db'", "SELECT 'one.db'"])
    assert found["execution_accuracy"] == 0.5
    assert bench.figures(Sql(), task(database="two.db"), rows[:1], [own])["execution_accuracy"] == 1.0
    with pytest.raises(NotFoundError, match=r"none\.db"):
        bench.metrics(Sql(), task(database="none.db"), rows)
    (tmp_path / "bad.db").write_text("no database, but long enough to look like one" * 20)
    with pytest.raises(DataError, match=r"a database cannot be made|cannot be evaluated"):
        bench.metrics(Sql(), task(database="bad.db"), rows)


def test_described_tables(bench):
    own = "SELECT School/Club Team FROM 1-77-2 WHERE No. in season = 12 AND Player = 'Jo O'Hara'"
    outputs = {
        own: 1,
        "select \"School/Club Team\" from \"1-77-2\" where \"No. in season\" = '12' and Player = 'Jo O''Hara';": 1,
        "SELECT Player FROM 1-77-2 WHERE No. in season = 12 AND Player = 'Jo O'Hara'": 0,
        "SELECT School/Club Team FROM 1-77-2 WHERE No. in season = 12": 0,
        "SELECT School/Club Team FROM 1-77-2 WHERE No. in season > 12 AND Player = 'Jo O'Hara'": 0,
        "SELECT COUNT School/Club Team FROM 1-77-2 WHERE No. in season = 12 AND Player = 'Jo O'Hara'": 0,
    }
    rows = [bench.row(n, prompt=PROMPT, answer=own) for n in range(len(outputs))]
    kind, described = Sql(), task(table_field="prompt")
    for metric in nonempty(bench.metrics(kind, described, rows).values()):
        if metric.name == "execution_accuracy":
            stats = metric.statistics(bench.observed(rows, outputs))
            assert stats[:, 0].tolist() == list(outputs.values())
            assert stats[:, 1].tolist() == [1.0] * len(rows)
    assert any("made up" in caution for caution in kind.cautions(described))


def test_rows_that_lack_something_are_all_named(bench):
    rows = [bench.row(1), bench.row(2, answer="SELECT 1", db=3), bench.row(3, answer=" ", db=SCRIPT)]
    with pytest.raises(DataError) as caught:
        Sql().check(task(database_field="db"), rows)
    assert [(p.line, p.field) for p in caught.value.problems] == [(1, "db"), (2, "db"), (3, "answer")]
    with pytest.raises(DataError, match="describes no table"):
        Sql().check(task(table_field="prompt"), rows[:1])


def test_where_the_query_stands_in_an_answer():
    assert query_of("Of course:\n```sql\nSELECT 1;\n```\nand\n```\nSELECT 2\n```") == "SELECT 1"
    assert query_of(" SELECT a,\n  b FROM t ;\n \nQ: next") == "SELECT a,\n  b FROM t"


def test_a_blank_line_in_a_fenced_query_does_not_end_it(bench):
    query = "WITH twos AS (\n  SELECT b FROM t WHERE a = 2\n)\n\nSELECT b FROM twos"
    assert query_of(f"Like this:\n```sql\n{query};\n```\nIt reads t.") == query
    assert query_of(f"```sql\r\n{query};\r\n```\r\nIt reads t.\r\n") == query
    assert query_of(f"```sql\n{query};\n\n-- or\nSELECT 2;\n```") == query
    rows = [bench.row(1, answer="SELECT b FROM t WHERE a = 2", db=SCRIPT)]
    found = bench.figures(Sql(), task(database_field="db"), rows, [f"```sql\n{query}\n```"])
    assert (found["execution_accuracy"], found["sql_valid"]) == (1.0, 1.0)


def test_a_blank_line_in_a_query_without_a_fence_does_not_end_it(bench):
    query = "-- Two\n\nWITH twos AS (\n  SELECT b FROM t\n\n  WHERE a = 2\n)\n\nSELECT b FROM twos\n\nORDER BY b"
    assert query_of(query) == query
    assert query_of(f"{query};\r\n\r\nThe order is that of b.") == query
    assert query_of(f"```sql\n{query}") == query
    rows = [bench.row(1, answer="SELECT b FROM t WHERE a = 2 ORDER BY b", db=SCRIPT)]
    found = bench.figures(Sql(), task(database_field="db"), rows, [f"{query}\n\nFrom t, both are given."])
    assert (found["execution_accuracy"], found["sql_valid"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "after",
    [
        "From this one sees both.",
        "Where b is missing, there is no row.",
        "or\n\nSELECT 2",
        "SELECT 2",
        "Q: who?",
        "On t.",
        "from",
    ],
)
def test_prose_and_further_queries_behind_a_blank_line_are_no_part_of_a_query(after):
    assert query_of(f"SELECT a FROM t\n\n{after}") == "SELECT a FROM t"
    assert query_of(f"select a from t;\n\n{after}") == "select a from t"
    assert query_of(f"(SELECT a FROM t)\n\n{after}") == "(SELECT a FROM t)"


@pytest.mark.parametrize(
    "before",
    [
        "Here is the query:\n\n",
        "The query is: ",
        "With this table as a start, I count the rows.\n\n",
        "Sure!\n",
        "To answer it, read t.\n\nQuery:\n",
        "Update: I select a.\n",
    ],
)
@pytest.mark.parametrize(
    "query",
    [
        "SELECT a FROM t WHERE b = 'x: SELECT'",
        "WITH twos AS (\n  SELECT b FROM t\n)\n\nSELECT b FROM twos",
        "(SELECT a FROM t) UNION SELECT b FROM t",
    ],
)
def test_prose_before_a_query_is_no_part_of_it(before, query):
    assert query_of(before + query) == query
    assert query_of(f"{before}{query};\n\nIt reads t.") == query


def test_where_a_query_in_lower_case_or_in_code_marks_begins():
    assert query_of("The query is `SELECT a FROM t`.") == "SELECT a FROM t"
    assert query_of("**SQL:** SELECT a FROM t") == "SELECT a FROM t"
    assert query_of("The query is: `SELECT `a` FROM t`, as asked.") == "SELECT `a` FROM t"
    assert query_of("I select a.\nselect a from t") == "select a from t"
    assert query_of("From t, one reads a:\nselect a from t") == "select a from t"
    # Statements that are no queries stay whole: their inner query is not what was asked for.
    assert query_of("INSERT INTO u\nSELECT a FROM t") == "INSERT INTO u\nSELECT a FROM t"
    assert query_of("I do not know.") == "I do not know."


def test_a_query_that_never_ends_is_read_up_to_its_first_blank_line():
    assert query_of("SELECT Score (all FROM 1-77-2\n\nQ: next\n\nWho?") == "SELECT Score (all FROM 1-77-2"


@pytest.mark.shared_data
def test_wikisql_is_judged_rightly_against_itself_and_wrongly_against_other_columns(bench, shared_data):
    rows, others = [], []
    for number, line in enumerate((shared_data / "wikisql_mlx/test.jsonl").read_text().splitlines(), 1):
        prompt, own = json.loads(line)["text"].split("\nA: ", 1)
        rows.append(bench.row(number, prompt=prompt, answer=own))
        columns = described_table(prompt).columns
        selected = max((c for c in columns if f" {c} FROM " in own), key=len)
        others.append(own.replace(selected, next(c for c in columns if c != selected), 1))
    judge = SqlJudge(task(table_field="prompt"), rows, Resources(bench.folder))
    assert judge.unusable == {}
    assert judge.right(bench.observed(rows, [row.example.reference for row in rows])).mean(axis=0).tolist() == [1, 1]
    assert judge.right(bench.observed(rows, others)).mean(axis=0).tolist() == [0, 1]
