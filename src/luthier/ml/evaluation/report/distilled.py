"""The page of a distillation: the verdict, the three side by side, and how they came about."""

from __future__ import annotations

from pathlib import Path

from luthier.core.workflows.distillation import ALONE, TAUGHT, Student
from luthier.ml.charts.fact import Fact
from luthier.ml.charts.page import page_environment, replace_text
from luthier.ml.evaluation.report.page import TEMPLATES, fold, judged_view
from luthier.ml.evaluation.roles import Roles

_TONES = {"worth it": "good", "not worth it": "bad", "not settled": "open"}
_KINDS = {
    "sequence": "the answers that the teacher wrote to the prompts",
    "logit": "the gold answers, and at each of their tokens what the teacher would have said",
}


def render_student(student: Student) -> str:
    """The page as one HTML document that refers to nothing outside itself."""
    assert student.evaluation is not None
    assert student.verdict is not None
    environment = page_environment(TEMPLATES, fold)
    return environment.get_template("distilled.html.j2").render(
        student=student,
        verdict=student.verdict,
        tone=_TONES[student.verdict.word],
        judged=judged_view(student.evaluation, Roles(TAUGHT, ALONE), is_unseen=True),
        key_figures=_key_figures(student),
        facts=_facts(student),
    )


def write_student_report(path: Path, student: Student) -> Path:
    """Write the page to `path`, whole or not at all.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_text(path, render_student(student))
    return path


def _key_figures(student: Student) -> list[Fact]:
    found = [
        Fact("Student", f"{student.student_parameters / 1e6:,.1f} M", "parameters"),
        Fact("Rows learned", f"{student.num_rows:,}", "the same in both trainings"),
        Fact("Rows judged", f"{student.evaluation.num_rows if student.evaluation else 0:,}", "seen by none"),
    ]
    if student.teacher_parameters is not None:
        share = student.student_parameters / student.teacher_parameters
        found.insert(0, Fact("Size", f"{share:.0%}", "of the teacher"))
    return found


def _facts(student: Student) -> list[Fact]:
    found = [
        Fact("Teacher", student.teacher),
        Fact("Student", student.student_model, f"layers {student.layers} of the teacher" if student.layers else ""),
        Fact("Learned with the teacher", _KINDS[student.kind]),
        Fact("Learned without", "the gold answers of the same rows, for as many steps"),
        Fact("Rows", student.data_file),
    ]
    for name, run in (("With the teacher", student.taught), ("Without", student.alone)):
        if run is not None:
            words = f"{run.num_steps:,} steps, {run.num_trained_tokens:,} learned tokens, {run.method}"
            found.append(Fact(name, run.run_id, words))
    return found
