"""Graders in Python as rewards: run in the locked-down child, and recorded, so that a resumed run has the same scores.

A score is found again by the code, the answer and the row. A failure is found again by its own run alone: another run
tries again, since a machine that was busy for a moment is no property of an answer.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import RequestError, WorkError
from luthier.core.graders import PythonGraderSpec
from luthier.core.ids import sha256_document
from luthier.core.ports import Generation, Progress
from luthier.ml.evaluation.sandbox.runners import GRADER_SECONDS, PythonGrade, PythonGrader

if TYPE_CHECKING:
    from luthier.ml.inference.engine_wrappers import ResultCache

MAX_TIMEOUTS: Final = 5
"""So many answers in a row that a grader takes too long for end the run: it does not return."""


def check_source(grader: PythonGraderSpec) -> None:
    """Raise RequestError where the code of a grader is no Python, or defines no `grade`; nothing is run.

    Args:
        grader: Of a recipe or a request.
    """
    try:
        tree = ast.parse(grader.source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RequestError(
            f"grader {grader.name!r}: its source is no Python: {str(error)[:200]}",
            expected="Python with a function grade(sample, item) that returns a number",
            do="correct the source of the grader",
        ) from error
    if not any(_names(node) == "grade" for node in ast.walk(tree)):
        raise RequestError(
            f"grader {grader.name!r}: its source defines no function grade",
            expected="a function grade(sample, item) that returns a number",
            do="define it in the source of the grader",
        )


def _names(node: ast.AST) -> str:
    """What a node gives a name to: by a definition, an assignment or an import."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.alias):
        return node.asname or node.name
    return node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""


class RecordedGraders:
    """The graders in Python of one run, each in a child of its own from its first answer on. Use it in a `with` block.

    Args:
        records: Stores the scores; None stores nothing.
        run: Names the run, by which failures are found again.
        seconds: For one answer.
    """

    def __init__(self, records: ResultCache | None, run: str, *, seconds: float = GRADER_SECONDS) -> None:
        self._records, self._run, self._seconds = records, run, seconds
        self._children: dict[str, PythonGrader] = {}
        self._num_timeouts = 0

    def __call__(
        self,
        grader: PythonGraderSpec,
        pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
        progress: Progress,
    ) -> list[PythonGrade]:
        """The grade of each answer, in order. Equal answers to one row are graded once.

        Args:
            grader: The code.
            pairs: The fields of an answer and of its row.
            progress: Shows the answers that are graded.

        Raises:
            WorkError: The code does not return, for several answers in a row.
            RequestError: This machine cannot lock a process down.
        """
        plain = [_plain(answer, item) for answer, item in pairs]
        asked = [self._key(grader, *pair) for pair in plain]
        found = self._found(list(dict.fromkeys(asked)))
        missing = {key: pair for key, pair in zip(asked, plain, strict=True) if key not in found}
        if missing:
            new = self._graded(grader, missing, progress)
            self._keep(grader, new)
            found |= new
        return [found[key] for key in asked]

    def close(self) -> None:
        """End the children."""
        for child in self._children.values():
            child.close()
        self._children.clear()

    def _graded(
        self, grader: PythonGraderSpec, missing: Mapping[str, tuple[Any, Any]], progress: Progress
    ) -> dict[str, PythonGrade]:
        child = self._children.get(grader.source)
        if child is None:
            child = self._children[grader.source] = PythonGrader(grader.source, seconds=self._seconds)
        new: dict[str, PythonGrade] = {}
        with progress.task("Grading answers", len(missing), "answers") as task:
            for key, (answer, item) in missing.items():
                new[key] = child.grade(answer, item)
                # One answer in time shows that the function returns.
                self._num_timeouts = self._num_timeouts + 1 if new[key].word == "timeout" else 0
                if self._num_timeouts >= MAX_TIMEOUTS:
                    raise WorkError(
                        f"grader {grader.name!r} took longer than {self._seconds:g} s for each of {MAX_TIMEOUTS} "
                        "answers in a row",
                        expected="a function grade(sample, item) that returns",
                        do="correct the grader (does it loop forever?) and start another run; if the machine was only "
                        "busy, resume this one",
                    )
                task.advance()
        return new

    def _key(self, grader: PythonGraderSpec, answer: Any, item: Any) -> str:
        # The limit of time is part of it: with more of it a slow answer has another score.
        return sha256_document(
            {"grader": "python", "source": grader.source, "seconds": self._seconds, "sample": answer, "item": item}
        )

    def _failed_key(self, key: str) -> str:
        return sha256_document({"failed": key, "run": self._run})

    def _found(self, keys: Sequence[str]) -> dict[str, PythonGrade]:
        if self._records is None:
            return {}
        by_stored = {key: key for key in keys} | {self._failed_key(key): key for key in keys}
        stored = self._records.find(list(by_stored))
        found: dict[str, PythonGrade] = {}
        # A failure of this run comes first: another run may have been luckier since, and this one has learned from it.
        for stored_key in sorted(stored, key=lambda one: one != by_stored[one]):
            found[by_stored[stored_key]] = PythonGrade(**json.loads(stored[stored_key].text))
        return found

    def _keep(self, grader: PythonGraderSpec, new: Mapping[str, PythonGrade]) -> None:
        if self._records is None:
            return
        rows = {
            key if grade.word == "graded" else self._failed_key(key): Generation(
                text=json.dumps({"word": grade.word, "score": grade.score, "message": grade.message}),
                num_prompt_tokens=0,
                num_new_tokens=0,
                finish_reason="stop",
            )
            for key, grade in new.items()
        }
        self._records.keep(rows, engine=f"python grader {grader.name}")


def _plain(answer: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[Any, Any]:
    """Both as JSON has them: a date of a Parquet file, and a number that is none, becomes a text."""
    made = [json.loads(json.dumps(dict(one), default=str), parse_constant=str) for one in (answer, item)]
    return made[0], made[1]
