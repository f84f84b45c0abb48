"""Use cases: graders of OpenAI's API: their specification, validation, and a run on one text.

All grader kinds of OpenAI's API are parsed, including those that are rejected with a reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError, UnsupportedError
from luthier.core.frozen_model import FrozenModel
from luthier.core.graders import fault_of
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.sandbox.runners import PythonGrade

MAX_CHARACTERS: Final = 100_000
_Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
PassThreshold = Annotated[float, Field(allow_inf_nan=False)] | None
"""The least score that passes; only evals look at it."""


class StringCheckRequest(FrozenModel):
    """1 if two texts satisfy `operation`, otherwise 0.

    Attributes:
        type: Always `string_check`.
        name: Names the grade in formulas and results.
        input: The text, with placeholders such as `{{sample.output_text}}`.
        reference: What it is compared with, with placeholders.
        operation: Equal, not equal, or contains, with case or (`ilike`) without.
    """

    type: Literal["string_check"]
    name: _Name
    input: _Text
    reference: _Text
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarityRequest(FrozenModel):
    """The similarity of two texts, 0 to 1. `cosine` and `meteor` are parsed but not supported.

    Attributes:
        type: Always `text_similarity`.
        name: Names the grade in formulas and results.
        input: The text, with placeholders.
        reference: What it is compared with, with placeholders.
        evaluation_metric: How similarity is measured.
        pass_threshold: The least score that passes.
    """

    type: Literal["text_similarity"]
    name: _Name
    input: _Text
    reference: _Text
    evaluation_metric: Literal[
        "cosine", "fuzzy_match", "bleu", "gleu", "meteor",
        "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
    ]  # fmt: skip
    pass_threshold: PassThreshold = None


class PythonRequest(FrozenModel):
    """Grading code with a function `grade(sample, item)`: run in a locked-down process, where the operator allows it.

    `image_tag` is refused: there is one environment, Python's standard library.

    Attributes:
        type: Always `python`.
        name: Names the grade in formulas and results; OpenAI's examples leave it out.
        source: The code.
        image_tag: Refused.
        pass_threshold: The least score that passes.
    """

    type: Literal["python"]
    name: _Name = "python"
    source: _Text
    image_tag: str | None = None
    pass_threshold: PassThreshold = None


class TextPart(FrozenModel):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: _Text


class GraderMessage(FrozenModel):
    """A message for the grading model; texts may contain placeholders such as `{{item.x}}`."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: _Text | TextPart | Annotated[tuple[_Text | TextPart, ...], Field(max_length=100)]

    @property
    def text(self) -> str:
        """The whole content."""
        # OpenAI's API accepts a text, one part, or a list of parts.
        if isinstance(self.content, str):
            return self.content
        parts = (self.content,) if isinstance(self.content, TextPart) else self.content
        return "\n".join(part if isinstance(part, str) else part.text for part in parts)


_Messages = Annotated[tuple[GraderMessage, ...], Field(min_length=1, max_length=100)]


class SamplingParameters(FrozenModel):
    """Sampling parameters of the grading model. `top_p` and `reasoning_effort` must have their default values.

    Attributes:
        max_completions_tokens: Longest answer of the grading model, in tokens.
        seed: Of sampling.
        temperature: 0 takes the likeliest token.
        top_p: 1, or left out.
        reasoning_effort: Its default, or left out.
    """

    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    reasoning_effort: str | None = None


class ScoreModelRequest(FrozenModel):
    """A model that answers with a number, within `range` (0 to 1).

    Attributes:
        type: Always `score_model`.
        name: Names the grade in formulas and results.
        model: The grading model.
        input: The messages, with placeholders.
        range: Least and greatest number; 0 to 1 by default.
        sampling_params: Of the grading model.
        pass_threshold: The least score that passes.
    """

    type: Literal["score_model"]
    name: _Name
    model: Annotated[str, Field(min_length=1, max_length=255)]
    input: _Messages
    range: tuple[float, float] | None = None
    sampling_params: SamplingParameters | None = None
    pass_threshold: PassThreshold = None


class LabelModelRequest(FrozenModel):
    """A model that answers with one of `labels`; 1 if it is among `passing_labels`.

    Attributes:
        type: Always `label_model`.
        name: Names the grade in formulas and results.
        model: The grading model.
        input: The messages, with placeholders.
        labels: What it may answer.
        passing_labels: Those with the grade 1.
    """

    type: Literal["label_model"]
    name: _Name
    model: Annotated[str, Field(min_length=1, max_length=255)]
    input: _Messages
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    passing_labels: Annotated[tuple[str, ...], Field(max_length=100)]


