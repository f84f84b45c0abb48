"""A suite: tasks that systems are evaluated by, as a YAML file declares them, and their results.

A task is rows, a way of asking, and metrics. Its kind says how the rows are read and what is counted of the answers.
What the file does not say has a default here. Results are those of suites and safety checks, with the outcome of a
release gate's rules.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from luthier.core.defaults import NEW_TOKENS
from luthier.core.evaluation import Comparison, ReliabilityBin, SystemResult, VerdictWord
from luthier.core.frozen_model import FrozenModel
from luthier.core.graders import SuiteGrader
from luthier.core.ids import sha256_document

TaskName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")]
Criterion = Literal["relevance", "coherence", "accuracy", "helpfulness"]
CRITERIA: Final[tuple[Criterion, ...]] = ("relevance", "coherence", "accuracy")
"""What people, and judges in their place, rate answers by."""
CitationForm = Literal["us_case", "us_statute", "state_statute", "section", "url"]


class TaskCommon(FrozenModel):
    """What every task has.

    Attributes:
        name: unique within the suite.
        data: a file of rows, relative to the suite's.
        map: field of the shape to field of the file, as in a recipe.
        most_rows: rows that are evaluated at most, chosen by a stable hash.
        few_shot: examples in the prompt, taken from `few_shot_from`.
        few_shot_from: a file with rows that are not evaluated.
        cluster_by: the field that says which rows share a source, so that they count as one in intervals.
        max_new_tokens: most tokens of an answer.
        primary: the metric that the task is summed up by; by default the first.
    """

    name: TaskName
    data: str
    map: dict[str, str] = Field(default_factory=dict)
    most_rows: Annotated[int, Field(ge=1)] | None = None
    few_shot: Annotated[int, Field(ge=0, le=64)] = 0
    few_shot_from: str | None = None
    cluster_by: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = NEW_TOKENS
    primary: str | None = None

    @model_validator(mode="after")
    def _shots_come_from_somewhere(self) -> TaskCommon:
        # Examples from the evaluated rows themselves would give answers away.
        if self.few_shot and self.few_shot_from is None:
            raise ValueError("few_shot_from: a file with rows that are not evaluated")
        return self


class GenerateTask(TaskCommon):
    """Write an answer and hold it against the row's own by metrics of texts, built in or a plug-in's.

    Attributes:
        kind: names the task.
        metrics: what is computed, the primary one first.
    """

    kind: Literal["generate"]
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("rouge", "exact_match", "token_f1")


class LikelihoodTask(TaskCommon):
    """How well the row's own answer, or plain text, is predicted.

    Attributes:
        kind: names the task.
        metrics: what is computed, the primary one first.
    """

    kind: Literal["likelihood"]
    metrics: Annotated[tuple[Literal["perplexity", "bits_per_byte"], ...], Field(min_length=1)] = (
        "bits_per_byte",
        "perplexity",
    )


class ChooseTask(TaskCommon):
    """Which of the row's options is the likeliest, by its likelihood as a whole and by that for each of its bytes.

    Attributes:
        kind: names the task.
        options: the field with the list of options.
        answer: the field with the right one: its place from 0 on, its letter, or its text.
    """

    kind: Literal["choose"]
    options: str = "options"
    answer: str = "answer"


class ClassifyTask(TaskCommon):
    """Give a row its label.

    Attributes:
        kind: names the task.
        labels: all that there are; by default those of the rows.
        by: write it, or take the likeliest (then the calibration is measured too).
        num_bins: bins of confidence, for the calibration.
    """

    kind: Literal["classify"]
    labels: tuple[str, ...] | None = None
    by: Literal["text", "likelihood"] = "text"
    num_bins: Annotated[int, Field(ge=2, le=100)] = 10


class RankTask(TaskCommon):
    """Put items into an order: recommendation and retrieval.

    Attributes:
        kind: names the task.
        by: `text`: the answer names items, one a line; `likelihood`: the row's candidates, the likeliest first.
        candidates: the field with the list of all items.
        relevant: the field with the list of the right ones.
        k: lengths of the list at which figures are computed.
    """

    kind: Literal["rank"]
    by: Literal["text", "likelihood"] = "text"
    candidates: str = "candidates"
    relevant: str = "relevant"
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 5, 10)


class JsonTask(TaskCommon):
    """Write JSON: is it JSON, does it fit the schema, which fields are right?

    Attributes:
        kind: names the task.
        json_schema: the schema, or a file with it.
        fields: those that are compared with the row's own answer; by default all of the answer's.
    """

    kind: Literal["json"]
    json_schema: dict[str, Any] | str | None = None
    fields: tuple[str, ...] | None = None


class SqlTask(TaskCommon):
    """Write SQL, which is run by SQLite: does it run, and does it give what the row's own gives?

    Exactly one of the three.

    Attributes:
        kind: names the task.
        database: a SQLite file.
        database_field: the field that names one, or holds CREATE and INSERT statements.
        table_field: the field with a table's description `table: NAME\\ncolumns: A, B`, whose content is made up so
            that different queries give different results.
        timeout_seconds: for one query.
    """

    kind: Literal["sql"]
    database: str | None = None
    database_field: str | None = None
    table_field: str | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0

    @model_validator(mode="after")
    def _has_one_database(self) -> SqlTask:
        if sum(one is not None for one in (self.database, self.database_field, self.table_field)) != 1:
            raise ValueError("exactly one of database, database_field and table_field")
        return self


class CodeTask(TaskCommon):
    """Write Python that has to pass the row's tests, in a locked-down child process.

    Nothing is run unless `allow_code` is true and the command line allows it too.

    Attributes:
        kind: names the task.
        tests: the field with the tests.
        allow_code: whether answers may be run.
        timeout_seconds: for the tests of one row.
        most_memory_bytes: of the child process.
    """

    kind: Literal["code"]
    tests: str = "tests"
    allow_code: bool = False
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    most_memory_bytes: Annotated[int, Field(ge=2**25)] = 2**29


class PairwiseTask(TaskCommon):
    """A judge says which of two answers is better, in both orders: each system against the first one.

    Attributes:
        kind: names the task.
        criterion: what the judge compares by.
    """

    kind: Literal["pairwise"]
    criterion: Criterion = "helpfulness"


class RubricTask(TaskCommon):
    """A judge gives each answer 1 to 5 for each criterion.

    Attributes:
        kind: names the task.
        criteria: what the judge scores.
    """

    kind: Literal["rubric"]
    criteria: Annotated[tuple[Criterion, ...], Field(min_length=1)] = CRITERIA


class TaskGrader(FrozenModel):
    """A grader of a task.

    Attributes:
        grader: as in OpenAI's API.
        pass_threshold: the least score that passes.
    """

    grader: SuiteGrader
    pass_threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.5


class GradedTask(TaskCommon):
    """Write an answer, which graders of OpenAI's API grade: the form of an eval that was imported.

    Attributes:
        kind: names the task.
        graders: the graders; the share of answers that pass the first sums the task up.
        item: the field of the row with the fields that `{{item.x}}` refers to; None takes those of the row itself.
        allow_code: whether graders in Python may be run; the command line has to allow it, too.
    """

    kind: Literal["graded"]
    graders: Annotated[tuple[TaskGrader, ...], Field(min_length=1)]
    item: str | None = None
    allow_code: bool = False


class CitationsTask(TaskCommon):
    """Are the citations of an answer to be found in the corpus, and its claims?

    Attributes:
        corpus: a folder or a file of documents.
        forms: which citations are looked for.
        patterns: more of them, by name, as regular expressions.
    """

    kind: Literal["citations"]
    corpus: str
    forms: tuple[CitationForm, ...] = ("us_case", "us_statute", "state_statute", "section", "url")
    patterns: dict[str, str] = Field(default_factory=dict)
    entailment: bool = False
    """Ask the judge, too, whether the corpus supports each claim."""


class LmEvalTask(FrozenModel):
    """A task of EleutherAI's lm-evaluation-harness (extra `lm-eval`), by its name there or by a YAML file's.

    Attributes:
        kind: names the task.
        name: what the suite calls it.
        task: its name in the harness, or a YAML file.
        most_rows: judge only this many; None for all.
        few_shot: examples in the prompt.
        primary: the metric that sums it up; None for the first.
    """

    kind: Literal["lm_eval"]
    name: TaskName
    task: str
    most_rows: Annotated[int, Field(ge=1)] | None = None
    few_shot: Annotated[int, Field(ge=0, le=64)] = 0
    primary: str | None = None


RowTask = (
    GenerateTask
    | LikelihoodTask
    | ChooseTask
    | ClassifyTask
    | RankTask
    | JsonTask
    | SqlTask
    | CodeTask
    | PairwiseTask
    | RubricTask
    | CitationsTask
    | GradedTask
)
SuiteTask = Annotated[RowTask | LmEvalTask, Field(discriminator="kind")]


class Suite(FrozenModel):
    """Tasks under one name.

    Attributes:
        name: its name.
        tasks: the tasks, in order.
        forgetting: also judge general ability, which tuning may have cost.
        seed: of all draws.
    """

    name: TaskName
    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]
    forgetting: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _names_are_different(self) -> Suite:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("a different name for each task")
        return self

    def fingerprint(self, digests: dict[str, str]) -> str:
        """SHA-256 of all that decides figures: the suite and the content of its files (path as written -> SHA-256)."""
        # Contents, not only paths: a file that is replaced under the same name makes another suite.
        return sha256_document([self.model_dump(mode="json"), sorted(digests.items())])


class Confusion(FrozenModel):
    """Which label was given for which.

    The last column counts answers that are none of the labels.

    Attributes:
        labels: the true labels, in order.
        counts: a row for each true label, a column for each given one.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class TaskFigures(FrozenModel):
    """What is drawn of one system's answers to a task, where its kind has something to draw.

    Attributes:
        confusion: labels against given labels; None where it does not apply.
        reliability: bins of confidence; empty where there is none.
    """

    confusion: Confusion | None = None
    reliability: tuple[ReliabilityBin, ...] = ()


