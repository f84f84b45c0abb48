"""Texts that are likely to be toxic: by a list of words, or by a classifier where one is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.results.audit import Finding, Severity
from luthier.ml.data.audit.base import AuditRequest, ToxicityModel, about_rows, rows
from luthier.ml.data.text.toxicity import CANNOT_SEE, MEASURED, THRESHOLD, english, toxicity_of

_MANY: Final = 0.01
_BATCH_ROWS: Final = 512


def check(request: AuditRequest) -> Sequence[Finding]:
    """One finding about the rows with a probability of at least 0.5, the likeliest first.

    Severity: warning from 1% of the rows on, info below; never an error, since neither a list nor a classifier knows
    what the data is for (a set for training a filter is full of it). Details say how well the list was measured to
    judge.
    """
    table = request.table
    if request.toxicity_model is not None:
        judge = request.toxicity_model_name or "text classifier"
        probabilities = _by_model(request, request.toxicity_model)
        details: dict[str, Any] = {"judge": judge, "threshold": THRESHOLD}
        notes: dict[int, str] = {}
    else:
        judge = "word list"
        probabilities, notes, by_class = _by_words(request)
        details = {
            "judge": judge,
            "threshold": THRESHOLD,
            "rows_by_class": by_class,
            "cannot_see": CANNOT_SEE,
            "measured": MEASURED,
        }
    found = np.flatnonzero(probabilities >= THRESHOLD)
    if not len(found):
        return []
    found = found[np.argsort(-probabilities[found], kind="stable")]
    severity: Severity = "warning" if len(found) / table.num_rows >= _MANY else "info"
    are = "is" if len(found) == 1 else "are"
    return [
        about_rows(
            table,
            "toxicity",
            severity,
            found,
            message=f"{rows(len(found))} {are} likely to be toxic, says the {judge} (probability 0.5 or more)",
            fix=f"look at the examples, then drop what should not be learned: "
            f"luthier data repair {table.command_path} -o clean.jsonl --only toxicity",
            notes={p: f"probability {probabilities[p]:.2f}{notes.get(p, '')}" for p in found[:10].tolist()},
            details=details,
        )
    ]


def _by_words(request: AuditRequest) -> tuple[npt.NDArray[np.float64], dict[int, str], dict[str, int]]:
    """Probabilities by the list (0 where it has no word), notes, and how many toxic rows have a word of each class."""
    texts, words = request.table.frame["text"], english()
    probabilities, notes = np.zeros(texts.len()), {}
    by_class: dict[str, int] = {}
    # One regular expression over the column leaves few rows for the slow search.
    candidates = np.flatnonzero(words.may_be_in(texts).to_numpy())
    with request.progress.task("judge toxicity", len(candidates), "row") as task:
        for start in range(0, len(candidates), _BATCH_ROWS):
            batch = candidates[start : start + _BATCH_ROWS]
            for position, text in zip(batch.tolist(), texts.gather(batch).to_list(), strict=True):
                toxicity = toxicity_of(text, words)
                probabilities[position] = toxicity.probability
                if toxicity.probability >= THRESHOLD:
                    kinds = dict.fromkeys(word.kind for word in toxicity.words)
                    notes[position] = f": {', '.join(kinds)}"
                    for kind in kinds:
                        by_class[kind] = by_class.get(kind, 0) + 1
            task.advance(len(batch))
    return probabilities, notes, dict(sorted(by_class.items()))


def _by_model(request: AuditRequest, model: ToxicityModel) -> npt.NDArray[np.float64]:
    texts = request.table.frame["text"]
    found: list[float] = []
    with request.progress.task("judge toxicity", texts.len(), "row") as task:
        for start in range(0, texts.len(), _BATCH_ROWS):
            batch = texts.slice(start, _BATCH_ROWS).to_list()
            found.extend(model(batch))
            task.advance(len(batch))
    return np.asarray(found, dtype=np.float64)
