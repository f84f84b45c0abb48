"""Which names of evaluated systems are ours, such as `base` or `linear classifier`, and which people have given.

Pages in other languages translate ours and keep all others as they are.
"""

from __future__ import annotations

import re
from typing import Final

from luthier.core.results.release_gate import BASE
from luthier.ml.charts.spec import OwnName

SIDES: Final = (BASE, "tuned")
"""What `luthier train` calls the two models that it compares."""
_BASELINES: Final = re.compile(
    r"commonest answer|most popular (?:documents|of those offered)|nearest training row \(\w+\)|linear classifier"
    r"|ridge regression|copy rules|unchanged text|random order"
)
_WITH_EXAMPLES: Final = re.compile(r".+ \+ [\d,]+ (?:nearest )?examples?")


def is_baseline(name: str) -> bool:
    """Whether it is the name of a baseline without a language model."""
    return _BASELINES.fullmatch(name) is not None


def has_examples(name: str) -> bool:
    """Whether it is a model with examples in its prompt: `NAME + 4 examples`. NAME stays in every language."""
    return _WITH_EXAMPLES.fullmatch(name) is not None


def chart_name(name: str) -> str:
    """The name of a system in a chart, which translates ours and keeps those of people and programs."""
    return name if name in SIDES or is_baseline(name) or has_examples(name) else OwnName(name)
