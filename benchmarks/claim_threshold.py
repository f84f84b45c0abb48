"""From which share of its words is a sentence taken as supported? The curve behind `grounding.claims.THRESHOLD`.

    python benchmarks/claim_threshold.py

72 sentences about the example's corpus, written by hand (examples/law_firm/cited/claims.jsonl): 24 that it says in
close words and 12 in free ones, 24 that it does not say, and 12 with its own words twisted into what it denies. Prints
JSON: for each threshold how many of each sort are taken as supported, and the balanced accuracy with its 95% interval
over resampled sentences. What words alone cannot tell stands there, too: free ones are missed, twisted ones are taken.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from luthier.ml.evaluation.grounding.claims import THRESHOLD, claim_findings
from luthier.ml.evaluation.grounding.corpus import Corpus

CITED = Path(__file__).resolve().parents[1] / "examples" / "law_firm" / "cited"
THRESHOLDS = (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)
SORTS = ("close", "free", "other", "twisted")
NUM_RESAMPLES = 2000


def corpus() -> Corpus:
    """The example's documents."""
    texts = {str(path.relative_to(CITED)): path.read_text(encoding="utf-8") for path in CITED.rglob("corpus/**/*.md")}
    return Corpus(texts, forms=("us_case", "us_statute", "state_statute", "section"))


def curve() -> list[dict[str, float]]:
    """One entry a threshold."""
    rows = [json.loads(line) for line in (CITED / "claims.jsonl").read_text(encoding="utf-8").splitlines()]
    documents = corpus()
    label = np.array([row["is_supported"] for row in rows])
    draws = np.random.default_rng(0).integers(0, len(rows), (NUM_RESAMPLES, len(rows)))
    found = []
    for threshold in THRESHOLDS:
        said = np.array(
            [all(one.is_supported for one in claim_findings(row["sentence"], documents, threshold)) for row in rows]
        )
        drawn_label, drawn = label[draws], said[draws]
        balanced = _balanced((drawn & drawn_label).sum(1), drawn_label.sum(1), (drawn & ~drawn_label).sum(1), len(rows))
        low, high = np.quantile(balanced, [0.025, 0.975])
        taken, wrongly = int((said & label).sum()), int((said & ~label).sum())
        found.append(
            {
                "threshold": threshold,
                **{sort: int(said[[row["sort"] == sort for row in rows]].sum()) for sort in SORTS},
                "balanced_accuracy": float(_balanced(taken, label.sum(), wrongly, len(rows))),
                "low": float(low),
                "high": float(high),
            }
        )
    return found


def _balanced(taken, num_supported, wrongly, num):  # type: ignore[no-untyped-def]
    return (taken / num_supported + 1 - wrongly / (num - num_supported)) / 2


if __name__ == "__main__":
    print(json.dumps({"threshold": THRESHOLD, "curve": curve()}, indent=1))
