"""Names of people, where presidio-analyzer and a spaCy model are installed; patterns cannot find them.

Presidio is used for PERSON only, in English; it downloads nothing here: without a model on the machine names are not
searched, and `why_not` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from luthier.ml.data.personal_data.span import Span

SPACY_MODELS: Final = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
_MIN_SCORE: Final = 0.6
_MASK: Final = "Person "

FindNames = Callable[[str], Sequence[Span]]


def why_not() -> str | None:
    """Why names cannot be searched on this machine; None where they can."""
    if find_spec("presidio_analyzer") is None:
        return "presidio is not installed"
    if _model() is None:
        return f"presidio has no spaCy model; install one of {', '.join(SPACY_MODELS)}"
    return None


@cache
def name_finder() -> FindNames | None:
    """The finder, made once; None where `why_not` has a reason."""
    if why_not() is not None:
        return None
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    configuration = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": _model()}]}
    engine = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=configuration).create_engine())

    def find(text: str) -> list[Span]:
        # Only PERSON: the other kinds are found by check digits and forms, with fewer false alarms.
        results = engine.analyze(text=text, language="en", entities=["PERSON"], score_threshold=_MIN_SCORE)
        return names_from(text, results)

    return find


def names_from(text: str, results: Sequence[Any]) -> list[Span]:
    """Presidio's results as spans, in order. Reserved: `Person A`, as masks have it."""
    found = [(int(result.start), int(result.end)) for result in results]
    return [Span(s, e, "name", text[s:e], text[s:e].startswith(_MASK)) for s, e in sorted(found) if s < e]


def _model() -> str | None:
    return next((name for name in SPACY_MODELS if find_spec(name) is not None), None)
