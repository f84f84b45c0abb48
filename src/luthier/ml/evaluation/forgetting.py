"""What tuning forgot: base against tuned model on general rows, in a sentence.

Bits per byte decide: the same rows, the same bytes for every tokenizer. Luo et al., 2023, "An Empirical Study of
Catastrophic Forgetting in Large Language Models During Continual Fine-tuning", arXiv:2308.08747, likewise hold a model
after tuning against itself before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Forgetting, SystemResult, VerdictWord
from luthier.core.recipe import MetricName

METRICS: Final[tuple[MetricName, ...]] = ("bits_per_byte", "perplexity")

_OPENINGS: Final[dict[VerdictWord, str]] = {
    "worse": "It forgot",
    "better": "It forgot nothing, and gained",
    NOT_DISTINGUISHABLE: "No forgetting can be told",
}


def forgetting(
    systems: Sequence[SystemResult],
    comparisons: Sequence[Comparison],
    *,
    file: str,
    sha256: str,
    num_leaked: int = 0,
    num_in_file: int | None = None,
) -> Forgetting:
    """The finding from base and tuned model (in this order), judged by `METRICS`.

    Args:
        systems: base and tuned model.
        comparisons: tuned against base, by `METRICS`.
        file: of the general rows.
        sha256: of that file.
        num_leaked: rows that the tuned model was trained on, too.
        num_in_file: rows of the file, where not all were judged; else None.
    """
    base, tuned = systems
    found = next(c for c in comparisons if c.metric == "bits_per_byte")
    before, after = base.metrics["bits_per_byte"].value, tuned.metrics["bits_per_byte"].value
    rows = f"{tuned.num_samples:,} general {'row' if tuned.num_samples == 1 else 'rows'}"
    if num_in_file is not None and num_in_file > tuned.num_samples:
        rows += f" of {num_in_file:,}"
    sentence = (
        f"{_OPENINGS[found.verdict]}: on {rows} bits per byte went from {before:.3f} to {after:.3f} "
        f"({found.difference:+.3f}, 95% interval {found.low:+.3f} to {found.high:+.3f}; lower is better)."
    )
    if num_leaked:
        sentence += f" {num_leaked:,} of them were trained on, so it looks too small."
    return Forgetting(
        held_out_file=file,
        held_out_sha256=sha256,
        num_rows=tuned.num_samples,
        systems=tuple(systems),
        comparisons=tuple(comparisons),
        word=found.verdict,
        sentence=sentence,
    )
