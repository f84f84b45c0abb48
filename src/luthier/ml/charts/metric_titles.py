"""What metrics are called, for whoever shows figures without the libraries that compute them."""

from __future__ import annotations

import re
from typing import Final

_TITLES: Final = {
    "bleu": "BLEU",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "token_f1": "Token F1",
}
_SCALE: Final = re.compile(r"-?\d+ to \d+")


def on_scale(unit: str) -> str:
    """What stands behind a number whose scale is not the usual one from 0 to 1: ` (on 0 to 100)`; empty for others."""
    return f" (on {unit})" if _SCALE.fullmatch(unit) and unit != "0 to 1" else ""


def metric_heading(name: str) -> str:
    """The name of a metric as a heading: `rouge_l` is ROUGE-L, `exact_match` is Exact match."""
    words = name.replace("_", " ")
    return _TITLES.get(name) or words[:1].upper() + words[1:]
