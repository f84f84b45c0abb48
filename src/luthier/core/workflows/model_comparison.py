"""A showdown: several base models on the same rows, each asked, shown examples, and tuned for a short while."""

from __future__ import annotations

from typing import Final, Literal

from luthier.core.cost import Estimate
from luthier.core.evaluation import Comparison, SystemResult
from luthier.core.frozen_model import FrozenModel
from luthier.core.recipe import MetricName

SystemKind = Literal["zero-shot", "few-shot", "tuned"]
SYSTEM_KINDS: Final[tuple[SystemKind, ...]] = ("zero-shot", "few-shot", "tuned")
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
    """What was asked, and the sizes that fit the budget; the same for every contender.

    Attributes:
        contenders: the base models.
        data: the file of training rows, as it was given.
        held_out: the file of held-out rows, as it was given.
        train_file: the training rows that are used, in the folder of this comparison.
        judged_file: the held-out rows that are used, likewise.
        map: field of the shape to field of the files.
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
        kind: how it is asked.
        result: its figures.
        seconds_per_answer: measured while all rows were asked at once, on this machine; None of plain text, which is
            only scored.
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
        reason: why it is not judged; empty where it was trained to its end.
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
    """The answer.

    Attributes:
        word: `tuned`, `prompting` ("none of them need be tuned"), or `nothing` that is any good.
        system: the name of what is recommended; empty for `nothing`.
        contender: the place of its base model; None for `nothing`.
        headline: one sentence, or two.
        reasons: the figures behind it.
        cautions: what it does not show.
    """

    word: Advice
    system: str
    contender: int | None
    headline: str
    reasons: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


class ModelComparisonResult(FrozenModel):
    """All that came of a showdown.

    Attributes:
        showdown_id: its id.
        created_at: UTC, ISO 8601.
        spec: what was asked.
        standings: every system with its figures.
        tunings: the short trainings.
        comparisons: of every pair of systems and every metric, paired over the rows.
        recommendation: the answer.
        not_equal: what could not be made the same for all, a sentence each.
        hours: spent in all.
    """

    showdown_id: str
    created_at: str
    spec: ModelComparisonSpec
    standings: tuple[Standing, ...]
    tunings: tuple[Tuning, ...]
    comparisons: tuple[Comparison, ...]
    recommendation: Recommendation
    not_equal: tuple[str, ...] = ()
    hours: float = 0.0

    def standing(self, name: str) -> Standing:
        """A system by its name."""
        return next(one for one in self.standings if one.result.name == name)
