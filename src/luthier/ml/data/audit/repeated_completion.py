"""One answer given to many prompts, and answers that repeat a passage in a loop. Warnings.

The same answer of at least 20 characters to five different prompts or more teaches a stock phrase. Short answers
("yes", "42") and answers that are classes repeat by nature and are left alone. `loop_in` finds a passage that follows
itself many times, which is how a language model fails when it gets stuck.

Source: Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration", section 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, about_rows, class_answers, excerpt, learned, rows
from luthier.ml.data.audit.table import AuditTable

LONGEST_PERIOD_CHARACTERS: Final = 200
FEWEST_TIMES: Final = 4
SHORTEST_LOOP_CHARACTERS: Final = 80
_PROBE_CHARACTERS: Final = 12
_FEWEST_LETTERS: Final = 2
_STRIDE: Final = SHORTEST_LOOP_CHARACTERS // 2


def loop_in(text: str) -> tuple[int, int] | None:
    """Where the first loop begins and how long one turn of it is, in characters; None where there is none.

    A loop is a passage of at most 200 characters with letters, four times or more in a row, at least 80 characters in
    all. Linear in the length of the text: it is probed every 40 characters, which no loop is too short for.
    """
    last = len(text) - SHORTEST_LOOP_CHARACTERS // 2
    for place in range(0, max(last, 0) + 1, _STRIDE):
        probe = text[place : place + _PROBE_CHARACTERS]
        # Inside a loop a probe occurs again after exactly one period.
        again = text.find(probe, place + 1, place + LONGEST_PERIOD_CHARACTERS + _PROBE_CHARACTERS)
        if again < 0:
            continue
        period = again - place
        if sum(map(str.isalpha, text[place:again])) < min(_FEWEST_LETTERS, period):
            continue
        start, end = _extent(text, place, period)
        if end - start >= max(SHORTEST_LOOP_CHARACTERS, FEWEST_TIMES * period):
            return start, period
    return None


def _extent(text: str, place: int, period: int) -> tuple[int, int]:
    """How far the text around a place repeats itself after `period` characters; at most five turns to each side."""
    reach = (FEWEST_TIMES + 1) * period + SHORTEST_LOOP_CHARACTERS
    start = end = place
    # Bounded, so that the whole search stays linear where a text is one long loop.
    while start > max(0, place - reach) and text[start - 1] == text[start - 1 + period]:
        start -= 1
    most = min(len(text) - period, place + reach)
    while end < most and text[end] == text[end + period]:
        end += 1
    return start, end + period


_NAME = "repeated_completion"
FEWEST_PROMPTS: Final = 5
SHORTEST_CHARACTERS: Final = 20
_NUM_TOP: Final = 10
_NUM_BATCH: Final = 10_000


def check(request: AuditRequest) -> list[Finding]:
    """Findings of the sorts (details.sort) "stock_answer" (details.top: the most frequent answers) and "loop"."""
    return [*_stock_answers(request.table), *_loops(request)]


def _stock_answers(table: AuditTable) -> Iterator[Finding]:
    frame = table.frame
    if class_answers(frame) is not None:
        return
    answers = frame.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("at"),
        # Grouped by a 64-bit hash: texts as keys would be held in memory a second time.
        pl.col("completion").str.strip_chars().str.to_lowercase().hash().alias("answer"),
        "prompt_key",
    ).filter(frame["completion"].str.len_chars().fill_null(0) >= SHORTEST_CHARACTERS)
    groups = (
        answers.group_by("answer")
        .agg(pl.col("prompt_key").n_unique().alias("prompts"), pl.len().alias("rows"), pl.col("at").min())
        .filter(pl.col("prompts") >= FEWEST_PROMPTS)
        .sort(["prompts", "at"], descending=[True, False])
    )
    if not groups.height:
        return
    repeats = answers.join(groups.select("answer", pl.col("at").alias("first"), "prompts"), on="answer")
    repeats = repeats.filter(pl.col("at") != pl.col("first")).sort(["prompts", "at"], descending=[True, False])
    top = [
        {"completion": excerpt(frame["completion"][at]), "num_prompts": prompts, "num_rows": num}
        for _, prompts, num, at in groups.head(_NUM_TOP).iter_rows()
    ]
    # of each group one row, so that the examples show different answers
    shown = repeats.unique("answer", keep="first", maintain_order=True)["at"].to_list()[:5]
    positions = shown + [at for at in repeats["at"].to_list() if at not in set(shown)]
    prompts_of = dict(repeats.select("at", "prompts").iter_rows())
    yield about_rows(
        table,
        _NAME,
        "warning",
        positions,
        message=f"{rows(len(positions))} with an answer that {FEWEST_PROMPTS} or more different prompts get "
        f"({groups.height:,} such answers; the most frequent one answers {groups['prompts'][0]:,} prompts)",
        fix="write answers of their own, or keep a few of each; it may also be right that they answer alike",
        notes={at: f"the answer to {prompts_of[at]:,} different prompts" for at in shown},
        excerpts={at: frame["completion"][at] for at in shown},
        details={"sort": "stock_answer", "num_answers": groups.height, "top": top},
    )


def _loops(request: AuditRequest) -> Iterator[Finding]:
    table = request.table
    texts = learned(table.frame)
    found: dict[int, tuple[int, int]] = {}
    with request.progress.task("look for loops", len(texts), "row") as task:
        for start in range(0, len(texts), _NUM_BATCH):
            batch = texts.slice(start, _NUM_BATCH).to_list()
            for offset, text in enumerate(batch):
                if len(text) >= SHORTEST_LOOP_CHARACTERS and (loop := loop_in(text)) is not None:
                    found[start + offset] = loop
            task.advance(len(batch))
    if not found:
        return
    shown = {at: found[at] for at in list(found)[:5]}
    yield about_rows(
        table,
        _NAME,
        "warning",
        list(found),
        message=f"{rows(len(found))} in which the same passage stands four times or more in a row",
        fix="cut the repetition, or remove these rows: luthier data repair",
        notes={at: f"repeats {texts[at][place : place + period]!r}"[:120] for at, (place, period) in shown.items()},
        excerpts={at: excerpt(texts[at], place) for at, (place, _) in shown.items()},
        details={"sort": "loop"},
    )
