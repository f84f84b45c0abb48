"""A student: a smaller model that was taught by a larger one, compared with itself without the teacher."""

from __future__ import annotations

from typing import Final, Literal

from luthier.core.evaluation import Evaluation
from luthier.core.frozen_model import FrozenModel

DistilKind = Literal["sequence", "logit"]
DistilWord = Literal["worth it", "not worth it", "not settled"]

TAUGHT: Final = "taught student"
ALONE: Final = "student without teacher"
TEACHER: Final = "teacher"
"""What the three are called, in the evaluation and wherever they are shown."""


class StudentVerdict(FrozenModel):
    """Whether distilling was worth it, as text.

    Attributes:
        word: the answer in a word.
        headline: the answer in a sentence.
        reasons: the figures behind it.
        caveats: what it rests on.
    """

    word: DistilWord
    headline: str
    reasons: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


class StudentRun(FrozenModel):
    """One training of the student.

    Attributes:
        run_id: the run.
        method: the name of its method.
        num_steps: steps that were done.
        num_examples: examples of all steps.
        num_tokens: tokens of all steps, without padding.
        num_trained_tokens: tokens that were learned.
        weights_sha256: digest of the outcome.
        seconds: wall time of its training steps.
    """

    run_id: str
    method: str
    num_steps: int
    num_examples: int
    num_tokens: int
    num_trained_tokens: int
    weights_sha256: str
    seconds: float


class Student(FrozenModel):
    """What `luthier distill` has made. status "paused": a training was stopped, and the same command continues with it.

    Attributes:
        student_id: its id.
        status: `paused`: a training was stopped, and the same command continues with it.
        kind: what is learned: the teacher's text or its distribution.
        teacher: the name of the teacher.
        student_model: the base that both trainings began with, as recipes name it.
        layers: those of the teacher that it keeps, None where it is a model of its own.
        student_parameters: parameters of the student.
        teacher_parameters: None behind a server.
        data_file: the file of rows.
        num_rows: trained on by both.
        num_refused: rows that the teacher's answers could not be used of, left out of both.
        held_out_file: the file of held-out rows.
        num_held_out: rows of that file.
        num_same_prompt: held-out rows whose prompt is also trained on.
        taught: the training with the teacher; None before.
        alone: the training without it; None before.
        evaluation: the teacher, the student without it, and the taught one, on the held-out rows.
        verdict: whether it was worth it; None before.
        report_path: its report; None before.
        go_on: the command that continues; None where it is done.
        seconds: wall time of everything.
    """

    student_id: str
    status: Literal["done", "paused"]
    kind: DistilKind
    teacher: str
    student_model: str
    layers: str | None
    student_parameters: int
    teacher_parameters: int | None
    data_file: str
    num_rows: int
    num_refused: int
    held_out_file: str
    num_held_out: int
    num_same_prompt: int = 0
    taught: StudentRun | None = None
    alone: StudentRun | None = None
    evaluation: Evaluation | None = None
    verdict: StudentVerdict | None = None
    report_path: str | None = None
    go_on: str | None = None
    seconds: float = 0.0
