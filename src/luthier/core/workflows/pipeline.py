"""Records of workflows: what was requested of each kind, its stages, and its results.

`Pipeline` is the stored record of any workflow. The kinds with their own records are automl (from a file and a
goal to an evaluated model, within one budget), distillation (a student, compared with itself without the teacher) and
model comparison (several base models on the same rows: zero-shot, few-shot, and tuned for a short while).
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from luthier.core.defaults import NEW_TOKENS, NUM_JUDGED, NUM_SHOTS
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Alternative, AlternativeWord, Comparison, Evaluation, SystemResult
from luthier.core.evaluation_plan import MetricName
from luthier.core.frozen_model import FrozenModel

PipelineKind = Literal["auto", "distill", "formats", "quickstart", "retrain", "showdown", "tune"]
StageStatus = Literal["waiting", "running", "done", "paused", "refused", "failed"]


class Stage(FrozenModel):
    """One stage of a workflow.

    Attributes:
        name: Unique within the workflow.
        status: `refused` where it was done and its result ends the workflow (a gate refuses the model); `paused` where
            it was requested to stop by a signal.
        came: Its result as JSON, for the stages after it; until it is done, what it has begun.
        reason: Why it went no further.
        began_at: Seconds since 1970.
        ended_at: Seconds since 1970.
        inputs: Digest of what the result depends on; empty where it was stored before there were digests.
    """

    name: str
    status: StageStatus = "waiting"
    came: dict[str, Any] = Field(default_factory=dict)
    reason: str = ""
    began_at: float | None = None
    ended_at: float | None = None
    inputs: str = ""


class Pipeline(FrozenModel):
    """A workflow that was begun.

    Attributes:
        pipeline_id: Its id.
        kind: Which workflow.
        asked: The request as JSON, with absolute paths; it never changes.
        stages: In order.
        created_at: Seconds since 1970, by the clock of the database.
    """

    pipeline_id: str
    kind: PipelineKind
    asked: dict[str, Any]
    stages: tuple[Stage, ...] = Field(min_length=1)
    created_at: float = 0.0

    def stage(self, name: str) -> Stage | None:
        """A stage by its name."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def came(self, name: str) -> dict[str, Any]:
        """The result of a stage, or what it has begun; empty where it has not begun yet."""
        stage = self.stage(name)
        return {} if stage is None else stage.came

    @property
    def next_stage(self) -> Stage | None:
        """The first stage that is not done; None where all are, or one has ended the way."""
        for stage in self.stages:
            # A refusal is a result: the stages after it stay `waiting` for good.
            if stage.status == "refused":
                return None
            if stage.status != "done":
                return stage
        return None

    def changed(self, stage: Stage) -> Pipeline:
        """The pipeline with the current state of a stage."""
        stages = tuple(stage if one.name == stage.name else one for one in self.stages)
        return self.model_copy(update={"stages": stages})


class AutomlSpec(FrozenModel):
    """The request, and what `features.workflows.automl.request.completed` made of it before any work.

    Attributes:
        data: a file of rows, or a folder of documents, which are read into rows of text first.
        is_folder: whether `data` is a folder of documents; found out by `completed`.
        goal: what the model is to do, as text: models that are not tuned get it as an instruction.
        models: names of base models, the contenders; of none `completed` takes those of the catalogue that are on this
            machine, or the one of the quickstart.
        hours: for everything.
        showdown_hours: of these for choosing the model, computed by `completed`; what is left then is for the search
            and for judging.
        map: field of the shape to field of the file; None where names fit.
        group_by: the field whose values stay on one side of the split.
        metric: the metric that decides; None takes the default.
        few_shot: examples in prompts of models that are not tuned.
        max_new_tokens: most tokens of an answer.
        most_judged: held-out rows that are evaluated at most.
        most_trials: trials of the search at most.
        seed: of all draws.
        always_tunes: search for the best recipe also where prompting was found to be enough.
        is_probed: as in a showdown.
    """

    data: str
    is_folder: bool = False
    goal: str
    models: tuple[str, ...] = ()
    hours: float
    showdown_hours: float = 0.0
    map: dict[str, str] | None = None
    group_by: str | None = None
    metric: str | None = None
    few_shot: int = NUM_SHOTS
    max_new_tokens: int = NEW_TOKENS
    most_judged: int = NUM_JUDGED
    most_trials: int = 40
    seed: int = 0
    always_tunes: bool = False
    is_probed: bool = True


