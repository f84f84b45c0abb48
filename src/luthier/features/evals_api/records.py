"""Evals as requests and as stored: data source and graders of an eval, the data of a run, and graded items."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from luthier.core.frozen_model import FrozenModel
from luthier.core.records.fine_tuning import Metadata
from luthier.features.serving.graders import GraderRequest, MultiRequest, ScoreModelRequest, TextSimilarityRequest

MAX_CRITERIA: Final = 50
MAX_ROWS_IN_REQUEST: Final = 10_000
_EvalName = Annotated[str, Field(max_length=255)]
_Model = Annotated[str, Field(min_length=1, max_length=255)]


class CustomConfig(FrozenModel):
    """Rows of a form of one's own.

    Attributes:
        type: names the form.
        item_schema: JSON Schema that every row has to fit.
        include_sample_schema: whether graders look at answers that a run generates, or that rows bring along.
    """

    type: Literal["custom"]
    item_schema: dict[str, Any]
    include_sample_schema: bool = False


class LogsConfig(FrozenModel):
    """Stored chat completions or responses; `stored_completions` is the older name of the same.

    Attributes:
        type: names the form.
        metadata: only completions and responses that have all of these.
    """

    type: Literal["logs", "stored_completions"]
    metadata: Metadata | None = None


DataSourceConfig = Annotated[CustomConfig | LogsConfig, Field(discriminator="type")]


class EvalRequest(FrozenModel):
    """The request body that makes an eval.

    Attributes:
        data_source_config: the form of the rows.
        testing_criteria: the graders.
        name: for people; empty for none.
        metadata: labels of the client.
    """

    data_source_config: DataSourceConfig
    testing_criteria: Annotated[tuple[GraderRequest, ...], Field(min_length=1, max_length=MAX_CRITERIA)]
    name: _EvalName | None = None
    metadata: Metadata | None = None


class EvalUpdate(FrozenModel):
    """The request body that changes an eval; what is left out stays."""

    name: _EvalName | None = None
    metadata: Metadata | None = None


class Eval(FrozenModel):
    """An eval as stored. Times are seconds since 1970 by the database's clock.

    Attributes:
        eval_id: its id, `eval_...`.
        project_id: the project that it belongs to.
        name: for people.
        metadata: labels of the client.
        data_source_config: the form of its rows.
        testing_criteria: its graders.
        created_at: when it was made.
        updated_at: when it was last changed.
    """

    eval_id: str
    project_id: str
    name: str
    metadata: Metadata | None = None
    data_source_config: DataSourceConfig
    testing_criteria: tuple[GraderRequest, ...]
    created_at: float = 0.0
    updated_at: float = 0.0


def pass_threshold(grader: GraderRequest) -> float:
    """The least score that passes: the grader's own, else the middle of its range (0.5 on a scale of 0 to 1)."""
    own: float | None = getattr(grader, "pass_threshold", None)
    if own is not None:
        return own
    if isinstance(grader, ScoreModelRequest) and grader.range is not None:
        return sum(grader.range) / 2
    # Right or wrong: 1 or 0. Any point between decides the same.
    return 0.5


def score_range(grader: GraderRequest) -> tuple[float, float]:
    """The ends of a grader's scores; infinite where it may return any number."""
    if isinstance(grader, ScoreModelRequest):
        return grader.range or (0.0, 1.0)
    if grader.type == "python" or isinstance(grader, MultiRequest):
        return (float("-inf"), float("inf"))
    return (0.0, 1.0)


def missing_threshold(grader: GraderRequest) -> bool:
    """Whether a grader lacks the threshold that OpenAI's API requires of it."""
    return isinstance(grader, TextSimilarityRequest) and grader.pass_threshold is None


class SourceRow(FrozenModel):
    """One row of a data source.

    Attributes:
        item: its fields.
        sample: an answer that it brings along, as OpenAI's sample has it; None for none.
    """

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContent(FrozenModel):
    """Rows within the request."""

    type: Literal["file_content"]
    content: Annotated[tuple[SourceRow, ...], Field(min_length=1, max_length=MAX_ROWS_IN_REQUEST)]


