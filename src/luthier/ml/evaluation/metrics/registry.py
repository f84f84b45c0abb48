"""Which metrics there are. A table of "module:Class" strings is the door: built-ins and plug-ins use the same one.

Entry points in the group `luthier.metrics` add to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.entry_points import entry_points
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.import_string import import_string
from luthier.core.recipe import METRIC_ENTRY_POINTS
from luthier.core.records.bounds import Bounds
from luthier.ml.evaluation.metrics.protocol import MetricDefinition

BUILT_IN = {
    "perplexity": "luthier.ml.evaluation.metrics.perplexity:Perplexity",
    "bits_per_byte": "luthier.ml.evaluation.metrics.bits_per_byte:BitsPerByte",
    "bleu": "luthier.ml.evaluation.metrics.bleu:Bleu",
    "rouge_1": "luthier.ml.evaluation.metrics.rouge:Rouge1",
    "rouge_2": "luthier.ml.evaluation.metrics.rouge:Rouge2",
    "rouge_l": "luthier.ml.evaluation.metrics.rouge:RougeL",
    "chrf": "luthier.ml.evaluation.metrics.chrf:Chrf",
    "exact_match": "luthier.ml.evaluation.metrics.exact_match:ExactMatch",
    "exact_match_ignoring_case": "luthier.ml.evaluation.metrics.exact_match:ExactMatchIgnoringCase",
    "token_f1": "luthier.ml.evaluation.metrics.token_f1:TokenF1",
    "reward_accuracy": "luthier.ml.evaluation.metrics.preference:RewardAccuracy",
    "preference_accuracy": "luthier.ml.evaluation.metrics.preference:PreferenceAccuracy",
    "preference_margin": "luthier.ml.evaluation.metrics.preference:PreferenceMargin",
    "label_accuracy": "luthier.ml.evaluation.metrics.label_accuracy:LabelAccuracy",
}
# A name in a recipe that expands to several figures.
FAMILIES = {
    "rouge": ("rouge_1", "rouge_2", "rouge_l"),
    "exact_match": ("exact_match", "exact_match_ignoring_case"),
}


def load_metrics(names: Sequence[str]) -> list[MetricDefinition]:
    """The metrics that these names expand to, in order, each once.

    A family name expands to all its figures: `rouge` for rouge_1, rouge_2 and rouge_l.

    Raises:
        NotFoundError: no table knows a name.
        RequestError: a metric does not say what its figure can be.
    """
    table = {entry.name: entry.value for entry in entry_points(group=METRIC_ENTRY_POINTS)} | BUILT_IN
    wanted = dict.fromkeys(figure for name in names for figure in FAMILIES.get(name, (name,)))
    for name in wanted:
        if name not in table:
            raise NotFoundError(
                f"metric {name!r}",
                expected=f"one of {', '.join(sorted(set(table) | set(FAMILIES)))}",
                do="correct the name, or install the package that brings it (entry point group luthier.metrics)",
            )
    return [_load(table[name]) for name in wanted]


def as_definitions(metrics: Sequence[str | MetricDefinition]) -> list[MetricDefinition]:
    """Metrics as they are, and those that names expand to, in order, each name once.

    Raises:
        NotFoundError: no table knows a name.
        RequestError: a metric does not say what its figure can be.
    """
    found: dict[str, MetricDefinition] = {}
    for metric in metrics:
        for definition in load_metrics([metric]) if isinstance(metric, str) else [metric]:
            bounds_of(definition)
            found.setdefault(definition.name, definition)
    return list(found.values())


def bounds_of(metric: MetricDefinition) -> Bounds:
    """What the figure of a metric can be.

    Raises:
        RequestError: it declares none, or none with room between its ends.
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


def _load(place: str) -> MetricDefinition:
    metric: MetricDefinition = import_string(place)()
    bounds_of(metric)
    return metric
