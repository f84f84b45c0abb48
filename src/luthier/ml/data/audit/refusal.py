"""Boilerplate refusals in the answers: "as an AI language model", "I'm sorry, but I can't". A warning.

A model trained on them learns to refuse in the same words. They may be wanted in safety data, which is for a person to
say. The phrases (English, German, French, Spanish, Italian) are this project's own list; polite refusals in free words
are not seen.
"""

from __future__ import annotations

from typing import Final

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_rows, excerpt, has_completions, rows

_NAME = "refusal"
_HEAD_CHARACTERS: Final = 300
# Self-descriptions of a model, wherever they stand.
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
    if not has_completions(table.frame):
        return Skipped("the rows have no completions")
    # Typographic apostrophes would hide "can’t" from the phrases.
    heads = table.frame["completion"].str.head(_HEAD_CHARACTERS).str.replace_all("’", "'", literal=True)
    positions = heads.str.contains(_REFUSAL).fill_null(False).arg_true().to_list()
    if not positions:
        return []
    phrases = heads.gather(positions).str.extract(f"({_REFUSAL})").str.to_lowercase().str.strip_chars()
    counted = phrases.alias("phrase").value_counts().sort(["count", "phrase"], descending=[True, False]).head(10)
    return [
        about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with a boilerplate refusal",
            fix="write real answers, or remove the rows (data repair --only refusal), unless the model is to refuse so",
            notes={at: str(phrases[place]) for place, at in enumerate(positions[:5])},
            excerpts={at: excerpt(table.frame["completion"][at]) for at in positions[:5]},
            details={"phrases": {str(phrase): int(num) for phrase, num in counted.iter_rows()}},
        )
    ]
