"""How sure a figure is: intervals, tests, and how many rows it takes."""

from luthier.ml.evaluation.statistics.intervals import (
    LEVEL,
    POWER,
    Difference,
    Interval,
    bootstrap_interval,
    difference_of,
    holm,
    interval_of,
    is_settled,
    mcnemar,
    minimum_detectable_difference,
    paired_bootstrap,
    permutation_test,
    rows_needed,
    verdict_word,
)
from luthier.ml.evaluation.statistics.resampling import NUM_RESAMPLES, cluster_sums, resampled_sums
from luthier.ml.evaluation.statistics.seeds import difference_over_seeds, over_seeds

__all__ = [
    "LEVEL",
    "NUM_RESAMPLES",
    "POWER",
    "Difference",
    "Interval",
    "bootstrap_interval",
    "cluster_sums",
    "difference_of",
    "difference_over_seeds",
    "holm",
    "interval_of",
    "is_settled",
    "mcnemar",
    "minimum_detectable_difference",
    "over_seeds",
    "paired_bootstrap",
    "permutation_test",
    "resampled_sums",
    "rows_needed",
    "verdict_word",
]
