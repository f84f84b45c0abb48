"""Was distilling worth it? The taught student against itself without the teacher, and how far the teacher is."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Evaluation
from luthier.core.workflows.distillation import ALONE, TAUGHT, TEACHER, DistilWord, Student, StudentRun, StudentVerdict
from luthier.ml.charts.metric_titles import metric_title
from luthier.ml.evaluation.details import primary_details
from luthier.ml.evaluation.names import held_out_rows

_WORDS: dict[str, DistilWord] = {
    "better": "worth it",
    "worse": "not worth it",
    NOT_DISTINGUISHABLE: "not settled",
}


def student_verdict(student: Student) -> StudentVerdict:
    """The verdict of a distillation whose three were judged: "worth it" only where the taught student is better than
    itself without the teacher, beyond doubt, by the figure that was fixed beforehand."""
    evaluation = student.evaluation
    assert evaluation is not None
    assert evaluation.verdict is not None
    metric = evaluation.verdict.metric
    # Only against the student without the teacher: the teacher itself is expected to be better.
    found = _against(evaluation, metric, ALONE)
    judged = next(system for system in evaluation.systems if system.name == TAUGHT)
    reasons = primary_details(judged, [found], evaluation.systems)
    teachers = [c for c in evaluation.comparisons if (c.candidate, c.baseline, c.metric) == (TAUGHT, TEACHER, metric)]
    return StudentVerdict(
        word=_WORDS[found.verdict],
        headline=_headline(found, metric, evaluation),
        reasons=(
            *reasons,
            *primary_details(judged, teachers, evaluation.systems),
            *_smaller(student),
            *evaluation.verdict.details[evaluation.verdict.num_primary_details :],
        ),
        caveats=(*_not_equal(student), *_refused(student), *evaluation.verdict.caveats),
    )


def _against(evaluation: Evaluation, metric: str, baseline: str) -> Comparison:
    return next(c for c in evaluation.comparisons if (c.candidate, c.baseline, c.metric) == (TAUGHT, baseline, metric))


def _headline(found: Comparison, metric: str, evaluation: Evaluation) -> str:
    title, rows = metric_title(metric), held_out_rows(evaluation.num_rows)
    if found.verdict == "better":
        return f"Distilling was worth it: by {title} the student is better with the teacher than without."
    if found.verdict == "worse":
        return f"Distilling was not worth it: by {title} the student is worse with the teacher than without."
    return (
        f"Distilling was not shown to be worth it: by {title} no difference between the student with and without the "
        f"teacher can be told from {rows}."
    )


def _smaller(student: Student) -> Sequence[str]:
    if student.teacher_parameters is None:
        return ()
    share = student.student_parameters / student.teacher_parameters
    return (
        f"The student has {student.student_parameters / 1e6:,.1f} million parameters, {share:.0%} of the teacher's "
        f"{student.teacher_parameters / 1e6:,.1f} million.",
    )


def _not_equal(student: Student) -> Sequence[str]:
    taught, alone = student.taught, student.alone
    if taught is None or alone is None or _budget(taught) == _budget(alone):
        return ()
    return (
        f"The two trainings were not equally long: {taught.num_steps:,} steps on {taught.num_examples:,} examples with "
        f"the teacher, {alone.num_steps:,} on {alone.num_examples:,} without.",
    )


def _budget(run: StudentRun) -> tuple[int, int]:
    return run.num_steps, run.num_examples


def _refused(student: Student) -> Sequence[str]:
    if not student.num_refused:
        return ()
    of = student.num_rows + student.num_refused
    return (
        f"{student.num_refused:,} of {of:,} rows were left out of both trainings, because the teacher's answers to "
        "them were empty, cut off or over its context.",
    )
