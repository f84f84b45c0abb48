"""Which languages the rows are in, rows in another language than most, and answers in another language than asked.

The answers count, since they are what is learned; where most of them are too short to tell (classes, figures), the
prompts do. The mix itself is a note. Strays are a warning: rows surely in a language that less than 5% of the rows are
in are more often an accident of collection than a wish. So are answers in another language than their prompt, unless
more than half of the rows are so: then it is a task, such as translation. Languages that are hard to tell apart in a
few words (Danish and Norwegian, Indonesian and Malay ...) count as one for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, about_file, about_rows, has_prompts, learned, rows
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.files.row_frames import TextColumn
from luthier.ml.data.text.languages import UNDETERMINED, languages

_NAME = "language"
STRAY_FRACTION: Final = 0.05
SURE: Final = 0.95
ON_PURPOSE: Final = 0.5
_ALIKE: Final = (
    ("da", "no", "nn", "sv", "fo"),
    ("bs", "hr", "sr", "sl"),
    ("cs", "sk"),
    ("id", "ms", "jv"),
    ("gl", "pt"),
    ("es", "ca", "an", "ext", "oc"),
    ("zh", "wuu", "yue"),
    ("ru", "be", "uk", "bg", "mk"),
    ("fa", "ar", "ary", "arz", "ur", "sdh"),
    ("hi", "mr", "ne", "sa"),
    ("nl", "af", "fy", "lb"),
    ("en", "pcm"),
    ("it", "lij", "vec"),
    ("fr", "gcf", "gcr", "wa", "ht"),
    ("tr", "az", "crh"),
)


def check(request: AuditRequest) -> list[Finding]:
    """The mix (always), strays and mismatches (details.sort: "mix", "stray", "prompt_differs")."""
    table = request.table
    if not table.height:
        return []
    answers = languages(learned(table), request.progress)
    if not has_prompts(table):
        return [_mix(answers, "answers"), *_strays(table, answers, learned(table))]
    prompts = languages(table.rows.texts("prompt"), request.progress)
    num_known = [int((side["language"] != UNDETERMINED).sum()) for side in (answers, prompts)]
    if num_known[0] < table.height / 2 and num_known[0] < num_known[1]:
        found = [_mix(prompts, "prompts"), *_strays(table, prompts, table.rows.texts("prompt"))]
    else:
        found = [_mix(answers, "answers"), *_strays(table, answers, learned(table))]
    return [*found, *_mismatches(table, prompts, answers)]


def _mix(side: pl.DataFrame, what: str) -> Finding:
    counts = _counts(side["language"])
    num_undetermined = counts.pop(UNDETERMINED, 0)
    total = side.height
    shown = ", ".join(f"{language} {num / total:.1%}" for language, num in list(counts.items())[:5])
    left = len(counts) - 5
    why = " (most answers are too short to tell)" if what == "prompts" else ""
    message = f"language of the {what}{why}: {shown or 'none recognised'}"
    message += f" and {left} more" if left > 0 else ""
    message += f"; undetermined {num_undetermined / total:.1%}" if num_undetermined else ""
    details: dict[str, Any] = {"sort": "mix", "of": what, "counts": counts, "undetermined": num_undetermined}
    details["num_rows"] = total
    return about_file(_NAME, "info", message=message, fix="nothing, if this is the mix that you want", details=details)


def _strays(table: AuditTable, side: pl.DataFrame, texts: TextColumn) -> Iterator[Finding]:
    # Languages that are easily confused count as one, or a few Danish rows among Norwegian ones would be strays.
    groups = _grouped(side["language"])
    counts = _counts(groups)
    counts.pop(UNDETERMINED, None)
    num_determined = sum(counts.values())
    # Of the rows whose language is known: undetermined ones would make every language look rare.
    rare = [group for group, num in counts.items() if num < STRAY_FRACTION * num_determined]
    is_stray = groups.is_in(rare) & (side["probability"] >= SURE)
    positions = is_stray.arg_true().to_list()
    if not positions:
        return
    strays = _counts(side["language"].filter(is_stray))
    yield about_rows(
        table,
        _NAME,
        "warning",
        positions,
        message=f"{rows(len(positions))} in a language that few rows use: "
        + ", ".join(f"{language} ({num:,})" for language, num in list(strays.items())[:5]),
        fix="remove them (luthier data repair --only language), or add rows in these languages if they are wanted",
        notes={at: f"{side['language'][at]} ({side['probability'][at]:.0%} sure)" for at in positions[:5]},
        excerpts=dict(zip(positions[:5], texts.take(positions[:5]).to_list(), strict=True)),
        details={"sort": "stray", "counts": strays},
    )


def _mismatches(table: AuditTable, prompts: pl.DataFrame, answers: pl.DataFrame) -> Iterator[Finding]:
    asked, answered = _grouped(prompts["language"]), _grouped(answers["language"])
    both_sure = (prompts["probability"] >= SURE) & (answers["probability"] >= SURE)
    differs = both_sure & (asked != answered) & (asked != UNDETERMINED) & (answered != UNDETERMINED)
    positions = differs.arg_true().to_list()
    if not positions:
        return
    is_task = len(positions) > ON_PURPOSE * int(both_sure.sum())
    pairs = pl.DataFrame({"pair": (prompts["language"] + " -> " + answers["language"]).filter(differs)})
    counts = _counts(pairs["pair"])
    found = about_rows(
        table,
        _NAME,
        "info" if is_task else "warning",
        positions,
        message=f"{rows(len(positions))} with an answer in another language than the prompt: "
        + ", ".join(f"{pair} ({num:,})" for pair, num in list(counts.items())[:5]),
        fix="nothing, if this is translation" if is_task else "check these rows; remove those where it is not meant",
        notes={at: f"{prompts['language'][at]} -> {answers['language'][at]}" for at in positions[:5]},
        details={"sort": "prompt_differs", "counts": counts},
    )
    yield found.model_copy(update={"lines": ()})  # a task or an accident: only a person can tell


def _grouped(codes: pl.Series) -> pl.Series:
    return codes.replace({code: group[0] for group in _ALIKE for code in group})


def _counts(values: pl.Series) -> dict[str, int]:
    """Value -> rows, the most frequent first, equal ones by name."""
    counted = values.alias("value").value_counts().sort(["count", "value"], descending=[True, False])
    return {str(value): int(num) for value, num in counted.iter_rows()}
