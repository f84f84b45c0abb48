"""Graders as OpenAI's API takes them: all kinds, also those that are refused with a reason."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

MAX_CHARACTERS: Final = 100_000
_Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class StringCheckRequest(FrozenModel):
    """1 where two texts are as `operation` says, else 0."""

    type: Literal["string_check"]
    name: _Name
    input: _Text
    reference: _Text
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarityRequest(FrozenModel):
    """How like one text is another, 0 to 1. `cosine` and `meteor` are known and not computed here."""

    type: Literal["text_similarity"]
    name: _Name
    input: _Text
    reference: _Text
    evaluation_metric: Literal[
        "cosine", "fuzzy_match", "bleu", "gleu", "meteor",
        "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
    ]  # fmt: skip
    pass_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None


class PythonRequest(FrozenModel):
    """Code that grades; it is not run here."""

    type: Literal["python"]
    name: _Name
    source: _Text
    image_tag: str | None = None


class TextPart(FrozenModel):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: _Text


class GraderMessage(FrozenModel):
    """What the grading model is told; texts have places to fill, as `{{item.x}}`."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: _Text | TextPart | Annotated[tuple[TextPart, ...], Field(max_length=100)]

    @property
    def text(self) -> str:
        """All of the content."""
        # OpenAI's API takes a text, one part, or a list of parts.
        if isinstance(self.content, str):
            return self.content
        parts = (self.content,) if isinstance(self.content, TextPart) else self.content
        return "\n".join(part.text for part in parts)


_Messages = Annotated[tuple[GraderMessage, ...], Field(min_length=1, max_length=100)]


class SamplingParameters(FrozenModel):
    """How the grading model writes. `top_p` and `reasoning_effort` must say what is done anyway."""

    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    reasoning_effort: str | None = None


class ScoreModelRequest(FrozenModel):
    """A model that answers with a number, within `range` (0 to 1)."""

    type: Literal["score_model"]
    name: _Name
    model: Annotated[str, Field(min_length=1, max_length=255)]
    input: _Messages
    range: tuple[float, float] | None = None
    sampling_params: SamplingParameters | None = None


class LabelModelRequest(FrozenModel):
    """A model that answers with one of `labels`; 1 where it is among `passing_labels`."""

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
    name: _Name
    graders: (
        Annotated[dict[str, SingleGrader], Field(min_length=1, max_length=50)]
        | Annotated[tuple[SingleGrader, ...], Field(min_length=1, max_length=50)]
        | SingleGrader
    )
    calculate_output: Annotated[str, Field(min_length=1, max_length=1000)]

    @property
    def by_name(self) -> dict[str, SingleGrader]:
        """The graders by the names that the formula knows them by."""
        if isinstance(self.graders, dict):
            return self.graders
        found = self.graders if isinstance(self.graders, tuple) else (self.graders,)
        return {grader.name: grader for grader in found}


GraderRequest = Annotated[
    StringCheckRequest | TextSimilarityRequest | PythonRequest | ScoreModelRequest | LabelModelRequest | MultiRequest,
    Field(discriminator="type"),
]


class GraderRun(FrozenModel):
    """A grader, what was written, and the row that it is held against."""

    grader: GraderRequest
    model_sample: _Text
    item: dict[str, Any] | None = None


class GraderCheck(FrozenModel):
    """A grader that is to be looked at only."""

    grader: GraderRequest
