"""What a written answer is worth, as a recipe says it: figures, graders and lengths, each with a weight.

Graders are those of OpenAI's fine-tuning API (reinforcement, "graders"), by the same names and fields. In rewards those
that ask a model name it; tasks of suites (`SuiteGrader`) ask the judge of the command.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.registry import REWARD_METRICS

RewardMetric = Annotated[
    str, AfterValidator(REWARD_METRICS.validated), Field(json_schema_extra=REWARD_METRICS.add_names)
]


def _as_tuple(given: Any) -> Any:
    """A list of JSON as what fields hold: below a validator that runs before, pydantic takes no list for a tuple."""
    return tuple(given) if isinstance(given, list) else given


Similarity = Literal["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]


class StringCheck(FrozenModel):
    """1 where input and reference are as `operation` says, else 0.

    Input and reference are texts with places to fill: `{{sample.output_text}}`, `{{item.reference}}` (the row's
    answer), `{{item.FIELD}}`.

    Attributes:
        type: names the grader.
        name: what measures and formulas call it.
        input: the text that is checked.
        reference: the text that it is compared with.
        operation: eq, ne: equal, not equal; like: the reference is in the input; ilike: the same, ignoring case.
    """

    type: Literal["string_check"]
    name: str = "string_check"
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(FrozenModel):
    """How like the reference the input is, 0 to 1. Input and reference as in `StringCheck`.

    Attributes:
        type: names the grader.
        name: what measures and formulas call it.
        input: the text that is graded.
        reference: the text that it is compared with.
        evaluation_metric: the measure of similarity.
    """

    type: Literal["text_similarity"]
    name: str = "text_similarity"
    input: str
    reference: str
    evaluation_metric: Similarity


OneGrader = Annotated[StringCheck | TextSimilarity, Field(discriminator="type")]


class MultiGrader(FrozenModel):
    """Several graders and a formula over their names, such as `0.7 * right + 0.3 * short`.

    The formula knows numbers, + - * / and **, which may be written ^, and the functions min, max, abs, floor, ceil,
    exp, sqrt and log.

    Attributes:
        type: names the grader.
        name: what measures call it.
        graders: the graders by the names that the formula uses.
        calculate_output: the formula.
    """

    type: Literal["multi"]
    name: str = "multi"
    graders: dict[str, OneGrader] = Field(min_length=1)
    calculate_output: str


class PythonGraderSpec(FrozenModel):
    """Python source with a function `grade(sample, item)` that returns a number; it runs in a locked-down process.

    Attributes:
        type: names the grader.
        name: what measures call it.
        source: the code.
    """

    type: Literal["python"]
    name: str = "python"
    source: str


class GraderTurn(FrozenModel):
    """A message for a model that grades; its text has places to fill, as in `StringCheck`.

    Attributes:
        role: who says it.
        content: the text.
    """

    role: Literal["user", "assistant", "system", "developer"]
    content: str


class ScoreModelSpec(FrozenModel):
    """A model that answers with a number within `range`.

    Attributes:
        type: names the grader.
        name: what measures call it.
        input: the messages.
        range: the ends of the scale.
    """

    type: Literal["score_model"]
    name: str = "score_model"
    input: Annotated[tuple[GraderTurn, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    range: Annotated[tuple[float, float], BeforeValidator(_as_tuple)] = (0.0, 1.0)


class LabelModelSpec(FrozenModel):
    """A model that answers with one of `labels`; 1 where it is among `passing_labels`, else 0.

    Attributes:
        type: names the grader.
        name: what measures call it.
        input: the messages.
        labels: all that may be answered.
        passing_labels: those that pass.
    """

    type: Literal["label_model"]
    name: str = "label_model"
    input: Annotated[tuple[GraderTurn, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    labels: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    passing_labels: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class JudgeSampling(FrozenModel):
    """How the answer of a model that grades is drawn; by default the likeliest one of at most 256 tokens.

    Attributes:
        max_completions_tokens: Longest answer, in tokens, with its thought; the name is OpenAI's.
        seed: Of the draws.
        temperature: 0 takes the likeliest token.
    """

    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None


class ScoreModelReward(ScoreModelSpec):
    """A model that answers with a number within `range`, which is the score.

    An answer without such a number, given twice, counts the lower end of the range.

    Attributes:
        type: names the grader.
        name: what measures and formulas call it.
        input: the messages.
        range: the ends of the scale.
        model: any name of a model on this machine, or `http(s)://host:port/v1#MODEL`.
        sampling_params: of its answers.
    """

    model: Annotated[str, Field(min_length=1, max_length=255)]
    sampling_params: JudgeSampling | None = None


class LabelModelReward(LabelModelSpec):
    """A model that answers with one of `labels`; 1 where it is among `passing_labels`, else 0.

    An answer without a label, given twice, counts 0.

    Attributes:
        type: names the grader.
        name: what measures and formulas call it.
        input: the messages.
        labels: all that may be answered.
        passing_labels: those that pass.
        model: any name of a model on this machine, or `http(s)://host:port/v1#MODEL`.
    """

    model: Annotated[str, Field(min_length=1, max_length=255)]


ModelGrader = ScoreModelReward | LabelModelReward


class GradingLoad(FrozenModel):
    """What a grader that asks a model has it read and write for one answer: the time of a plan follows from it.

    Attributes:
        grader: its name.
        judge: the model that it asks, by its name in the plan.
        prompt_tokens: of a question without the answer in it, as a mean over the first training rows.
        answers_read: in how many places of a question the answer is written.
        new_tokens: of a reply, at most, the thought before it included.
        num_active_parameters: of the model: those that a token meets, without the output head.
        num_layers: of the model.
        key_value_width: numbers that the model keeps of a token, in all layers.
    """

    grader: str
    judge: str
    prompt_tokens: float
    answers_read: int
    new_tokens: int
    num_active_parameters: int
    num_layers: int
    key_value_width: int


OneRewardGrader = Annotated[
    StringCheck | TextSimilarity | PythonGraderSpec | ScoreModelReward | LabelModelReward, Field(discriminator="type")
]


class MultiReward(FrozenModel):
    """As `MultiGrader`, of which some parts may ask a model or run code.

    Attributes:
        type: names the grader.
        name: what measures call it.
        graders: the graders by the names that the formula uses.
        calculate_output: the formula.
    """

    type: Literal["multi"]
    name: str = "multi"
    graders: dict[str, OneRewardGrader] = Field(min_length=1)
    calculate_output: str


Grader = Annotated[
    StringCheck | TextSimilarity | PythonGraderSpec | ScoreModelReward | LabelModelReward | MultiReward,
    Field(discriminator="type"),
]


SuiteGrader = Annotated[
    StringCheck | TextSimilarity | PythonGraderSpec | ScoreModelSpec | LabelModelSpec | MultiGrader,
    Field(discriminator="type"),
]


_OF_EVALS: Final = "pass_threshold"
_ENVIRONMENT: Final = "image_tag"
"""Of graders in Python: null for the only environment that there is here."""


def as_reward(grader: Mapping[str, Any]) -> dict[str, Any]:
    """A grader of OpenAI's API as a recipe has it: parts by their names, and without what only evals look at.

    Args:
        grader: As a client sends it: the parts of a multi grader by their names, as a list, or one alone.

    Raises:
        RequestError: Two parts of a list have one name, so that a formula could mean either.
    """
    made = {name: value for name, value in grader.items() if name != _OF_EVALS}
    if made.get("type") == "python" and made.get(_ENVIRONMENT) is None:
        made.pop(_ENVIRONMENT, None)
    if made.get("type") in ("score_model", "label_model"):
        made = _with_plain_texts(made)
    parts = made.get("graders")
    if isinstance(parts, Mapping) and isinstance(parts.get("type"), str):
        parts = [parts]
    if isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts):
        names = [str(part.get("name")) for part in parts]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise RequestError(f"two graders are called {twice!r}", expected="a name for each", do="rename one of them")
        parts = dict(zip(names, parts, strict=True))
    if isinstance(parts, Mapping):
        made["graders"] = {name: as_reward(part) if isinstance(part, Mapping) else part for name, part in parts.items()}
    return made


def _with_plain_texts(grader: Mapping[str, Any]) -> dict[str, Any]:
    """A grader that asks a model, with the messages and sampling that a recipe has."""
    made = dict(grader)
    if isinstance(turns := made.get("input"), list | tuple):
        made["input"] = [_plain_turn(turn) if isinstance(turn, Mapping) else turn for turn in turns]
    if isinstance(sampling := made.get("sampling_params"), Mapping):
        # What has one value here, by which nothing changes; any other value is left to be refused.
        usual = {"top_p": (1, None), "reasoning_effort": ("medium", None)}
        made["sampling_params"] = {
            name: value for name, value in sampling.items() if name not in usual or value not in usual[name]
        }
    return {name: value for name, value in made.items() if value is not None}


def _plain_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is one text. OpenAI's are texts, a part, or a list of these."""
    made = {name: value for name, value in turn.items() if name != "type" or value != "message"}
    content = made.get("content")
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part["text"] if isinstance(part, Mapping) and _is_text(part) else part for part in parts]
    plain = [text for text in texts if isinstance(text, str)]
    return made | {"content": "\n".join(plain)} if len(plain) == len(texts) > 0 else made


