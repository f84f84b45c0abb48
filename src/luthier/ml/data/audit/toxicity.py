"""Texts that are likely to be toxic: by a list of words, or by a classifier where one is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.results.audit import Finding, Severity
from luthier.ml.data.audit.base import NUM_EXAMPLES, AuditRequest, ToxicityModel, about_rows, rows
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
    else:
        judge = "word list"
        probabilities, by_class = _by_words(request)
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
    notes = {at: f"probability {probabilities[at]:.2f}" for at in found[:NUM_EXAMPLES].tolist()}
    if request.toxicity_model is None:
        # The words of the rows that are shown are looked up again, rather than kept for all rows.
        texts = table.rows.take(list(notes), "text")["text"].to_list()
        notes = {
            at: f"{note}: {', '.join(_kinds(text))}" for (at, note), text in zip(notes.items(), texts, strict=True)
        }
    are = "is" if len(found) == 1 else "are"
    return [
        about_rows(
            table,
            "toxicity",
            severity,
            found,
            message=f"{rows(len(found))} {are} likely to be toxic, according to the {judge} (probability 0.5 or more)",
            fix=f"check the examples, then remove what should not be learned: "
            f"luthier data repair {table.command_path} -o clean.jsonl --only toxicity",
            notes=notes,
            details=details,
        )
    ]


def _kinds(text: str) -> list[str]:
    return list(dict.fromkeys(word.kind for word in toxicity_of(text, english()).words))


def _by_words(request: AuditRequest) -> tuple[npt.NDArray[np.float64], dict[str, int]]:
    """Probabilities by the list (0 where it has no word), and how many toxic rows have a word of each class."""
    table = request.table.rows
    probabilities = np.zeros(table.height)
    by_class: Counter[str] = Counter()
    with request.progress.task("check toxicity", table.height, "row") as task:
        for start, found in table.map(_toxic_in, "text", advance=task.advance):
            for at, probability, kinds in found:
                probabilities[start + at] = probability
                by_class.update(kinds)
    return probabilities, dict(sorted(by_class.items()))


def _toxic_in(part: pl.DataFrame) -> list[tuple[int, float, list[str]]]:
    """Place, probability and classes of the rows with words of the list; classes of toxic rows alone."""
    words = english()
    # One regular expression over the column leaves few rows for the slow search.
    candidates = np.flatnonzero(words.may_be_in(part["text"]).to_numpy())
    found = []
    for at, text in zip(candidates.tolist(), part["text"].gather(candidates).to_list(), strict=True):
        toxicity = toxicity_of(text, words)
        is_toxic = toxicity.probability >= THRESHOLD
        kinds = list(dict.fromkeys(word.kind for word in toxicity.words)) if is_toxic else []
        found.append((at, toxicity.probability, kinds))
    return found


def _by_model(request: AuditRequest, model: ToxicityModel) -> npt.NDArray[np.float64]:
    found = [np.zeros(0)]
    with request.progress.task("check toxicity", request.table.height, "row") as task:
        for _, part in request.table.rows.parts("text"):
            for start in range(0, part.height, _BATCH_ROWS):
                batch = part["text"].slice(start, _BATCH_ROWS).to_list()
                found.append(np.asarray(model(batch), dtype=np.float64))
                task.advance(len(batch))
    return np.concatenate(found)
