"""The registry of metrics, one line per figure. Its class declares name, title, unit, bounds and required inputs.

Entry points in the group `luthier.metrics` extend the table. It imports neither numpy nor metrics, so that recipes can
be validated cheaply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.import_string import import_string
from luthier.core.records.bounds import Bounds
from luthier.core.registry import METRICS

if TYPE_CHECKING:
    from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Needs

BUILT_IN: Final = {
    "perplexity": "luthier.ml.evaluation.metrics.likelihood:Perplexity",
    "bits_per_byte": "luthier.ml.evaluation.metrics.likelihood:BitsPerByte",
    "bleu": "luthier.ml.evaluation.metrics.reference_based:Bleu",
    "rouge_1": "luthier.ml.evaluation.metrics.reference_based:Rouge1",
    "rouge_2": "luthier.ml.evaluation.metrics.reference_based:Rouge2",
    "rouge_l": "luthier.ml.evaluation.metrics.reference_based:RougeL",
    "chrf": "luthier.ml.evaluation.metrics.reference_based:Chrf",
    "exact_match": "luthier.ml.evaluation.metrics.reference_based:ExactMatch",
    "exact_match_ignoring_case": "luthier.ml.evaluation.metrics.reference_based:ExactMatchIgnoringCase",
    "meteor": "luthier.ml.evaluation.metrics.reference_based:Meteor",
    "token_f1": "luthier.ml.evaluation.metrics.reference_based:TokenF1",
    "label_accuracy": "luthier.ml.evaluation.metrics.classification:LabelAccuracy",
    "nmae": "luthier.ml.evaluation.metrics.reference_based:NormalisedAbsoluteError",
    "reward_accuracy": "luthier.ml.evaluation.metrics.likelihood:RewardAccuracy",
    "preference_accuracy": "luthier.ml.evaluation.metrics.likelihood:PreferenceAccuracy",
    "preference_margin": "luthier.ml.evaluation.metrics.likelihood:PreferenceMargin",
    "ndcg_at_10": "luthier.ml.evaluation.metrics.ranking:NdcgAt10",
    "recall_at_1": "luthier.ml.evaluation.metrics.ranking:RecallAt1",
    "recall_at_5": "luthier.ml.evaluation.metrics.ranking:RecallAt5",
    "recall_at_10": "luthier.ml.evaluation.metrics.ranking:RecallAt10",
    "mrr": "luthier.ml.evaluation.metrics.ranking:MeanReciprocalRank",
}
# A name in a recipe that expands to several figures.
FAMILIES: Final = {
    "rouge": ("rouge_1", "rouge_2", "rouge_l"),
    "exact_match": ("exact_match", "exact_match_ignoring_case"),
}
# Figures that need the labels of the rows, and so are not recipe names.
_OF_LABELS: Final = {"macro_f1": "luthier.ml.evaluation.metrics.classification:MacroF1"}
# Figures from likelihoods. All others grade the text of an answer and can be rewards.
_OF_LIKELIHOODS: Final = frozenset(
    {"perplexity", "bits_per_byte", "reward_accuracy", "preference_accuracy", "preference_margin"}
)
# Figures from the document ranking of a model with a task head.
_OF_RANKINGS: Final = frozenset({"ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr"})
# Figures that scale an answer by those of the other rows, so that none of them can be graded alone.
_OF_ALL_ROWS: Final = frozenset({"nmae"})
_FAMILY_OF: Final = {figure: family for family, figures in FAMILIES.items() for figure in figures}

RECIPE_NAMES: Final[Mapping[str, Sequence[str]]] = {
    name: FAMILIES.get(name, (name,)) for name in dict.fromkeys(_FAMILY_OF.get(figure, figure) for figure in BUILT_IN)
}
"""The valid recipe names, each with its figures."""
REWARD_NAMES: Final[Mapping[str, str]] = {
    name: place for name, place in BUILT_IN.items() if name not in _OF_LIKELIHOODS | _OF_RANKINGS | _OF_ALL_ROWS
}
"""The figures that can grade one answer in training."""


def load_metrics(names: Sequence[str]) -> list[MetricDefinition]:
    """The metrics that these names expand to, in order, each once.

    A family name expands to all its figures: `rouge` for rouge_1, rouge_2 and rouge_l.

    Raises:
        NotFoundError: a name is not registered.
        RequestError: a metric does not declare its bounds.
    """
    wanted = dict.fromkeys(figure for name in names for figure in FAMILIES.get(name, (name,)))
    for name in wanted:
        if name not in BUILT_IN and not METRICS.is_known(name):
            raise NotFoundError(
                f"metric {name!r}",
                expected=f"one of {', '.join(sorted({*BUILT_IN, *METRICS.names()}))}",
                do="correct the name, or install the package that contains it (entry point group luthier.metrics)",
            )
    return [_load(name) for name in wanted]


def reads_order(name: str) -> bool:
    """Whether a figure is about document ranking, so that no text is generated for it; False if it is not known."""
    try:
        return needs_of([name]) == {"ranking"}
    except (NotFoundError, RequestError):
        return False


def as_definitions(metrics: Sequence[str | MetricDefinition]) -> list[MetricDefinition]:
    """The given metrics, with names expanded, in order, each name once.

    Raises:
        NotFoundError: a name is not registered.
        RequestError: a metric does not declare its bounds.
    """
    found: dict[str, MetricDefinition] = {}
    for metric in metrics:
        for definition in load_metrics([metric]) if isinstance(metric, str) else [metric]:
            bounds_of(definition)
            found.setdefault(definition.name, definition)
    return list(found.values())


def title_of(name: str) -> str | None:
    """The title of a figure within a sentence; None if it is not registered or cannot be loaded."""
    if name in _OF_LABELS:
        title: str = import_string(_OF_LABELS[name]).title
        return title
    try:
        return load_metrics([name])[0].title
    except (NotFoundError, RequestError):
        return None


def limits_of(name: str) -> tuple[float | None, float | None]:
    """The least and the greatest value that a figure can have; None for an open end, and where it is not registered."""
    try:
        metric = import_string(_OF_LABELS[name]) if name in _OF_LABELS else load_metrics([name])[0]
        bounds = bounds_of(metric)
    except (NotFoundError, RequestError):
        return None, None
    lower, upper = (end if math.isfinite(end) else None for end in bounds)
    return lower, upper


def needs_of(names: Sequence[str]) -> set[Needs]:
    """The inputs of the metrics of these names: likelihoods, generated texts, pairs, options.

    Raises:
        NotFoundError: a name is not registered.
        RequestError: a metric does not declare its bounds.
    """
    return {metric.needs for metric in load_metrics(names)}


def bounds_of(metric: MetricDefinition) -> Bounds:
    """The bounds of a metric.

    Raises:
        RequestError: it declares none, or an empty range.
    """
    ends = tuple(getattr(metric, end, None) for end in ("lower", "upper"))
    lower, upper = ends
    if isinstance(lower, int | float) and isinstance(upper, int | float) and lower < upper:
        return Bounds(float(lower), float(upper))
    raise RequestError(
        f"metric {metric.name} has lower {lower} and upper {upper}",
        expected="two numbers, the lower one first: what its figure can be, so that no interval leaves it",
        do=f"declare both in {type(metric).__name__}, say lower = 0.0 and upper = 1.0, or math.inf for an open end",
    )


def _load(name: str) -> MetricDefinition:
    metric: MetricDefinition = (import_string(BUILT_IN[name]) if name in BUILT_IN else METRICS.load(name))()
    # Checked on loading: otherwise a metric without bounds would fail only after all answers are generated.
    bounds_of(metric)
    return metric
