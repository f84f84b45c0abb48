"""Use case: a teacher teaches a smaller model, and whether that was worth it is measured.

the teacher answers (sequence) or gives its logits (logit) -> the student learns from it -> the same student learns the
gold answers of the same rows for as many steps -> both and the teacher are judged on rows that none of them saw.

All of it lies in `home/students/<id>/`, whose id is the digest of what decides the result: the same command goes on
where it was stopped, however it was, and ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.digest import sha256_document, sha256_file
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import is_id
from luthier.core.recipe import EvaluationRecipe
from luthier.core.workflows.student import DistilKind, Student
from luthier.features.generation.teachers import identity_of, is_address, parse_address
from luthier.features.recipes.column_maps import column_map
from luthier.features.workflows.distillation.recipe import evaluation_of, read_settings, recipe_of
from luthier.features.workflows.distillation.rows import StudentRows, write_gold, write_taught
from luthier.features.workflows.distillation.runs import read_state, train_side
from luthier.platform.home.context import Context

_FORMAT: Final = 1
_LOCK_SECONDS: Final = 1.0
_DOCUMENT: Final = "student.json"


@dataclass(frozen=True, slots=True)
class DistilRequest:
    """What is asked. student: a base model, or `layers:15` or `layers:0,2,4-29` of the teacher.

    held_out: a file, or the fraction of the rows that is kept back. recipe: how both students are trained and all are
    judged; its base model and rows are replaced. overrides: single values of it. max_new_tokens: of the teacher's
    answers; longer ones are not learned.
    """

    teacher: str
    student: str
    data: Path
    kind: DistilKind = "sequence"
    held_out: Path | float = 0.2
    recipe: Path | None = None
    overrides: Sequence[str] = ()
    mapping: Mapping[str, str] | None = None
    max_new_tokens: int = 512


@dataclass(frozen=True, slots=True)
class _Base:
    """The model that both trainings begin with, and the teacher's name as they are to know it."""

    name: str
    layers: str | None
    num_parameters: int
    teacher: str
    teacher_parameters: int | None
    identity: dict[str, Any]


def distil(context: Context, request: DistilRequest) -> Student:
    """Teach a student, train it without the teacher, judge both and the teacher, and write a report.

    A training that is stopped by a signal ends this with status "paused"; the same call goes on with it, as it does
    after a kill. Nothing is asked, trained or judged twice; where all is done the document is read from the disk.

    Raises RequestError (what cannot go together), DataError, LeakageError, RecipeError, NotFoundError and ConflictError
    before anything is trained; then what training and engines raise.
    """
    from luthier.core.system.file_lock import file_lock

    began = time.perf_counter()
    _check(request)
    settings = read_settings(request.recipe, request.overrides, request.kind)
    asked = evaluation_of(settings).evaluation
    base = _find_base(context, request)
    student_id = f"student-{_digest(request, settings, base)[:16]}"
    folder = context.settings.students_folder / student_id
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "lock", what=f"the distillation {student_id}", timeout_seconds=_LOCK_SECONDS):
        if (done := _read_done(folder)) is not None:
            return done
        mapping = column_map(context, (base.teacher,), request.data, request.mapping).mapping
        num_rows, num_held_out, num_same_prompt = write_gold(
            folder, request.data, request.held_out, mapping=mapping, seed=_seed(settings)
        )
        if not read_state(folder):
            _try(context, folder, settings, asked, base)
        writer = base.teacher if request.kind == "sequence" else None
        rows = write_taught(
            context,
            folder,
            teacher=writer,
            max_new_tokens=request.max_new_tokens,
            num_rows=num_rows,
        )
        student = Student(
            student_id=student_id,
            status="paused",
            kind=request.kind,
            teacher=base.teacher,
            student_model=base.name,
            layers=base.layers,
            student_parameters=base.num_parameters,
            teacher_parameters=base.teacher_parameters,
            data_file=str(request.data.absolute()),
            num_rows=rows.num_rows,
            num_refused=rows.num_refused,
            held_out_file=str(rows.held_out),
            num_held_out=num_held_out,
            num_same_prompt=num_same_prompt,
            go_on="give the same command again: it goes on where it was",
        )
        return _train_and_judge(context, folder, student, rows, settings, asked, began)


def _train_and_judge(
    context: Context,
    folder: Path,
    student: Student,
    rows: StudentRows,
    settings: dict[str, Any],
    asked: EvaluationRecipe | None,
    began: float,
) -> Student:
    from luthier.features.workflows.distillation.judging import judge_students
    from luthier.ml.charts.page import replace_text
    from luthier.ml.evaluation.distilled import student_verdict
    from luthier.ml.evaluation.report.distilled import write_student_report

    is_whole = student.layers is not None
    logits_of = student.teacher if student.kind == "logit" else None
    sides = {
        "taught": recipe_of(
            settings, student=student.student_model, rows=rows.taught, teacher=logits_of, is_whole=is_whole
        ),
        "alone": recipe_of(settings, student=student.student_model, rows=rows.gold, teacher=None, is_whole=is_whole),
    }
    for side, recipe in sides.items():
        if (ended := train_side(context, folder, side, recipe)) is None:
            return student
        student = student.model_copy(update={side: ended})
    assert student.taught is not None
    assert student.alone is not None
    evaluation = judge_students(
        context,
        teacher=student.teacher,
        alone=student.alone.run_id,
        taught=student.taught.run_id,
        held_out=rows.held_out,
        num_same_prompt=student.num_same_prompt,
        asked=asked,
    )
    student = student.model_copy(update={"evaluation": evaluation, "status": "done", "go_on": None})
    student = student.model_copy(
        update={
            "verdict": student_verdict(student),
            "report_path": str(folder / "report.html"),
            "seconds": time.perf_counter() - began,
        }
    )
    write_student_report(folder / "report.html", student)
    replace_text(folder / _DOCUMENT, student.model_dump_json(indent=1) + "\n")  # last: where it lies, all is done
    return student


