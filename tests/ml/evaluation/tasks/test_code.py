"""Code by tests: allowed by nobody but the user, and what hostile answers come to."""

import pytest

from luthier.core.errors import DataError, RequestError
from luthier.core.results.suite import CodeTask
from luthier.ml.evaluation.tasks.execution import Code, code_of, fault_of_tests

RIGHT = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3"


def task(**settings):
    return CodeTask(kind="code", name="functions", data="rows.jsonl", timeout_seconds=20, **settings)


def test_nothing_runs_unless_both_allow_it(bench):
    rows = [bench.row(1, answer=RIGHT, tests=TESTS)]
    with pytest.raises(RequestError, match="the task \\(`allow_code: true`\\) does not allow"):
        bench.metrics(Code(), task(), rows, allows_code=True)
    with pytest.raises(RequestError, match="the command line does not allow"):
        bench.metrics(Code(), task(allow_code=True), rows)


def test_pass_at_1_and_why_others_do_not_pass(bench):
    outputs = [f"Here:\n```python\n{RIGHT}```\nIt adds.", RIGHT.replace("+", "-"), "def add(a): return a", "", "def ("]
    rows = [bench.row(n, answer=RIGHT, tests=TESTS) for n in range(len(outputs))]
    found = bench.figures(Code(), task(allow_code=True), rows, outputs, allows_code=True)
    expected = {"pass_at_1": 0.2, "code_failed": 0.2, "code_error": 0.6, "code_over_limit": 0.0}
    assert found == pytest.approx(expected)


def test_rows_that_their_own_answer_does_not_pass_are_all_named(bench):
    rows = [
        bench.row(1, answer="def add(a, b): return 3", tests=TESTS),
        bench.row(2, answer="def add(a, b): return 4", tests=TESTS),
        bench.row(3, answer="", tests=TESTS),
        bench.row(4, answer="None", tests=TESTS),
    ]
    with pytest.raises(DataError) as caught:
        bench.metrics(Code(), task(allow_code=True), rows, allows_code=True)
    assert [problem.line for problem in caught.value.problems] == [2, 4]
    assert "NameError" in caught.value.problems[1].reason


def test_rows_without_tests_that_test_are_all_named(bench):
    rows = [
        bench.row(1),
        bench.row(2, tests=TESTS),
        bench.row(3, tests="assert add(1"),
        bench.row(4, tests="def check(f):\n    assert f(1) == 2\n"),
    ]
    with pytest.raises(DataError) as caught:
        Code().check(task(), rows)
    assert [problem.line for problem in caught.value.problems] == [1, 3, 4]


@pytest.mark.parametrize(
    "tests",
    ["assert f(1) == 2", "def test_it():\n    assert f(1) == 2", "check(f)", "for n in (1, 2):\n    assert f(n)"],
)
def test_tests_that_test(tests):
    assert fault_of_tests(tests) is None


def test_where_code_stands_in_an_answer():
    assert code_of("x = 1\n") == "x = 1"
    assert code_of("Sure.\n```python\nx = 1\n```\nand\n```\ny = 2\n```") == "x = 1"
    assert code_of("```python\nx = 1") == "x = 1"  # cut off before the fence was closed