SingleGrader = Annotated[
    StringCheckRequest | TextSimilarityRequest | PythonRequest | ScoreModelRequest | LabelModelRequest,
    Field(discriminator="type"),
]


class MultiRequest(FrozenModel):
    """Several graders, and a formula over their names; graders by name, or a list of them."""

    type: Literal["multi"]
    name: _Name = "multi"
    graders: (
        Annotated[dict[str, SingleGrader], Field(min_length=1, max_length=50)]
        | Annotated[tuple[SingleGrader, ...], Field(min_length=1, max_length=50)]
        | SingleGrader
    )
    calculate_output: Annotated[str, Field(min_length=1, max_length=1000)]
    pass_threshold: PassThreshold = None

    @property
    def by_name(self) -> dict[str, SingleGrader]:
        """The graders, by their names in the formula."""
        if isinstance(self.graders, dict):
            return self.graders
        found = self.graders if isinstance(self.graders, tuple) else (self.graders,)
        return {grader.name: grader for grader in found}


GraderRequest = Annotated[
    StringCheckRequest | TextSimilarityRequest | PythonRequest | ScoreModelRequest | LabelModelRequest | MultiRequest,
    Field(discriminator="type"),
]


class GraderRun(FrozenModel):
    """A grader, the generated text, and the row to compare it with.

    Attributes:
        grader: Its specification.
        model_sample: The generated text.
        item: The row, for placeholders such as `{{item.answer}}`; None for none.
    """

    grader: GraderRequest
    model_sample: _Text
    item: dict[str, Any] | None = None


class GraderCheck(FrozenModel):
    """A grader to validate."""

    grader: GraderRequest


MOST_COMPARED: Final = 10_000
"""Maximum characters of a filled text: the time of some measures grows quadratically."""
_NOT_COMPUTED: Final = {
    "cosine": "needs a model of embeddings, and this server has none",
    "meteor": "needs word lists of synonyms, and this server has none",
}
ERRORS: Final = (
    "formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
    "invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_runtime_error",
    "model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error",
)  # fmt: skip
"""The error flags in OpenAI's response."""

Ask = Callable[[str, Sequence[Mapping[str, str]], int | None, float, int], str]
"""(model, messages, max_tokens or None, temperature, seed) -> the generated text."""
RunPython = Callable[[str, Mapping[str, Any], Mapping[str, Any]], "PythonGrade"]
"""(source, sample, item) -> what the function `grade` of the source gave."""


@dataclass(slots=True)
class Graded:
    """The result of a grader.

    Attributes:
        reward: The grade; 0 if the run failed.
        seconds: The duration.
        scores: Of the parts of a multi grader, by their names.
        errors: The names in `ERRORS` that apply.
        details: The message of a model or server about a failure; None without one.
    """

    reward: float
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)
    details: str | None = None


def check(grader: GraderRequest, *, allows_python: bool = False, is_stored: bool = False) -> None:
    """Raise UnsupportedError for a grader that cannot be run here, naming the field.

    Args:
        grader: As the request has it.
        allows_python: Whether code of a request may be run, in a locked-down process.
        is_stored: Whether it was accepted before: by now, reasoning efforts are refused that have no effect.
    """
    from luthier.ml.evaluation.graders import SAMPLE_FIELDS, Formula, item_fields

    if isinstance(grader, MultiRequest):
        if isinstance(grader.graders, tuple) and len(grader.by_name) < len(grader.graders) and not is_stored:
            came, expected = "two graders of one name, of which a formula could mean either", "a name for each"
            raise _wrong(RequestError(came, expected=expected, do="rename one of them"), "grader.graders")
        # A formula has only simple parts, so one level is enough.
        for one in grader.by_name.values():
            check(one, allows_python=allows_python, is_stored=is_stored)
        try:
            Formula(grader.calculate_output, list(grader.by_name))
        except RequestError as error:
            raise _wrong(error, "grader.calculate_output") from error
        return
    if isinstance(grader, PythonRequest):
        _check_python(grader, allows_python=allows_python)
    if isinstance(grader, TextSimilarityRequest) and (why := _NOT_COMPUTED.get(grader.evaluation_metric)):
        raise UnsupportedError(
            f"evaluation_metric {grader.evaluation_metric}: it {why}",
            expected="fuzzy_match, bleu, gleu, rouge_1 to rouge_5, or rouge_l",
            do="choose one of these",
            code="unsupported_metric",
            param="grader.evaluation_metric",
        )
    if not is_stored and (fault := fault_of(grader, getattr(grader, "pass_threshold", None))) is not None:
        raise UnsupportedError(
            fault.came, expected=fault.expected, do="correct it", code="invalid_grader", param=f"grader.{fault.field}"
        )
    if isinstance(grader, ScoreModelRequest):
        _check_sampling(grader, is_stored=is_stored)
    for text in templates_of(grader):
        try:
            item_fields(text, SAMPLE_FIELDS)
        except RequestError as error:
            raise _wrong(error, "grader") from error