class TaskResult(FrozenModel):
    """One task: all systems on the same rows, by all of its metrics.

    Attributes:
        name: the name of the task.
        kind: its kind.
        data_file: the file of its rows.
        data_sha256: its digest.
        num_rows: rows that were evaluated.
        num_clusters: sources that the rows come from, where rows of one source count together.
        num_leaked: rows that an evaluated run was trained on.
        primary: the metric that sums it up.
        systems: all systems by its metrics.
        comparisons: pairs of systems on the same rows.
        figures: by the name of the system.
        judges: the judge's name by the metric that it gave the figures of.
        cautions: what the figures do not show, and known weaknesses of the measure; shown with the figures.
        is_general: a task of general ability, which rides along to see what tuning cost.
    """

    name: str
    kind: str
    data_file: str
    data_sha256: str
    num_rows: int
    num_clusters: int | None = None
    num_leaked: int = 0
    primary: str
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    figures: dict[str, TaskFigures] = Field(default_factory=dict)
    judges: dict[str, str] = Field(default_factory=dict)
    cautions: tuple[str, ...] = ()
    is_general: bool = False


class TasksVerdict(FrozenModel):
    """The answer over several tasks, as text: at most two sentences that anybody understands, then the details.

    Attributes:
        word: the answer in a word.
        headline: at most two sentences that anybody understands.
        details: the figures behind it.
        caveats: what it rests on and what it does not show.
    """

    word: VerdictWord
    headline: str
    details: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


