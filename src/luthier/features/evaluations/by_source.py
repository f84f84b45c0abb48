"""A verdict with a sentence for each source of its rows, where the training rows of a run come from several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.data_sources import SourcePlan, source_place
from luthier.core.evaluation import Comparison, SourceFigures, Verdict
from luthier.features.models.resolve import Candidate

if TYPE_CHECKING:
    from luthier.ml.evaluation.compare import Judged


def with_sources(
    words: Verdict | None,
    judged: Judged,
    counted: Sequence[Comparison],
    candidates: Sequence[Candidate],
    sources: Sequence[SourcePlan],
    row_ids: Sequence[str],
) -> tuple[Verdict | None, tuple[SourceFigures, ...]]:
    """The verdict with a detail for each source of the rows, and the figures behind it; of several sources alone.

    The last system is compared with the first one, by the metric of the verdict. row_ids: of what was evaluated; of a
    search these are queries, each once, and fewer than rows.
    """
    from luthier.ml.evaluation.by_source import figures_by_source, source_details
    from luthier.ml.evaluation.metrics.registry import as_definitions

    pair = (candidates[0].name, candidates[-1].name)
    if not sources or words is None or all((one.baseline, one.candidate) != pair for one in counted):
        return words, ()
    names = [sources[source_place(sources, row_id)].name for row_id in row_ids]
    metric = as_definitions([words.metric])[0]
    found = figures_by_source(judged, metric, names, baseline=pair[0], candidate=pair[1])
    return words.model_copy(update={"details": (*words.details, *source_details(found))}), found
