"""Text that gives orders to a model or breaks out of its turn.

Tokens of chat templates inside a text are an error: the tokenizer may take them for real ends of turns, and then the
loss mask is wrong. The rest is a warning: attempts to override instructions, markers of a system prompt, text hidden in
invisible characters, and images whose address carries data away. Patterns see known phrasings only, no paraphrase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import polars as pl

from luthier.core.results.audit import Finding, Severity
from luthier.ml.data.audit.base import NUM_EXAMPLES, AuditRequest, about_rows, excerpt, rows
from luthier.ml.data.audit.table import AuditTable

_NAME = "prompt_injection"
_TEMPLATE: Final = (
    r"<\|[a-z][a-z0-9_]{1,30}\|>|<｜[^｜<>]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>\[|<(?:start|end)_of_turn>"
    r"|<\|(?:START|END)_OF_TURN_TOKEN\|>"
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|</s>\s*$"
)
_OVERRIDE: Final = (
    r"(?i)\b(?:ignore|disregard|forget|override|bypass)\b[^.!?\n]{0,30}\b(?:all|any|previous|prior|above|earlier|preceding"
    r"|your|system)\b[^.!?\n]{0,30}\b(?:instructions?|prompts?|directives?|guidelines|system message|programming)\b"
    r"|\b(?:ignoriere|vergiss)\b[^.!?\n]{0,40}\b(?:anweisungen|instruktionen|vorgaben)\b"
    r"|\b(?:ignore|ignorez|oublie|oubliez)\b[^.!?\n]{0,40}\b(?:instructions|consignes) (?:précédentes|antérieures)"
    r"|\b(?:ignora|olvida|ignore)\b[^.!?\n]{0,40}\binstrucciones (?:anteriores|previas)"
    r"|\b(?:ignora|dimentica)\b[^.!?\n]{0,40}\bistruzioni precedenti"
    r"|\byou are now (?:in )?(?:dan|developer mode|jailbroken|a different ai|an unrestricted|unrestricted)\b"
    r"|\bdo anything now\b|\bjailbreak mode\b"
    r"|\b(?:reveal|print|repeat|show|output|leak)\b[^.!?\n]{0,30}\b(?:your|the) (?:system|initial|hidden) "
    r"(?:prompt|instructions)\b"
)
_SORTS: Final[dict[str, tuple[Severity, str, str, str]]] = {
    "template_token": (
        "error",
        _TEMPLATE,
        "with tokens of a chat template in the text, which break turns and the loss mask",
        "remove these tokens from the texts, or give the rows as messages and let the template write them",
    ),
    "override": (
        "warning",
        _OVERRIDE,
        "with an attempt to override a model's instructions",
        "remove these rows (data repair --only prompt_injection) unless they are meant to teach resistance",
    ),
    "system_marker": (
        "warning",
        r"(?im)^\s*(?:#{1,3}\s*(?:system|new instructions?)\s*:|\[system\]|<system>|(?:begin )?system prompt:)",
        "with a marker of a system prompt in the text",
        "give the system prompt as a separate message, or remove the marker",
    ),
    "hidden_text": (
        "warning",
        r"[\x{200b}\x{200c}\x{200d}\x{2060}\x{feff}]{4,}|[\x{e0020}-\x{e007e}]{8,}",
        "with text hidden in invisible characters",
        "remove the invisible characters: luthier data repair --only encoding takes most of them",
    ),
    "exfiltration": (
        "warning",
        r"!\[[^\]\n]{0,200}\]\(https?://[^)\s]{1,300}[?&][\w-]{1,40}=(?:\{|\[|<|%7[bB]|\$)[^)\s]{0,300}\)",
        "with an image whose address carries a placeholder for data",
        "remove the image",
    ),
}


def check(request: AuditRequest) -> list[Finding]:
    """One finding a sort (details.sort): template_token, override, system_marker, hidden_text, exfiltration."""
    return [finding for sort in _SORTS for finding in _of_sort(request.table, sort)]


def _of_sort(table: AuditTable, sort: str) -> Iterator[Finding]:
    severity, pattern, what, fix = _SORTS[sort]
    positions: list[int] = []
    counts: Counter[str] = Counter()
    notes: dict[int, str] = {}
    excerpts: dict[int, str] = {}
    for start, (at, matched, shown) in table.rows.map(_matches_in, "text", shared=(pattern,)):
        counts.update(matched)
        places = [start + place for place in at]
        for place, (note, said) in zip(places[: NUM_EXAMPLES - len(notes)], shown, strict=False):
            notes[place], excerpts[place] = note, said
        positions.extend(places)
    if not positions:
        return
    counted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
    yield about_rows(
        table,
        _NAME,
        severity,
        positions,
        message=f"{rows(len(positions))} {what}",
        fix=fix,
        notes=notes,
        excerpts=excerpts,
        details={"sort": sort, "found": {_printable(found): num for found, num in counted}},
    )


def _matches_in(part: pl.DataFrame, pattern: str) -> tuple[list[int], list[str], list[tuple[str, str]]]:
    """The rows of a part that match, the beginning of each match, and note and excerpt of the first rows."""
    at = part["text"].str.contains(pattern).arg_true()
    if not len(at):
        return [], [], []
    texts = part["text"].gather(at)
    # The outer group makes the whole match available: polars extracts groups only.
    matched = texts.str.extract(f"({pattern})").str.strip_chars()
    first = zip(texts.head(NUM_EXAMPLES), matched.head(NUM_EXAMPLES), strict=True)
    shown = [(_printable(found), excerpt(text, max(text.find(found), 0))) for text, found in first]
    return at.to_list(), matched.str.head(80).to_list(), shown


def _printable(found: str) -> str:
    """What was found, readable: tag characters (U+E0020 to U+E007E) as the ASCII that they represent."""
    plain = "".join(chr(ord(c) - 0xE0000) if 0xE0020 <= ord(c) <= 0xE007E else c for c in found[:80])
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in plain)
