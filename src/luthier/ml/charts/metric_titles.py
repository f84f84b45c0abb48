"""What metrics are called in sentences and headings: by the title that each metric declares."""

from __future__ import annotations

import re
from typing import Final

from luthier.core.import_string import import_string

_SCALE: Final = re.compile(r"-?\d+ to \d+")


def on_scale(unit: str) -> str:
    """What follows a number whose scale is not the usual one from 0 to 1: ` (on 0 to 100)`; empty for others."""
    return f" (on {unit})" if _SCALE.fullmatch(unit) and unit != "0 to 1" else ""


def metric_title(name: str) -> str:
    """The name of a metric in the middle of a sentence: `rouge_l` is ROUGE-L, `exact_match` is exact match.

    An evaluation may outlive the package that brought one of its metrics; that one goes by its bare name then.
    """
    found: str | None = import_string("luthier.ml.evaluation.metrics.registry:title_of")(name)
    return name.replace("_", " ") if found is None else found


def metric_heading(name: str) -> str:
    """The name of a metric as a heading: `rouge_l` is ROUGE-L, `exact_match` is Exact match."""
    return start(metric_title(name))


def start(text: str) -> str:
    """The same text at the start of a sentence; a word that brings its own capitals (chrF) keeps them."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.islower() else text
