"""One answer given to many prompts, and answers that repeat a passage in a loop. Warnings.

The same answer of at least 20 characters to five different prompts or more teaches a stock phrase. Short answers
("yes", "42") and answers that are classes repeat by nature and are left alone. `loop_in` finds a passage that follows
itself many times, which is how a language model fails when it gets stuck.

Source: Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration", section 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import NUM_EXAMPLES, AuditRequest, about_rows, answer_classes, excerpt, learned, rows
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.files.row_frames import map_texts

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


def check(request: AuditRequest) -> list[Finding]:
    """Findings of the sorts (details.sort) "stock_answer" (details.top: the most frequent answers) and "loop"."""
    return [*_stock_answers(request.table), *_loops(request)]


def _stock_answers(table: AuditTable) -> Iterator[Finding]:
    if answer_classes(table) is not None:
        return
    answers = _often(table)
    groups = (
        answers.group_by("answer")
        .agg(pl.col("prompt").n_unique().alias("prompts"), pl.len().alias("rows"), pl.col("at").min())
        .filter(pl.col("prompts") >= FEWEST_PROMPTS)
        .sort(["prompts", "at"], descending=[True, False])
    )
    if not groups.height:
        return
    repeats = answers.join(groups.select("answer", pl.col("at").alias("first"), "prompts"), on="answer")
    repeats = repeats.filter(pl.col("at") != pl.col("first")).sort(["prompts", "at"], descending=[True, False])
    most = groups.head(_NUM_TOP)
    often = table.rows.take(most["at"].to_numpy(), "completion")["completion"]
    top = [
        {"completion": excerpt(text), "num_prompts": prompts, "num_rows": num}
        for text, prompts, num in zip(often, most["prompts"], most["rows"], strict=True)
    ]
    # of each group one row, so that the examples show different answers
    shown = repeats.unique("answer", keep="first", maintain_order=True).head(5)
    at = repeats["at"].to_numpy()
    first = shown["at"].to_list()
    positions = np.concatenate((first, at[~np.isin(at, first)])).astype(np.int64)
    texts = table.rows.take(first, "completion")["completion"].to_list()
    yield about_rows(
        table,
        _NAME,
        "warning",
        positions,
        message=f"{rows(len(positions))} with an answer that {FEWEST_PROMPTS} or more different prompts get "
        f"({groups.height:,} such answers; the most frequent one answers {groups['prompts'][0]:,} prompts)",
        fix="write individual answers, or keep a few of each; the same answer may also be right",
        notes={at: f"the answer to {num:,} different prompts" for at, num in zip(first, shown["prompts"], strict=True)},
        excerpts=dict(zip(first, texts, strict=True)),
        details={"sort": "stock_answer", "num_answers": groups.height, "top": top},
    )


def _often(table: AuditTable) -> pl.DataFrame:
    """The rows whose answer is long enough and occurs five times or more: at, answer and prompt, by 64-bit hashes."""
    found = [pl.DataFrame(schema={"at": pl.Int64, "answer": pl.UInt64, "prompt": pl.UInt64})]
    for start, part in table.rows.parts("completion", "prompt_key"):
        is_long = (part["completion"].str.len_chars() >= SHORTEST_CHARACTERS).fill_null(value=False)
        found.append(
            part.filter(is_long).select(
                (is_long.arg_true().cast(pl.Int64) + start).alias("at"),
                # Hashes: texts as keys would be held in memory a second time.
                pl.col("completion").str.strip_chars().str.to_lowercase().hash().alias("answer"),
                pl.col("prompt_key").hash().alias("prompt"),
            )
        )
    answers = pl.concat(found)
    _, answer, counts = np.unique(answers["answer"].to_numpy(), return_inverse=True, return_counts=True)
    return answers.filter(pl.Series(counts[answer] >= FEWEST_PROMPTS))


def _loops(request: AuditRequest) -> Iterator[Finding]:
    table = request.table
    found: list[int] = []
    notes: dict[int, str] = {}
    excerpts: dict[int, str] = {}
    with request.progress.task("search loops", table.height, "row") as task:
        for start, (places, shown) in map_texts(learned(table), _loops_in, advance=task.advance):
            for place, (note, said) in list(zip(places, shown, strict=False))[: NUM_EXAMPLES - len(notes)]:
                notes[start + place], excerpts[start + place] = note, said
            found.extend(start + place for place in places)
    if not found:
        return
    yield about_rows(
        table,
        _NAME,
        "warning",
        found,
        message=f"{rows(len(found))} in which a passage is repeated four times or more",
        fix="cut the repetition, or remove these rows: luthier data repair",
        notes=notes,
        excerpts=excerpts,
        details={"sort": "loop"},
    )


def _loops_in(texts: pl.Series) -> tuple[list[int], list[tuple[str, str]]]:
    """The texts of a part with a loop, and note and excerpt of the first of them."""
    found: list[int] = []
    shown: list[tuple[str, str]] = []
    for at, text in enumerate(texts.to_list()):
        if len(text) < SHORTEST_LOOP_CHARACTERS or (loop := loop_in(text)) is None:
            continue
        found.append(at)
        if len(shown) < NUM_EXAMPLES:
            place, period = loop
            shown.append((f"repeats {text[place : place + period]!r}"[:120], excerpt(text, place)))
    return found, shown