def _check(request: DistilRequest) -> None:
    behind_server = is_address(request.teacher)
    layers = request.student.startswith("layers:")
    problems = [
        (
            behind_server and request.kind == "logit",
            f"--kind logit with the teacher {request.teacher}",
            "a base model, a folder or a run: a server does not give the probability of every token",
            "let it write the answers: --kind sequence",
        ),
        (
            behind_server and layers,
            f"--student {request.student} with the teacher {request.teacher}",
            "a teacher whose weights are on this machine: the student is made of its layers",
            "name a base model as the student",
        ),
        (
            request.max_new_tokens < 1,
            f"max_new_tokens={request.max_new_tokens}",
            "at least 1",
            "correct max_new_tokens",
        ),
    ]
    for is_wrong, came, expected, do in problems:
        if is_wrong:
            raise RequestError(came, expected=expected, do=do)
    if behind_server:
        parse_address(request.teacher)


def _find_base(context: Context, request: DistilRequest) -> _Base:
    """The student's base, made of the teacher's layers where that is asked for; and who the teacher is."""
    from luthier.features.models.resolve import find_candidate
    from luthier.ml.inference.models import names, sources
    from luthier.ml.inference.models.structure import read_structure

    layers = request.student.removeprefix("layers:") if request.student.startswith("layers:") else None
    if is_address(request.teacher):
        model = sources.pull(request.student, context.home, context.progress)
        url, name = parse_address(request.teacher)
        return _Base(model.name, None, model.num_parameters, request.teacher, None, {"url": url, "model": name})
    is_run = is_id(request.teacher, "run")
    teacher = request.teacher if is_run else names.parse(request.teacher).text
    candidate = find_candidate(context, teacher)
    identity = identity_of(context, teacher, candidate)
    if layers is None or "@" in layers:  # a student of layers that was made before is a model like any other
        model = sources.pull(request.student, context.home, context.progress)
        layers = None
    else:
        licence = sources.pull(candidate.model_name, context.home, context.progress).licence
        lineage = {
            name: str(identity[key])
            for name, key in (("teacher_sha256", "sha256"), ("adapter_sha256", "trained_sha256"))
            if identity.get(key)
        }
        made_of = sources.LayerTeacher(candidate.model_path, candidate.adapter_path, licence, lineage)
        model = sources.pull_layers(f"layers:{layers}@{teacher}", context.home, context.progress, made_of)
    size = read_structure(candidate.model_path).num_parameters
    return _Base(model.name, layers, model.num_parameters, teacher, size, identity | {"student": model.sha256})


def _digest(request: DistilRequest, settings: dict[str, Any], base: _Base) -> str:
    """Over all that decides the result."""
    held_out = request.held_out
    for file in (request.data, *([held_out] if isinstance(held_out, Path) else [])):
        if not file.is_file():
            raise NotFoundError(f"{file}: no such file", expected="a file of rows", do="check the path")
    return sha256_document(
        {
            "format": _FORMAT,
            "teacher": base.identity | {"name": base.teacher},
            "student": base.name,
            "kind": request.kind,
            "data": sha256_file(request.data),
            "held_out": held_out if isinstance(held_out, float) else sha256_file(held_out),
            "mapping": dict(request.mapping or {}),
            "settings": settings,
            "max_new_tokens": request.max_new_tokens,
        }
    )


def _try(context: Context, folder: Path, settings: dict[str, Any], asked: EvaluationRecipe | None, base: _Base) -> None:
    """What the trainings or the judging would refuse is found out before the teacher is asked for hours."""
    from luthier.features.planning.service import make_plan
    from luthier.features.workflows.distillation.judging import find_metrics
    from luthier.ml.data.rows.formats import load_file

    find_metrics(asked, load_file(folder / "held_out.jsonl").examples, teacher=base.teacher)
    is_whole = base.layers is not None
    recipe = recipe_of(settings, student=base.name, rows=folder / "train.jsonl", teacher=None, is_whole=is_whole)
    make_plan(context, recipe, base_dir=folder)


def _seed(settings: dict[str, Any]) -> int:
    training = settings.get("training")
    seed = training.get("seed") if isinstance(training, dict) else None
    return seed if isinstance(seed, int) else 0


def _read_done(folder: Path) -> Student | None:
    file = folder / _DOCUMENT
    return Student.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None
