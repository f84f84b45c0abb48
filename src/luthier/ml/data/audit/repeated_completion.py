"""One answer given to many prompts, and answers that go round in circles. Warnings.

The same answer of at least 20 characters to five different prompts or more teaches a stock phrase. Short answers
("yes", "42") and answers that are classes repeat by nature and are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.answers import class_answers, learned
from luthier.ml.data.audit.finding import about_rows, excerpt, rows
from luthier.ml.data.audit.loops import SHORTEST_LOOP_CHARACTERS, loop_in
from luthier.ml.data.audit.request import AuditRequest
from luthier.ml.data.audit.table import AuditTable

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
