"""Code by tests: does the Python that the model wrote pass the row's tests?"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.results.suite import CodeTask
from luthier.core.results.task_result import TaskFigures
from luthier.ml.evaluation.metrics.fenced import first_block
from luthier.ml.evaluation.metrics.fraction import Fraction
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations, mean_statistics
from luthier.ml.evaluation.sandbox.code import Outcome, isolation, require_isolation, run_tests
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow
from luthier.ml.evaluation.tasks.row_checks import check_rows, own_answer


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
            DataError: rows whose own answer does not pass its own tests; each is named.
        """
        # Both have to say so: a suite from elsewhere must not decide that code is run here.
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
            "Only Python's standard library is at hand, and no file can be written.",
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
            return self._task.tests, f"the row's own answer comes to {found.word!r}: {found.message or 'no message'}"

        check_rows(self._task.name, rows, problem, expected="tests that the row's own answer passes")

    def outcomes(self, asked: Sequence[tuple[str, str]]) -> list[Outcome]:
        """The outcome of each answer with its tests, in order."""
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._told]
        if new:
            # Half of the cores: a time limit in wall time would fail slow answers on a machine that is full.
            num_at_once = max(1, (os.cpu_count() or 1) // 2)
            progress = self._progress.task("Running code", len(new), "answers")
            # Threads suffice: each waits for a child process of its own.
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
        return "is no text"
    try:
        body = ast.parse(tests).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"is no Python: {error}"
    if any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in body):
        return None
    # A function or class that is never called tests nothing, whatever it asserts.
    run = [node for node in body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    acts = (ast.Assert, ast.Call, ast.Raise)
    if any(isinstance(inner, acts) for node in run for inner in ast.walk(node)):
        return None
    return "tests nothing: no assertion that is run, no call, no function named test_"
