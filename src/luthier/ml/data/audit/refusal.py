"""Boilerplate refusals in the answers: "as an AI language model", "I'm sorry, but I can't". A warning.

A model trained on them learns to refuse in the same words. They may be wanted in safety data, which is for a person to
say. The phrases (English, German, French, Spanish, Italian) are this project's own list; polite refusals in free words
are not seen.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_rows, excerpt, has_completions, rows

_NAME = "refusal"
_HEAD_CHARACTERS: Final = 300
# Self-descriptions of a model, wherever they are.
_SELF: Final = (
    r"\bas an? (?:ai|artificial intelligence)(?: language)?(?: model| assistant| chatbot| system)?,? i\b"
    r"|\bas an? (?:ai|artificial intelligence) language model\b"
    r"|\bas a (?:large )?language model\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|artificial intelligence)(?: language)?(?: model| assistant)?"
    r"(?:,| and| so)[^.!?\n]{0,40} (?:can't|cannot|can not|don't|do not|am not able)\b"
    r"|\bals (?:ki|künstliche intelligenz)(?:-sprachmodell|-modell|-assistent)?,? (?:kann|bin|habe|darf) ich\b"
    r"|\bals (?:ki-)?sprachmodell\b"
    r"|\ben tant qu(?:'|e )(?:ia|intelligence artificielle|modèle (?:de langage|linguistique))\b"
    r"|\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje)\b[^.!?\n]{0,40} (?:no puedo|no tengo)\b"
    r"|\bin quanto (?:ia|intelligenza artificiale|modello (?:di linguaggio|linguistico))\b"
    r"|\bcome (?:ia|intelligenza artificiale|modello (?:di linguaggio|linguistico)),"
)
# Refusals, only where the answer begins with them.
_START: Final = (
    r"^\W*(?:(?:i'm|i am|im) (?:really |very |so |truly )?sorry|sorry|i apologi[sz]e|apologies|unfortunately)[,.!]?"
    r"(?: but| however,?)? ?i(?:'m| am)? ?(?:can't|cannot|can not|won't|will not|couldn't|not able to|unable to)"
    r" (?:assist|help|provide|fulfil|fulfill|comply|do that|answer|create|generate|write|support|engage|discuss)"
    r"|^\W*i(?:'m| am)? ?(?:can't|cannot|can not|won't|will not|not able to|unable to)"
    r" (?:assist with|help (?:you )?with|fulfill?|comply with|provide (?:that|this|you|any)|engage in|create content)"
    r"|^\W*(?:es tut mir leid|tut mir leid|leider|entschuldigung)[,.!]?(?: aber)? (?:ich )?kann (?:ich )?"
    r"(?:dir |ihnen |dabei |diese |dieser |das |bei |keine )"
    r"|^\W*(?:je suis (?:vraiment )?désolée?|désolée?|je regrette)[,.!]?(?: mais)? je ne (?:peux|suis) pas\b"
    r"|^\W*(?:lo siento(?: mucho)?|perdón|lamentablemente)[,.!]?(?: pero)? no puedo\b"
    r"|^\W*(?:mi dispiace|spiacente|purtroppo)[,.!]?(?: ma)? non posso\b"
)
_REFUSAL: Final = f"(?i)(?:{_START}|{_SELF})"


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """Rows whose completion refuses within its first 300 characters."""
    table = request.table
    if not has_completions(table):
        return Skipped("the rows have no completions")
    positions: list[int] = []
    phrases: Counter[str] = Counter()
    notes: dict[int, str] = {}
    for start, (at, said) in table.rows.map(_refusals_in, "completion"):
        phrases.update(said)
        places = [start + place for place in at]
        notes.update(dict(zip(places[: 5 - len(notes)], said, strict=False)))
        positions.extend(places)
    if not positions:
        return []
    counted = sorted(phrases.items(), key=lambda item: (-item[1], item[0]))[:10]
    shown = table.rows.take(positions[:5], "completion")["completion"].to_list()
    return [
        about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with a boilerplate refusal",
            fix="write real answers, or remove the rows (data repair --only refusal), unless the model is to refuse so",
            notes=notes,
            excerpts={at: excerpt(text) for at, text in zip(positions[:5], shown, strict=True)},
            details={"phrases": dict(counted)},
        )
    ]


def _refusals_in(part: pl.DataFrame) -> tuple[list[int], list[str]]:
    """The rows of a part whose answer refuses, and the phrase of each."""
    # Typographic apostrophes would hide "can’t" from the phrases.
    heads = part["completion"].str.head(_HEAD_CHARACTERS).str.replace_all("’", "'", literal=True)
    found = heads.str.contains(_REFUSAL).fill_null(False).arg_true()
    said = heads.gather(found).str.extract(f"({_REFUSAL})").str.to_lowercase().str.strip_chars().to_list()
    return found.to_list(), list(map(str, said))