DistilKind = Literal["sequence", "logit"]
DistilWord = Literal["worth it", "not worth it", "not settled"]

TAUGHT: Final = "taught student"
ALONE: Final = "student without teacher"
TEACHER: Final = "teacher"
"""The names of the three, in the evaluation and everywhere else."""


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
        layers: those of the teacher that it keeps, None where it is a separate model.
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


SystemKind = Literal["zero-shot", "likeliest-label", "few-shot", "few-shot-nearest", "tuned"]
"""How a contender is prompted: unchanged; for the likelihood of each label, in place of a written answer; with drawn
examples in its prompt; with those that are nearest to each prompt; or tuned."""
SYSTEM_KINDS: Final[tuple[SystemKind, ...]] = ("zero-shot", "likeliest-label", "few-shot", "few-shot-nearest", "tuned")
Advice = Literal["tuned", "prompting", "nothing"]


class Contender(FrozenModel):
    """A base model that takes part, and the figures of its own plan.

    Attributes:
        label: what tables call it.
        model: its name in a recipe.
        licence: the name of its licence.
        num_parameters: its parameters.
        context_length_tokens: the longest sequence it was made for.
        vocabulary_size: rows of its embedding matrix.
        has_chat_template: whether it brings a chat template.
        weights_bytes: of the weights as they are held to be asked.
        learning_rate: peak of the learning rate.
        batch_size: examples a step.
        num_steps: steps of its short training.
        num_tokens: of the training rows in its own tokens.
        training_hours: as predicted, without judging.
        judging_seconds: of one row by kind, as measured on a few.
        loading_seconds: of the weights, once.
    """

    label: str
    model: str
    licence: str
    num_parameters: int
    context_length_tokens: int
    vocabulary_size: int
    has_chat_template: bool
    weights_bytes: int
    learning_rate: float
    batch_size: int
    num_steps: int
    num_tokens: int
    training_hours: Estimate
    judging_seconds: dict[SystemKind, float]
    loading_seconds: float


class ModelComparisonSpec(FrozenModel):
    """The request, and the sizes that fit the budget; the same for every contender.

    Attributes:
        contenders: the base models.
        data: the file of training rows, as given.
        held_out: the file of held-out rows, as given.
        train_file: the training rows that are used, in the folder of this comparison.
        judged_file: the held-out rows that are used, likewise.
        map: field of the shape to field of the files.
        group_by: the field of the files whose equal values count together; None takes the document that rows name.
        num_rows: in train_file.
        num_rows_in_file: rows of `data`.
        num_examples: trained on, more than rows where there is time for more than one epoch.
        num_judged: rows of `judged_file`.
        num_held_out: rows of `held_out`.
        num_too_long: rows of either file that some contender could not hold, left out for all.
        few_shot: examples in a prompt.
        instruction: put before prompts of models that are not tuned.
        metrics: what is measured.
        primary: the figure that decides.
        max_new_tokens: most tokens of an answer.
        method: how contenders are tuned.
        seed: of all draws and trainings.
        hours: the budget.
        sizing_hours: spent on finding the sizes.
        planned_hours: what everything is predicted to take.
        usd_per_hour: of this machine; None where it is unknown.
        cautions: what the reader has to know of the rows.
    """

    contenders: tuple[Contender, ...]
    data: str
    held_out: str
    train_file: str
    judged_file: str
    map: dict[str, str] | None = None
    group_by: str | None = None
    num_rows: int
    num_rows_in_file: int
    num_examples: int
    num_judged: int
    num_held_out: int
    num_too_long: int
    few_shot: int
    instruction: str = ""
    metrics: tuple[MetricName, ...]
    primary: str
    max_new_tokens: int
    method: str
    seed: int
    hours: float
    sizing_hours: float
    planned_hours: Estimate
    usd_per_hour: Estimate | None = None
    cautions: tuple[str, ...] = ()

    @property
    def epochs(self) -> float:
        """How often a row is trained on."""
        return self.num_examples / self.num_rows