class SuiteResult(FrozenModel):
    """All tasks of a suite.

    Attributes:
        result_id: its id.
        created_at: UTC, ISO 8601.
        suite: the name of the suite.
        fingerprint: of the suite and its files.
        run_id: its run, if any.
        candidate: the name of the system that the verdict is about.
        systems: the names of all systems.
        num_seeds: trainings that each tuned system's figures are the mean of.
        tasks: the tasks.
        verdict: the answer over all tasks; None where there was nothing to compare.
        seconds: wall time.
    """

    result_id: str
    created_at: str
    suite: str
    fingerprint: str
    run_id: str | None = None
    candidate: str
    systems: tuple[str, ...]
    num_seeds: int = 1
    tasks: tuple[TaskResult, ...]
    verdict: TasksVerdict | None = None
    seconds: float


class SafetyResult(FrozenModel):
    """What tuning did to safety: every probe on the base and on the tuned model.

    Attributes:
        result_id: its id.
        created_at: UTC, ISO 8601.
        suite: which probes were run.
        fingerprint: digest of the probes and their files.
        run_id: the run that was evaluated; None for a model without one.
        candidate: the name of the tuned model.
        base: the name of the base model; None where there is nothing to compare with.
        probes: the probes.
        headline: at most two sentences.
        concerns: one sentence for each probe that got worse, or is bad in itself.
        left_out: one sentence for each probe that could not be run, with the reason.
        seconds: wall time.
    """

    result_id: str
    created_at: str
    suite: Literal["default", "full"]
    fingerprint: str
    run_id: str | None = None
    candidate: str
    base: str | None = None
    probes: tuple[TaskResult, ...]
    headline: str
    concerns: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    seconds: float


class RuleOutcome(FrozenModel):
    """One rule of a gate.

    Attributes:
        rule: the rule in short.
        passed: whether it was met.
        found: the figure that was compared with the bound; None where there is none.
        sentence: the outcome for people.
    """

    rule: str
    passed: bool
    found: float | None = None
    sentence: str


class GateOutcome(FrozenModel):
    """Whether a model may be deployed.

    Attributes:
        passed: whether all rules were met.
        gate_sha256: of the gate's file.
        outcomes: each rule with its outcome.
        results: ids of the results it rests on.
    """

    passed: bool
    gate_sha256: str
    outcomes: tuple[RuleOutcome, ...]
    results: tuple[str, ...] = ()