def run(context: Context, caller: Caller, grader: GraderRequest, output: str, item: Mapping[str, Any]) -> Graded:
    """Grade a text; a failed run has the reward 0 and a reason.

    Raises:
        UnsupportedError: the grader cannot be run here; names the field.
    """
    from luthier.features.serving.service import answer
    from luthier.ml.evaluation.graders import sample_of_text

    check(grader, allows_python=context.settings.python_graders)

    def ask(model: str, messages: Sequence[Mapping[str, str]], most: int | None, temperature: float, seed: int) -> str:
        return answer(context, caller, model, messages, max_tokens=most, temperature=temperature, seed=seed)

    return grade(grader, sample_of_text(output), item, ask, run_once if context.settings.python_graders else None)


def run_once(source: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> PythonGrade:
    """Run a grader in Python for one answer, in its own process.

    Args:
        source: Python with a function `grade(sample, item)`.
        sample: the generated answer.
        item: the row.
    """
    from luthier.ml.evaluation.sandbox.runners import PythonGrader

    with PythonGrader(source) as grader:
        return grader.grade(sample, item)


def grade(
    grader: GraderRequest,
    sample: str | Mapping[str, Any],
    item: Mapping[str, Any],
    ask: Ask,
    run_python: RunPython | None = None,
) -> Graded:
    """Like `run`.

    Args:
        grader: What grades.
        sample: The text, or the fields of the whole answer (`ml.evaluation.graders.SAMPLE_FIELDS`).
        item: The fields of the row.
        ask: Calls grading models.
        run_python: Runs graders in Python; None refuses them.
    """
    from luthier.ml.evaluation.graders import Formula

    check(grader, allows_python=run_python is not None, is_stored=True)
    start = time.perf_counter()
    if not isinstance(grader, MultiRequest):
        found = _one(grader, sample, item, ask, run_python)
    else:
        parts = {name: _one(one, sample, item, ask, run_python) for name, one in grader.by_name.items()}
        found = Graded(0.0, scores={name: part.reward for name, part in parts.items()})
        for part in parts.values():
            found.errors |= part.errors
            # The first failure is reported, in the order of the parts.
            found.details = found.details or part.details
        try:
            # A part that failed counts as 0, so the formula has a value for every name.
            found.reward = Formula(grader.calculate_output, list(parts))(found.scores)
        except RequestError as error:
            found.errors.add("formula_parse_error")
            found.details = found.details or error.came
    found.seconds = time.perf_counter() - start
    return found


def uses_model(grader: GraderRequest) -> bool:
    """Whether the grader calls a model."""
    parts = grader.by_name.values() if isinstance(grader, MultiRequest) else (grader,)
    return any(isinstance(part, ScoreModelRequest | LabelModelRequest) for part in parts)


def _one(
    grader: SingleGrader,
    sample: str | Mapping[str, Any],
    item: Mapping[str, Any],
    ask: Ask,
    run_python: RunPython | None,
) -> Graded:
    from luthier.ml.evaluation.graders import all_filled, sample_of_text
    from luthier.ml.evaluation.judge.replies import label_in, score_in

    if isinstance(grader, PythonRequest):
        assert run_python is not None  # `check` has refused it otherwise
        return _by_code(run_python(grader.source, sample_of_text(sample) if isinstance(sample, str) else sample, item))
    try:
        texts = all_filled(templates_of(grader), sample, item)
    except RequestError as error:
        return Graded(0.0, errors={"invalid_variable_error"}, details=error.came)
    if isinstance(grader, StringCheckRequest | TextSimilarityRequest):
        # Truncated texts would get a misleading grade, so the run fails instead.
        if max(map(len, texts)) > MOST_COMPARED:
            words = f"a text of {max(map(len, texts)):,} characters; expected: at most {MOST_COMPARED:,}"
            return Graded(0.0, errors={"truncated_observation_error"}, details=words)
        return Graded(_compared(grader, *texts))
    assert isinstance(grader, ScoreModelRequest | LabelModelRequest)
    messages = [{"role": one.role, "content": text} for one, text in zip(grader.input, texts, strict=True)]
    sampling = grader.sampling_params if isinstance(grader, ScoreModelRequest) else None
    most = None if sampling is None else sampling.max_completions_tokens
    temperature, seed = (0.0, 0) if sampling is None else (sampling.temperature or 0.0, sampling.seed or 0)
    try:
        said = ask(grader.model, messages, most, temperature, seed)
    # A failure on one row must not end the run.
    except LuthierError as error:
        return Graded(0.0, errors={"model_grader_server_error"}, details=error.came)
    if isinstance(grader, ScoreModelRequest):
        reward = score_in(said, *(grader.range or (0.0, 1.0)))
    else:
        reward = label_in(said, grader.labels, grader.passing_labels)
    if reward is None:
        return Graded(0.0, errors={"model_grader_parse_error"}, details=f"the model answered {said[:200]!r}")
    return Graded(reward)


def _by_code(made: PythonGrade) -> Graded:
    if made.word == "graded":
        return Graded(made.score)
    reason = {"timeout": "it took too long", "memory": "it needed too much memory"}.get(made.word, "")
    return Graded(0.0, errors={"python_grader_runtime_error"}, details=made.message or reason)


def _compared(grader: StringCheckRequest | TextSimilarityRequest, said: str, meant: str) -> float:
    """The texts are already filled: anything that looks like a placeholder is text."""
    from luthier.ml.evaluation.graders import similarity

    if isinstance(grader, StringCheckRequest):
        if grader.operation == "ilike":
            return float(meant.casefold() in said.casefold())
        if grader.operation == "like":
            return float(meant in said)
        # True for equal texts and `eq`, and for different texts and `ne`.
        return float((said == meant) == (grader.operation == "eq"))
    return similarity(grader.evaluation_metric)(said, meant)  # type: ignore[arg-type]


def templates_of(grader: SingleGrader) -> list[str]:
    """The texts of a grader that may have placeholders."""
    if isinstance(grader, StringCheckRequest | TextSimilarityRequest):
        return [grader.input, grader.reference]
    return [] if isinstance(grader, PythonRequest) else [message.text for message in grader.input]


def _check_sampling(grader: ScoreModelRequest, *, is_stored: bool) -> None:
    sampling = grader.sampling_params
    usual: dict[str, tuple[float | str, str]] = {"top_p": (1, "graders draw from the whole vocabulary")}
    if not is_stored:
        usual["reasoning_effort"] = ("medium", "graders think as their chat template has it")
    for name, (only, why) in usual.items():
        if (value := getattr(sampling, name, None)) not in (None, only):
            raise UnsupportedError(
                f"sampling_params.{name} {str(value)[:100]}", expected=f"{only}, or no {name}: {why}",
                do="leave it out", code="unsupported_value", param=f"grader.sampling_params.{name}",
            )  # fmt: skip


def _check_python(grader: PythonRequest, *, allows_python: bool) -> None:
    if not allows_python:
        raise UnsupportedError(
            f"grader {grader.name!r} of type python: this server runs no code of requests",
            expected="a grader that runs no code, or a server whose operator allows it (LUTHIER_PYTHON_GRADERS=true)",
            do="grade with string_check, text_similarity, score_model, label_model, or a multi grader of these",
            code="unsupported_grader",
            param="grader.type",
        )
    if grader.image_tag is not None:
        raise UnsupportedError(
            f"image_tag {grader.image_tag[:100]!r}",
            expected="none: a grader in Python has the standard library of this server's Python",
            do="leave image_tag out, and import nothing else",
            code="unsupported_value",
            param="grader.image_tag",
        )


def _wrong(error: RequestError, param: str) -> UnsupportedError:
    return UnsupportedError(
        error.came, expected=error.expected, do="correct the grader", code="invalid_grader", param=param
    )
