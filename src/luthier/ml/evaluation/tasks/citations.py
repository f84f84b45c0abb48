"""Citations: are they in the corpus, and is what an answer claims?"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.errors import DataError, RequestError, RowProblem
from luthier.core.results.suite import CitationsTask, TaskFigures
from luthier.core.system.extras import install_command
from luthier.ml.evaluation.grounding.citation import compiled
from luthier.ml.evaluation.grounding.claims import (
    THRESHOLD,
    AnswersWithInvented,
    CitationsPerAnswer,
    EntailedClaims,
    Entailment,
    ExpectedCitations,
    Findings,
    GroundedClaims,
    InventedCitations,
    MisnamedCitations,
    UnusableVerdicts,
)
from luthier.ml.evaluation.grounding.corpus import Corpus
from luthier.ml.evaluation.grounding.find import has_eyecite
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow


class Citations:
    """The model answers; the answer's citations and claims are looked up in the corpus."""

    def check(self, task: CitationsTask, rows: Sequence[TaskRow]) -> None:
        """Check the patterns, and that every row has a question.

        Raises:
            DataError: rows have no question.
            RequestError: a pattern is wrong or named like a form, or the task looks for no citations.
        """
        compiled(task.patterns)
        if not task.forms and not task.patterns:
            raise RequestError(
                f"task {task.name} looks for no citations",
                expected="at least one of `forms`, or one of `patterns`",
                do="leave `forms` out to look for all of them",
            )
        taken = sorted(set(task.patterns) & {"us_case", "us_statute", "state_statute", "section", "url"})
        if taken:
            raise RequestError(
                f"pattern {taken[0]!r} has the name of a form",
                expected="a different name for each",
                do="call it something else in the suite",
            )
        without = [row.example.id for row in rows if row.example.prompt is None]
        if without:
            problems = [_problem(row_id) for row_id in without]
            raise DataError(
                f"{len(without):,} of {len(rows):,} rows of task {task.name} ask nothing",
                expected="rows with a question and an answer",
                do="name the fields in `map`, or take the rows out",
                problems=problems,
            )

    def options(self, task: CitationsTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the model writes."""
        return ()

    def metrics(self, task: CitationsTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:
        """Invented citations first.

        Raises:
            RequestError: without documents, or without a judge where one is needed.
        """
        if resources.documents is None:
            raise RequestError(
                f"task {task.name} without documents", expected="the corpus that it names", do="check the path"
            )
        if task.entailment and resources.judge is None:
            raise RequestError(
                f"task {task.name} needs a judge to check whether claims are supported, and there is none",
                expected="--judge ENGINE",
                do="name one, or take `entailment` out of the suite",
            )
        corpus = Corpus(resources.documents, forms=task.forms, patterns=task.patterns, progress=resources.progress)
        cited = Findings(corpus)
        found: list[MetricDefinition] = [
            InventedCitations(cited),
            AnswersWithInvented(cited),
            MisnamedCitations(cited),
            CitationsPerAnswer(cited),
            GroundedClaims(corpus),
        ]
        if any(corpus.citations(row.example.reference or "") for row in rows):
            # Only where an own answer cites anything: else its share of nothing would be shown as 0.
            found.insert(4, ExpectedCitations(corpus))
        if task.entailment and resources.judge is not None:
            entailment = Entailment(
                resources.judge, corpus, judge_name=resources.judge_name, progress=resources.progress
            )
            found += [EntailedClaims(entailment), UnusableVerdicts(entailment)]
        return found

    def figures(self, task: CitationsTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: CitationsTask) -> tuple[str, ...]:
        """Limits of these figures."""
        said = [
            "Citing nothing invents nothing: read the share of invented citations with the citations per answer.",
            "A citation counts as invented where no document of the corpus holds it: one that exists elsewhere counts, "
            "too. One that is in the corpus may still be the wrong one for its sentence.",
            "Subsections, pages within a decision and years are not checked; `Id.` and `supra` count for nothing.",
            f"A claim counts as grounded where a passage holds {THRESHOLD:.0%} of its content words and all of its "
            "numbers. Words alone miss negation: of our own labelled sentences it took 23 of 24 that are close to "
            "the corpus and none of 24 on other things, but none of 12 in free words, and 11 of 12 twisted ones.",
        ]
        if "us_case" in task.forms and not has_eyecite():
            said.append(
                f"eyecite is not installed ({install_command('law')}): decisions are found only next to "
                "parties or a year."
            )
        if task.patterns:
            said.append(f"{', '.join(sorted(task.patterns))}: any text that fits the pattern counts as a citation.")
        if task.entailment:
            said.append(
                "A judge that reads three passages per claim decides whether it is supported; claims without a usable "
                "verdict are left out of its figure and counted separately."
            )
        return tuple(said)


def _problem(row_id: str) -> RowProblem:
    file, _, line = row_id.rpartition(":")
    return RowProblem(file or row_id, int(line) if line.isdigit() else 0, "", "", "no question with an answer")