def _is_text(part: Mapping[str, Any]) -> bool:
    return set(part) == {"type", "text"} and part["type"] in ("input_text", "output_text", "text")


@dataclass(frozen=True, slots=True)
class GraderFault:
    """Why a grader decides nothing, whatever is answered.

    Attributes:
        field: of the grader.
        came: what it says.
        expected: what would decide.
    """

    field: str
    came: str
    expected: str


def fault_of(grader: Any, pass_threshold: float | None = None) -> GraderFault | None:
    """Why a grader gives no score, or the same to every answer; None where it decides.

    Args:
        grader: of a suite or of a request, whose fields are the same.
        pass_threshold: the least score that passes; None where none is set.
    """
    fault: GraderFault | None = None
    if grader.type == "label_model":
        fault = _fault_of_labels(grader.labels, grader.passing_labels)
    elif grader.type == "string_check" and grader.operation in ("like", "ilike") and not grader.reference:
        came = f"an empty reference with the operation {grader.operation}: every text contains it"
        fault = GraderFault("reference", came, "a text, or the operation eq")
    # Numbers of Python and of formulas have no ends; all others but those of `score_model` are from 0 to 1.
    if fault is not None or grader.type in ("python", "multi"):
        return fault
    low, high = (grader.range if grader.type == "score_model" else None) or (0.0, 1.0)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return GraderFault("range", f"range {low:g} to {high:g}", "two finite numbers, the lower one first")
    if pass_threshold is not None and pass_threshold > high:
        came = f"pass_threshold {pass_threshold:g}, above the best score {high:g}: nothing could pass"
        return GraderFault("pass_threshold", came, f"at most {high:g}")
    return None