class Standing(FrozenModel):
    """One system: a contender, asked in one way.

    Attributes:
        contender: its place.
        kind: how it is prompted.
        result: its figures.
        seconds_per_answer: measured with all rows in one batch of requests, on this machine; None of plain text, which
            is only scored.
        usd_per_1000_answers: on this machine; None where no price is known.
    """

    contender: int
    kind: SystemKind
    result: SystemResult
    seconds_per_answer: float | None = None
    usd_per_1000_answers: Estimate | None = None


class Tuning(FrozenModel):
    """The short training of a contender.

    Attributes:
        contender: the place of the base model.
        run_id: the run.
        reason: why it is not evaluated; empty where it was trained to its end.
        hours: of the training, including work that a kill threw away.
        usd: of the training, likewise; None where no price is known.
        peak_memory_bytes: of the device; None where it is unknown.
    """

    contender: int
    run_id: str
    reason: str = ""
    hours: float = 0.0
    usd: Estimate | None = None
    peak_memory_bytes: int | None = None


class Recommendation(FrozenModel):
    """The answer: what is best among the models, and whether any of them is better than what needs no model.

    Attributes:
        word: among the models: `tuned`, `prompting` ("none of them need be tuned"), or `nothing` that is any good.
        system: the name of the model that is recommended; empty for `nothing`.
        contender: the place of its base model; None for `nothing`.
        headline: a few sentences.
        reasons: the figures behind it.
        cautions: what it does not show.
        alternatives: what one could use instead of `system` (of `nothing`: instead of the best model): baselines
            without a language model, and of a tuned model also prompting.
        best_alternative: the name of the one with the best figure; None where there are none.
        better_than_best_alternative: as in `Verdict`, and corrected for the number of systems that were chosen from;
            None where there are none.
        use_instead: the baseline without a language model that no model was shown to be better than; None where there
            is none.
    """

    word: Advice
    system: str
    contender: int | None
    headline: str
    reasons: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    best_alternative: str | None = None
    better_than_best_alternative: AlternativeWord | None = None
    use_instead: str | None = None


class ModelComparisonResult(FrozenModel):
    """All that came of a showdown.

    Attributes:
        showdown_id: its id.
        created_at: UTC, ISO 8601.
        spec: the request.
        standings: every system with its figures.
        tunings: the short trainings.
        baselines: systems without a language model (`luthier.ml.baselines`), fitted on the rows that contenders are
            trained on and evaluated on the same rows as they.
        baselines_left_out: those that do not fit the rows, each with the reason.
        comparisons: of every pair of models, and of every model with every baseline, by every metric, paired over the
            rows.
        recommendation: the answer.
        not_equal: what could not be made the same for all, a sentence each.
        hours: spent in all.
    """

    showdown_id: str
    created_at: str
    spec: ModelComparisonSpec
    standings: tuple[Standing, ...]
    tunings: tuple[Tuning, ...]
    baselines: tuple[SystemResult, ...] = ()
    baselines_left_out: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...]
    recommendation: Recommendation
    not_equal: tuple[str, ...] = ()
    hours: float = 0.0

    def standing(self, name: str) -> Standing:
        """A system by its name."""
        return next(one for one in self.standings if one.result.name == name)