class FileId(FrozenModel):
    """Rows of a file of the project: JSON lines, each with `item`, and `sample` where it has an answer."""

    type: Literal["file_id"]
    id: Annotated[str, Field(min_length=1, max_length=64)]


class StoredCompletions(FrozenModel):
    """Stored chat completions of the project; all conditions that are given hold.

    Attributes:
        type: names the source.
        created_after: seconds since 1970, included.
        created_before: seconds since 1970, included.
        limit: the most completions, the oldest first.
        metadata: only completions that have all of these.
        model: only answers of this model.
    """

    type: Literal["stored_completions"]
    created_after: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    created_before: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    limit: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    metadata: Metadata | None = None
    model: _Model | None = None


class StoredResponses(FrozenModel):
    """Stored answers of the Responses API; all conditions that are given hold.

    Attributes:
        type: names the source.
        created_after: seconds since 1970, included.
        created_before: seconds since 1970, included.
        metadata: only responses that have all of these.
        model: only answers of this model.
        instructions_search: only responses whose instructions contain this, whatever its case.
        reasoning_effort: only responses that were created with it.
        temperature: only responses that were created with it.
        top_p: only responses that were created with it.
        tools: only responses that were created with all of these functions.
        users: only answers to one of these end users.
    """

    type: Literal["responses"]
    created_after: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    created_before: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    metadata: Metadata | None = None
    model: _Model | None = None
    instructions_search: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    reasoning_effort: Annotated[str, Field(max_length=20)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: Annotated[tuple[str, ...], Field(max_length=128)] | None = None
    users: Annotated[tuple[str, ...], Field(max_length=100)] | None = None


class TemplatePart(FrozenModel):
    """A part of a message; texts alone are supported."""

    type: Literal["input_text", "output_text"]
    text: str


class TemplateMessage(FrozenModel):
    """A message of a prompt; its text may contain placeholders such as `{{item.x}}`."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | TemplatePart | Annotated[tuple[str | TemplatePart, ...], Field(max_length=100)]

    @property
    def text(self) -> str:
        """The whole content."""
        if isinstance(self.content, str):
            return self.content
        parts = (self.content,) if isinstance(self.content, TemplatePart) else self.content
        return "\n".join(part if isinstance(part, str) else part.text for part in parts)


class Template(FrozenModel):
    """Messages with placeholders."""

    type: Literal["template"]
    template: Annotated[tuple[TemplateMessage, ...], Field(min_length=1, max_length=1000)]


class ItemReference(FrozenModel):
    """A field of the row that holds the messages, such as `item.input`."""

    type: Literal["item_reference"]
    item_reference: Annotated[str, Field(pattern=r"^item\.\S+$", max_length=500)]


InputMessages = Annotated[Template | ItemReference, Field(discriminator="type")]


class JsonlSource(FrozenModel):
    """Rows that are graded as they are."""

    type: Literal["jsonl"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]


class CompletionsSource(FrozenModel):
    """Rows, each answered by a model as a chat completion; without `model`, the answers that rows bring along.

    Attributes:
        type: names the source.
        source: where the rows come from.
        input_messages: the prompt.
        model: the model that answers.
        sampling_params: parameters of a chat completion.
    """

    type: Literal["completions"]
    source: Annotated[FileContent | FileId | StoredCompletions, Field(discriminator="type")]
    input_messages: InputMessages | None = None
    model: _Model | None = None
    sampling_params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> CompletionsSource:
        _check_both(self.model, self.input_messages, self.sampling_params)
        return self


class ResponsesSource(FrozenModel):
    """The same with parameters of the Responses API.

    Attributes:
        type: names the source.
        source: where the rows come from.
        input_messages: the prompt.
        model: the model that answers.
        sampling_params: parameters of a response.
    """

    type: Literal["responses"]
    source: Annotated[FileContent | FileId | StoredResponses, Field(discriminator="type")]
    input_messages: InputMessages | None = None
    model: _Model | None = None
    sampling_params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> ResponsesSource:
        _check_both(self.model, self.input_messages, self.sampling_params)
        return self


def _check_both(model: str | None, input_messages: object, sampling_params: object) -> None:
    if (model is None) != (input_messages is None):
        raise ValueError("model and input_messages: both, or none of them where rows bring their answers along")
    if model is None and sampling_params is not None:
        raise ValueError("sampling_params without a model that answers")


DataSource = Annotated[JsonlSource | CompletionsSource | ResponsesSource, Field(discriminator="type")]


class RunRequest(FrozenModel):
    """The request body that starts a run.

    Attributes:
        data_source: the rows, and how they are answered.
        name: for people; empty for none.
        metadata: labels of the client.
    """

    data_source: DataSource
    name: _EvalName | None = None
    metadata: Metadata | None = None


class ModelUsage(FrozenModel):
    """What a run has used of one model.

    Attributes:
        invocation_count: answers.
        prompt_tokens: tokens of all prompts.
        completion_tokens: tokens of all answers.
        cached_tokens: of those of the prompts, known from earlier prompts.
    """

    invocation_count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: ModelUsage) -> ModelUsage:
        """Both together."""
        return ModelUsage(**{name: getattr(self, name) + getattr(other, name) for name in ModelUsage.model_fields})


class RunTotals(FrozenModel):
    """Counts over the output items so far.

    Attributes:
        num_items: items that the data source has; None until it was checked.
        passed: items whose graders all passed.
        failed: items with a grader that did not pass.
        errored: items that could not be answered or graded.
        passed_by_criterion: for each grader, in the order of the eval.
        failed_by_criterion: the same of items that did not pass it, errors included.
        usage: by the name of the model.
    """

    num_items: int | None = None
    passed: int = 0
    failed: int = 0
    errored: int = 0
    passed_by_criterion: tuple[int, ...] = ()
    failed_by_criterion: tuple[int, ...] = ()
    usage: dict[str, ModelUsage] = Field(default_factory=dict)

    @property
    def num_done(self) -> int:
        """Items that were graded, or have an error."""
        return self.passed + self.failed + self.errored


class EvalRun(FrozenModel):
    """A run as stored. Its status is that of its job.

    Attributes:
        eval_run_id: its id, `evalrun_...`.
        eval_id: the eval.
        project_id: the project that it belongs to.
        job_id: the job that carries it out.
        result_id: the id of its report.
        name: for people.
        model: the model that answers; empty where rows bring their answers along.
        metadata: labels of the client.
        data_source: the rows, and how they are answered.
        totals: counts so far.
        created_at: seconds since 1970.
    """

    eval_run_id: str
    eval_id: str
    project_id: str
    job_id: str
    result_id: str
    name: str
    model: str
    metadata: Metadata | None = None
    data_source: DataSource
    totals: RunTotals = RunTotals()
    created_at: float = 0.0


ItemStatus = Literal["pass", "fail", "error"]


class GraderResult(FrozenModel):
    """What one grader gave for one item.

    Attributes:
        name: of the grader.
        type: of the grader.
        score: the number; 0 where it failed.
        passed: whether it reaches the threshold.
        sample: the answer of a grading model; None for other graders.
        error: why it failed, `code` and `message`; None where it did not.
    """

    name: str
    type: str
    score: float
    passed: bool
    sample: dict[str, Any] | None = None
    error: dict[str, str] | None = None


class OutputItem(FrozenModel):
    """One graded item.

    Attributes:
        item_id: its id, `outputitem_...`.
        eval_run_id: the run.
        eval_id: the eval.
        position: its place in the data source, from 0 on.
        status: whether all graders passed.
        item: its fields.
        sample: the answer, as OpenAI's sample has it.
        results: of each grader, in the order of the eval.
        created_at: seconds since 1970.
    """

    item_id: str
    eval_run_id: str
    eval_id: str
    position: int
    status: ItemStatus
    item: dict[str, Any]
    sample: dict[str, Any]
    results: tuple[GraderResult, ...]
    created_at: float = 0.0
