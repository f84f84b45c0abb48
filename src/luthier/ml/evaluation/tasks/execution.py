"""Tasks evaluated by execution: does the Python pass the row's tests, does the SQL give what the row's own query gives?

What the model wrote runs in the sandbox.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.core.ports import Progress
from luthier.core.results.suite import CodeTask, SqlTask, TaskFigures
from luthier.core.system.process_setup import num_usable_cores
from luthier.ml.evaluation.metrics.protocol import Array, Fraction, MetricDefinition, Observations, mean_statistics
from luthier.ml.evaluation.metrics.structured_output import fenced_blocks, first_block
from luthier.ml.evaluation.sandbox.runners import (
    Database,
    Outcome,
    Result,
    SqlRunner,
    isolation,
    require_isolation,
    run_tests,
)
from luthier.ml.evaluation.sql import Table, Token, described_table, is_ordered, made_up, tokens_of, written_out
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow, check_rows, own_answer, refuse_rows


class Code:
    """pass@1, and what keeps the others from passing."""

    def check(self, task: CodeTask, rows: Sequence[TaskRow]) -> None:
        """Every row has tests that are Python and test something."""

        def problem(row: TaskRow) -> tuple[str, str] | None:
            fault = fault_of_tests(row.item.get(task.tests))
            return (task.tests, fault) if fault else None

        check_rows(task.name, rows, problem, expected=f"Python with assertions in {task.tests!r} of every row")

    def options(self, task: CodeTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the model writes."""
        return ()

    def metrics(self, task: CodeTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:
        """pass@1 first (Chen et al., "Evaluating Large Language Models Trained on Code", 2021, with one greedy sample).

        Raises:
            RequestError: code may not be run, or cannot be run safely on this machine.
            DataError: rows whose answer does not pass their tests; each is named.
        """
        # Both have to allow it: a suite from elsewhere must not decide that code is run here.
        if not (task.allow_code and resources.allows_code):
            missing = "the command line" if task.allow_code else "the task (`allow_code: true`)"
            raise RequestError(
                f"task {task.name} runs Python that a model wrote, which {missing} does not allow",
                expected="leave from both: `allow_code: true` in the task, --allow-code on the command line",
                do="give it if you trust the lock-down that docs/tasks.md describes, or take the task out",
            )
        require_isolation()
        judge = CodeJudge(task, resources.progress)
        judge.check_own_answers(rows)
        return [
            Fraction("pass_at_1", "pass@1", judge.share("passed")),
            Fraction("code_failed", "answers with a failed assertion", judge.share("failed"), higher_is_better=False),
            Fraction("code_error", "answers that raise or end", judge.share("error"), higher_is_better=False),
            Fraction(
                "code_over_limit",
                "answers over time or memory",
                judge.share("timeout", "memory"),
                higher_is_better=False,
            ),
        ]

    def figures(self, task: CodeTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: CodeTask) -> tuple[str, ...]:
        """What was in force, and what passing does not prove."""
        general = (
            "Answer and tests share one process, so an answer that sets out to deceive its tests can; one that passes "
            "even a test that nothing can pass is counted as failed.",
            "Only Python's standard library is available, and no file can be written.",
        )
        return (isolation().sentence, *general) if task.allow_code else general


class CodeJudge:
    """Runs answers with their tests, each different pair once, several at a time."""

    def __init__(self, task: CodeTask, progress: Progress) -> None:
        self._task, self._progress = task, progress
        self._told: dict[tuple[str, str], Outcome] = {}

    def share(self, *words: str) -> Callable[[Observations], Array]:
        """A metric that counts the answers with one of these outcomes."""

        def count(observed: Observations) -> Array:
            pairs = zip(observed.outputs, observed.items, strict=True)
            outcomes = self.outcomes([(code_of(output), item[self._task.tests]) for output, item in pairs])
            return mean_statistics([outcome.word in words for outcome in outcomes])

        return count

    def check_own_answers(self, rows: Sequence[TaskRow]) -> None:
        """Check that every row's own answer passes its tests.

        Raises:
            DataError: some do not; each is named with its outcome.
        """
        # A row may have tests alone.
        with_answer = [row for row in rows if own_answer(row).strip()]
        asked = [(code_of(own_answer(row)), row.item[self._task.tests]) for row in with_answer]
        outcomes = dict(zip((row.example.id for row in with_answer), self.outcomes(asked), strict=True))

        def problem(row: TaskRow) -> tuple[str, str] | None:
            found = outcomes.get(row.example.id)
            if found is None or found.word == "passed":
                return None
            return self._task.tests, f"the row's own answer gives {found.word!r}: {found.message or 'no message'}"

        check_rows(self._task.name, rows, problem, expected="tests that the row's own answer passes")

    def outcomes(self, asked: Sequence[tuple[str, str]]) -> list[Outcome]:
        """The outcome of each answer with its tests, in order."""
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._told]
        if new:
            # Half of the cores: a time limit in wall time would fail slow answers on a machine that is full.
            num_at_once = max(1, num_usable_cores() // 2)
            progress = self._progress.task("Running code", len(new), "answers")
            # Threads are enough: each waits for its own child process.
            with ThreadPoolExecutor(num_at_once) as pool, progress as task:
                for pair, outcome in zip(new, pool.map(self._run, new), strict=True):
                    self._told[pair] = outcome
                    task.advance()
        return [self._told[pair] for pair in asked]

    def _run(self, pair: tuple[str, str]) -> Outcome:
        code, tests = pair
        if not code:
            return Outcome("error", "no answer")
        seconds, memory = self._task.timeout_seconds, self._task.most_memory_bytes
        return run_tests(code, tests, seconds=seconds, most_memory_bytes=memory)


def code_of(answer: str) -> str:
    """The first fenced block of an answer, or all of it."""
    return first_block(answer).strip()


def fault_of_tests(tests: object) -> str | None:
    """What is wrong with tests: they have to assert or call something by themselves, or define functions test_..."""
    if not isinstance(tests, str) or not tests.strip():
        return "is not text"
    try:
        body = ast.parse(tests).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"is not Python: {error}"
    if any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in body):
        return None
    # A function or class that is never called tests nothing.
    run = [node for node in body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    acts = (ast.Assert, ast.Call, ast.Raise)
    if any(isinstance(inner, acts) for node in run for inner in ast.walk(node)):
        return None
    return "tests nothing: no assertion that is run, no call, no function named test_"


class Sql:
    """Execution accuracy and validity, and how many of the rows' own queries run."""

    def check(self, task: SqlTask, rows: Sequence[TaskRow]) -> None:
        """Every row has a query and the database that it is run on."""
        field = task.database_field or task.table_field

        def problem(row: TaskRow) -> tuple[str, str] | None:
            if not query_of(own_answer(row)):
                return "answer", "is not a query"
            if field is None:
                return None
            value = text_in(row.item.get(field))
            if not value.strip():
                return field, "is not text"
            if task.table_field is not None and described_table(value) is None:
                return field, "describes no table as `table: NAME` with `columns: A, B` on the next line"
            return None

        expected = f"a query as the answer{f' and a text in {field!r}' if field else ''} in every row"
        check_rows(task.name, rows, problem, expected=expected)

    def options(self, task: SqlTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the model writes."""
        return ()

    def metrics(self, task: SqlTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:
        """Execution accuracy first. Rows whose own query does not run count in `own_query_runs` only.

        Raises:
            NotFoundError: a database file does not exist.
            RequestError: a database file may not be named.
            DataError: a database cannot be made, or no row's own query runs; names all of them with SQLite's reason.
        """
        judge = SqlJudge(task, rows, resources)
        if len(judge.unusable) == len(rows):
            refuse_rows(task.name, list(judge.unusable.items()), expected="queries that SQLite runs", field="answer")
        return [
            Fraction("execution_accuracy", "right results", judge.right),
            Fraction("sql_valid", "queries that run", judge.runs),
            Fraction("own_query_runs", "rows whose own query runs", judge.own_runs),
        ]

    def figures(self, task: SqlTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: SqlTask) -> tuple[str, ...]:
        """What equal results do not prove, and which sandbox there was."""
        common = (
            "A query is right if it gives the rows of the row's own query, in any order unless that one has ORDER BY; "
            "a wrong query may give them by chance. Rows whose own query does not run are left out of the accuracy."
        )
        held = isolation()
        sandbox = f"Queries were run in a child process that only reads. Sandbox: {held.holds}."
        first = (common, sandbox) if held.seccomp else (common,)
        if task.table_field is None:
            return first
        return (
            *first,
            "The tables' content is made up, so that queries with one difference give different results where it can; "
            "names without quotes are read by the table's description, in answers as in the rows' own queries.",
        )


@dataclass(frozen=True, slots=True)
class _Case:
    """What a row's answers are compared with.

    Attributes:
        databases: the row's own one, or several made-up ones.
        results: of the row's own query in each.
        table: the table as the row describes it; None where it names a database.
        is_ordered: the order of the result counts.
        error: why the row's own query does not run; None where it does.
    """

    databases: tuple[Database, ...]
    results: tuple[Result, ...]
    table: Table | None
    is_ordered: bool
    error: str | None = None


class SqlJudge:
    """Runs answers in their rows' databases, each different answer once.

    Attributes:
        unusable: by the row's id, why its own query does not run.
    """

    def __init__(self, task: SqlTask, rows: Sequence[TaskRow], resources: Resources) -> None:
        self._task, self._resources = task, resources
        self._cases: dict[tuple[str, str], _Case] = {}
        # By case and query: all metrics and systems share one run of each different answer.
        self._told: dict[tuple[tuple[str, str], str], tuple[bool, bool]] = {}
        self.unusable: dict[str, str] = {}
        title = "Making databases" if task.table_field else "Running the rows' own queries"
        runner = self._runner(self._files(rows))
        with runner, resources.progress.task(title, len(rows), "rows") as progress:
            for row in rows:
                key = self._key(row.item, own_answer(row))
                if key not in self._cases:
                    self._cases[key] = self._case(row, runner)
                if (error := self._cases[key].error) is not None:
                    self.unusable[row.example.id] = error
                progress.advance()

    def right(self, observed: Observations) -> Array:
        """[rows, 2]: 1 where all results are those of the row's own query; 1 where that one runs."""
        usable = self.own_runs(observed)[:, :1]
        right = mean_statistics([right for _, right in self._outcomes(observed)])
        # The second column is the weight of the row: 0 takes a row whose own query fails out of the fraction.
        right[:, 1:] = usable
        return right

    def runs(self, observed: Observations) -> Array:
        """[rows, 2]: 1 where the answer runs, one."""
        return mean_statistics([runs for runs, _ in self._outcomes(observed)])

    def own_runs(self, observed: Observations) -> Array:
        """[rows, 2]: 1 where the row's own query runs, one."""
        pairs = zip(observed.items, observed.references, strict=True)
        return mean_statistics([self._cases[self._key(item, own)].error is None for item, own in pairs])

    def _outcomes(self, observed: Observations) -> list[tuple[bool, bool]]:
        """Of each answer whether it runs, and whether it is right."""
        rows = list(zip(observed.items, observed.references, observed.outputs, strict=True))
        asked = [(self._key(item, own), query_of(output)) for item, own, output in rows]
        new = [one for one in dict.fromkeys(asked) if one not in self._told]
        if new:
            progress = self._resources.progress.task("Running queries", len(new), "queries")
            files = [Path(database.file) for case in self._cases.values() for database in case.databases]
            with self._runner(files) as runner, progress as task:
                for key, query in new:
                    self._told[key, query] = _judge(self._cases[key], query, runner)
                    task.advance()
        return [self._told[one] for one in asked]

    def _runner(self, files: Sequence[Path]) -> SqlRunner:
        is_remote = self._resources.is_remote
        return SqlRunner(seconds=self._task.timeout_seconds, files=files, needs_isolation=is_remote)

    def _case(self, row: TaskRow, runner: SqlRunner) -> _Case:
        query = query_of(own_answer(row))
        if self._task.table_field is not None:
            table = described_table(text_in(row.item[self._task.table_field]))
            assert table is not None
            query = written_out(query, table)
            made = made_up(table, query, runner.run)
            error = made.error
            # For a table without a database, results that need no order are compared without it.
            return _Case(made.databases or (_empty(table),), made.results, table, is_ordered(query), error)
        database = self._database(row.item)
        try:
            (result,) = runner.run(database, [query])
        except RequestError as error:
            raise DataError(f"{row.example.id}: {error.came}", expected=error.expected, do=error.do) from error
        return _Case((database,), (result,), None, is_ordered(query), result.error)

    def _database(self, item: Mapping[str, Any]) -> Database:
        """A file where the value names one, else statements."""
        field = self._task.database_field
        value = text_in(item[field]) if field else str(self._task.database)
        # Only a row's own value may hold statements; a database of the task is always a file.
        if field and re.search(r"\b(create|insert)\s", value, re.IGNORECASE):
            return Database(script=value)
        path = self._resources.file(field or "database", value).resolve()
        if not path.is_file():
            raise NotFoundError(str(path), expected="a SQLite file", do="correct the task's database")
        return Database(file=str(path))

    def _files(self, rows: Sequence[TaskRow]) -> list[Path]:
        if self._task.table_field is not None:
            return []
        files = {self._database(row.item).file for row in rows}
        return [Path(file) for file in sorted(files) if file]

    def _key(self, item: Mapping[str, Any], own: str) -> tuple[str, str]:
        field = self._task.database_field or self._task.table_field
        return text_in(item[field]) if field else "", own


def text_in(value: object) -> str:
    """A field's text; of a list of chat messages all that is not the assistant's. Empty for anything else."""
    if isinstance(value, str):
        return value
    messages = [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []
    return "\n".join(str(one.get("content", "")) for one in messages if one.get("role") != "assistant")


_BLANK_LINE: Final = r"\n[ \t\r]*\n"
_STATEMENTS: Final = ("SELECT", "VALUES")
"""What a WITH is about: without one of these, outside of parentheses, it is not finished."""
# fmt: off
_BEGIN_A_CLAUSE: Final = frozenset((
    "FROM", "WHERE", "GROUP", "ORDER", "HAVING", "LIMIT", "OFFSET", "UNION", "EXCEPT", "INTERSECT", "WINDOW", "JOIN",
    "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL", "USING",
))
_OFTEN_IN_PROSE: Final = frozenset(("AND", "OR", "ON", "WHEN", "THEN", "ELSE", "END"))
_NEED_MORE: Final = frozenset((
    "SELECT", "DISTINCT", "FROM", "WHERE", "AND", "OR", "NOT", "BY", "ON", "JOIN", "UNION", "ALL", "EXCEPT",
    "INTERSECT", "HAVING", "AS", "IN", "LIKE", "BETWEEN", "CASE", "WHEN", "THEN", "ELSE", "LIMIT", "OFFSET",
))
# fmt: on
_BEFORE_A_WORD: Final = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/|\()*", re.DOTALL)
_FIRST_WORD: Final = re.compile(
    r"(?:SELECT|VALUES)\b|(?:INSERT|REPLACE|MERGE)\s+INTO\b|DELETE\s+FROM\b|UPDATE\s+\S+\s+SET\b|EXPLAIN\s+\w"
    r"|(?:CREATE|DROP|ALTER)\s+(?:\w+\s+)?(?:TABLE|VIEW|INDEX|TRIGGER)\b"
    # "With this table as a start" is prose.
    r"|WITH\s+(?:RECURSIVE\s+)?(?:\w+|\"[^\"]+\"|`[^`]+`|\[[^\]]+\])\s*(?:\([^()]*\)\s*)?"
    r"AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?\(",
    re.IGNORECASE,
)
_BEHIND_PROSE: Final = re.compile(
    r"(?:^|(?P<colon>:)|(?=`))[\s*]*(?P<mark>`?)(?P<query>\(*\s*(?P<word>SELECT|VALUES|WITH)\b)",
    re.IGNORECASE | re.MULTILINE,
)


def query_of(answer: str) -> str:
    """The query of an answer: its first fenced block, else its text up to where the query ends; no last semicolon.

    Of a block only a blank line behind a semicolon ends it: others are inside of the query, as between the parts of a
    WITH. In a text prose may be before the query and follow it: a blank line ends a query that is finished, unless what
    follows begins with a further clause of it.
    """
    if blocks := fenced_blocks(answer):
        return _without_semicolon(re.split(rf";[ \t\r]*{_BLANK_LINE}", blocks[0].strip(), maxsplit=1)[0])
    text = _without_prose_before(first_block(answer).strip())
    blank_lines = list(re.finditer(_BLANK_LINE, text))
    for place, blank in enumerate(blank_lines):
        following = blank_lines[place + 1].start() if place + 1 < len(blank_lines) else len(text)
        before = [token for token in tokens_of(text[: blank.start()]) if token.kind != "space"]
        if not _is_continued(before, text[blank.end() : following]):
            return _without_semicolon(text[: blank.start()])
    # Where all of it is one query, or the first part never became one, as with a parenthesis in a name.
    tokens = [token for token in tokens_of(text) if token.kind != "space"]
    end = blank_lines[0].start() if blank_lines and _is_unfinished(tokens) else len(text)
    return _without_semicolon(text[:end])


def _without_prose_before(text: str) -> str:
    """The text from its query on, where it begins with prose: "The query is: SELECT ..."; all of it where it does not.

    A query begins behind a colon or a mark of code, or in capitals at the start of a line; else at that of any line.
    """
    if _begins_a_query(text):
        return text
    places = [one for one in _BEHIND_PROSE.finditer(text) if _begins_a_query(text[one.start("query") :])]
    if not places:
        return text
    sure = (one for one in places if one["colon"] or one["mark"] or one["word"].isupper())
    place = next(sure, places[0])
    query = text[place.start("query") :]
    # Code within a line ends at its mark, which names may have, too.
    end = query.rfind("`") if place["mark"] else -1
    return query[:end] if end > 0 else query


def _begins_a_query(text: str) -> bool:
    before = _BEFORE_A_WORD.match(text)
    return _FIRST_WORD.match(text, before.end() if before is not None else 0) is not None


def _without_semicolon(query: str) -> str:
    return query.strip().rstrip(";").strip()


def _is_continued(before: Sequence[Token], after: str) -> bool:
    """Whether the text behind a blank line belongs to the query that is before it."""
    if _is_unfinished(before):
        return True
    following = [token for token in tokens_of(after) if token.kind != "space"]
    if before[-1].text == ";" or len(following) < 2:
        return False
    first = next((token.text for token in before if token.kind == "word"), "")
    word = following[0].text
    # Prose may begin with such a word, too, as in "From this": those of a query are written like its first one.
    is_alike = word.isupper() if first.isupper() else word.islower() if first.islower() else True
    return is_alike and (word.upper() in _BEGIN_A_CLAUSE or (word.isupper() and word in _OFTEN_IN_PROSE))


def _is_unfinished(tokens: Sequence[Token]) -> bool:
    """Whether a query has not ended: nothing but comments, an open parenthesis, or a part that needs another."""
    if not tokens:
        return True
    if tokens[-1].text in (",", "=", "<", ">", "<=", ">=", "<>", "!=", "||") or tokens[-1].is_word(*_NEED_MORE):
        return True
    depth, is_begun = 0, not tokens[0].is_word("WITH")
    for token in tokens:
        depth += (token.text == "(") - (token.text == ")")
        is_begun = is_begun or (depth == 0 and token.is_word(*_STATEMENTS))
    return depth > 0 or not is_begun


def _judge(case: _Case, query: str, runner: SqlRunner) -> tuple[bool, bool]:
    if case.table is not None:
        query = written_out(query, case.table)
    is_right = case.error is None
    for place, database in enumerate(case.databases):
        (given,) = runner.run(database, [query])
        # It has to run on every database.
        if given.error is not None:
            return False, False
        if is_right:
            own = case.results[place]
            same = given.in_order == own.in_order if case.is_ordered else given.in_any_order == own.in_any_order
            # Right only where every database gives the same result: one may agree by chance.
            is_right = same
    return True, is_right


def _empty(table: Table) -> Database:
    columns = ", ".join('"' + column.replace('"', '""') + '"' for column in table.columns)
    name = table.name.replace('"', '""')
    return Database(script=f'CREATE TABLE "{name}" ({columns});')