def _fault_of_labels(labels: Sequence[str], passing_labels: Sequence[str]) -> GraderFault | None:
    if not all(label.strip() for label in labels):
        return GraderFault("labels", "labels with an empty text", "a word for each label")
    # As answers are read: without regard to case and to spaces around.
    plain = Counter(label.strip().casefold() for label in labels)
    if twice := next((label for label in labels if plain[label.strip().casefold()] > 1), None):
        return GraderFault("labels", f"labels with {twice!r} twice", "labels that differ in more than their case")
    if lost := sorted(set(passing_labels) - set(labels)):
        return GraderFault(
            "passing_labels", f"passing_labels has {', '.join(lost)}", f"some of the labels: {', '.join(labels)}"
        )
    if not passing_labels:
        return GraderFault("passing_labels", "no passing_labels: nothing could pass", "one label at least that passes")
    return None


class LengthPenalty(FrozenModel):
    """0 up to `free_tokens` new tokens, then falling in a line to -1 at `max_tokens` and beyond.

    Yu et al., 2025, "DAPO", arXiv:2503.14476, equation 13 (soft overlong punishment).

    Attributes:
        free_tokens: new tokens without a penalty.
        max_tokens: new tokens from which on it is -1.
    """

    free_tokens: Annotated[int, Field(ge=0)]
    max_tokens: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _falls(self) -> LengthPenalty:
        if self.max_tokens <= self.free_tokens:
            raise ValueError("max_tokens above free_tokens")
        return self


class Reward(FrozenModel):
    """One part of a reward, counted `weight` times: exactly one of `metric`, `grader` and `length`.

    Attributes:
        metric: of the answer against the row's own, on the scale 0 to 1 (BLEU and chrF are divided by 100).
        grader: a grader of OpenAI's API.
        length: a penalty on long answers.
        weight: what the part is multiplied by before parts are added.
    """

    metric: RewardMetric | None = None
    grader: Grader | None = None
    length: LengthPenalty | None = None
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, given: Any) -> Any:
        """A name alone means that metric, counted once."""
        # Before validation: recipes may list `rewards: [exact_match]`.
        return {"metric": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _is_one(self) -> Reward:
        if sum(part is not None for part in (self.metric, self.grader, self.length)) != 1:
            raise ValueError("exactly one of metric, grader and length")
        return self

    @property
    def name(self) -> str:
        """What measures and reports call this part."""
        if self.metric is not None:
            return self.metric
        return "length" if self.grader is None else self.grader.name

    @property
    def _parts(self) -> tuple[Any, ...]:
        """Its grader, or the parts of a multi grader."""
        return tuple(self.grader.graders.values()) if isinstance(self.grader, MultiReward) else (self.grader,)

    @property
    def judges(self) -> tuple[str, ...]:
        """The names of the models that its grader asks."""
        return tuple(part.model for part in self._parts if isinstance(part, ModelGrader))

    @property
    def code(self) -> tuple[PythonGraderSpec, ...]:
        """The parts of its grader that run code."""
        return tuple(part for part in self._parts if isinstance(part, PythonGraderSpec))

    def with_judges(self, names: Mapping[str, str]) -> Reward:
        """The same with other names of the models that are asked."""

        def renamed(part: Any) -> Any:
            return part.model_copy(update={"model": names[part.model]}) if isinstance(part, ModelGrader) else part

        grader = renamed(self.grader)
        if isinstance(grader, MultiReward):
            grader = grader.model_copy(update={"graders": {key: renamed(one) for key, one in grader.graders.items()}})
        return self.model_copy(update={"grader": grader})
