"""Texts that stop before their end, as a limit leaves them: the model learns to stop there too. A warning.

Signs in answers, each with its reason: an ellipsis at the end; a code fence, or the outer bracket of a JSON answer, is
never closed; no final punctuation where more than 90% of the answers have it; a limit on their length (`find_spike`).
An answer that occurs three times or more is one that somebody wrote so: for it the ellipsis, the punctuation and the
length are no signs. Prompts and plain texts are checked for a limit of length alone.

`find_spike` finds texts cut by a limit: more of them of exactly the greatest length than a smooth tail of lengths has.
It makes two tests of the hypothesis that nothing was cut, each at 0.0004; with three columns and four units a natural
file is reported in at most 1% of cases.

Lengths: let k different texts have the greatest length M and W others one of the five lengths below it. Where lengths
do not grow more frequent towards their end, each of the k + W lies at M with a probability of at most q = 1/6. One is
at M by the choice of M; so k - 1 is at most binomial of k - 1 + W trials with q. Where they do grow more frequent, a
large file would show it: k is at least 1.5 times the mean of the five lengths as well.

Ends: where most of the W end as complete texts do, let e be the share that does not (at least 0.05, by the rule of
succession). How a text ends does not depend on having exactly the greatest length, so of the k those without an end
are binomial of k trials with e.

Units: characters; bytes of UTF-8, in bins of 4, since a cut falls between characters; words; tokens, where counted.
Equal texts count once. Where most of the k end as complete texts do, nothing was cut; and texts with a number or a code
at their end count once for each form of it, since forms filled in by a template may well be equally long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_rows, answer_classes, has_completions, rows
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.files.row_frames import Texts, text_parts, where_texts

Unit = Literal["characters", "bytes", "words", "tokens"]

MAX_CHANCE: Final = 4e-4
NUM_BELOW: Final = 5
MIN_RATIO: Final = 1.5
FEWEST_AT_LIMIT: Final = 5
MIN_OPEN_FRACTION: Final = 0.05
MAX_AT_LIMIT_FRACTION: Final = 0.9
FEWEST_LENGTHS_BELOW: Final = 10
MAX_LONGER_FRACTION: Final = 0.01
MAX_COMPLETE_FRACTION: Final = 0.5
SHORTEST: Final[dict[Unit, int]] = {"characters": 100, "bytes": 100, "words": 20, "tokens": 64}
BIN: Final[dict[Unit, int]] = {"characters": 1, "bytes": 4, "words": 1, "tokens": 1}
USUAL_TOKEN_LIMIT: Final = 64
"""Limits on tokens are multiples of it; there a complete end is no proof, since templates end a turn after the cut."""
ENDED: Final = r"[.!?。！？।؟…:;)\]}>\"'”’»*`|~\p{So}\p{Sk}]$"
_CODE: Final = r"\S*[0-9\p{Lu}]\S*$"


@dataclass(frozen=True, slots=True)
class Spike:
    """A limit that texts were cut by.

    Attributes:
        unit: what the limit counts.
        length: the limit.
        at: one boolean a row, whether its text was cut.
        num: texts that were cut.
        chance: bound of the test, the probability of as many texts at the limit if nothing was cut.
    """

    unit: Unit
    length: int
    at: pl.Series
    num: int
    chance: float


def find_spike(texts: Texts, num_tokens: pl.Series | None = None) -> Spike | None:
    """The limit that texts (nulls are none) were cut by, the surest of all units; None where there is none.

    Args:
        texts: strings, or nulls.
        num_tokens: of each text, where they were counted.
    """
    lengths = _lengths(texts)
    # ASCII only: a second test of the same lengths would only raise the chance of a false alarm.
    if lengths["bytes"].equals(lengths["characters"]):
        del lengths["bytes"]
    if num_tokens is not None and num_tokens.null_count() == 0:
        lengths["tokens"] = num_tokens
    found = [spike for unit, length in lengths.items() if (spike := _spike(texts, length, unit)) is not None]
    return min(found, key=lambda spike: spike.chance, default=None)


def _lengths(texts: Texts) -> dict[Unit, pl.Series]:
    parts = [
        pl.DataFrame(
            {
                "characters": part.str.len_chars(),
                "bytes": part.str.len_bytes(),
                "words": part.str.strip_chars().str.count_matches(" ", literal=True) + 1,
            }
        )
        for part in text_parts(texts)
    ]
    names: tuple[Unit, ...] = ("characters", "bytes", "words")
    if not parts:
        return {name: pl.Series([], dtype=pl.UInt32) for name in names}
    made = pl.concat(parts, rechunk=True)
    return {name: made[name] for name in names}


def _spike(texts: Texts, lengths: pl.Series, unit: Unit) -> Spike | None:
    counts = pl.DataFrame({"length": lengths}).drop_nulls().group_by("length").len().sort("length", descending=True)
    total = int(counts["len"].sum())
    for limit in _candidates(counts, total, unit):
        at = ((lengths <= limit) & (lengths > limit - BIN[unit])).fill_null(value=False)
        num = int(at.sum())
        below = counts.filter(pl.col("length") <= limit - BIN[unit])
        if not FEWEST_AT_LIMIT <= num <= MAX_AT_LIMIT_FRACTION * total:
            continue
        # Where most texts are of one length and few other lengths occur, texts of a fixed length are meant.
        if 2 * num >= total and below.height < FEWEST_LENGTHS_BELOW:
            continue
        least = limit - BIN[unit] * (NUM_BELOW + 1)
        near = ((lengths > least) & (lengths <= limit - BIN[unit])).fill_null(value=False)
        trusts_ends = unit != "tokens" or limit % USUAL_TOKEN_LIMIT != 0
        chance = _chance(_ends(texts, at), _ends(texts, near), trusts_ends=trusts_ends)
        if chance <= MAX_CHANCE:
            return Spike(unit, limit, at, num, chance)
    return None


def _ends(texts: Texts, kept: pl.Series) -> pl.DataFrame:
    """How some of the texts end: text (a hash, without white space at the end), ended, has_code, code (a hash)."""
    schema = {"text": pl.UInt64, "ended": pl.Boolean, "has_code": pl.Boolean, "code": pl.UInt64}
    found = [pl.DataFrame(schema=schema)]
    for part in text_parts(where_texts(texts, kept.to_numpy())):
        stripped = part.str.strip_chars_end()
        ended = _ended(part)
        codes = stripped.str.tail(40).str.extract(f"({_CODE})", 1)
        forms = codes.str.replace_all(r"\p{Lu}", "A").str.replace_all(r"[0-9]", "0")
        columns = {"text": stripped.hash(), "ended": ended, "has_code": codes.is_not_null(), "code": forms.hash()}
        found.append(pl.DataFrame(columns, schema=schema))
    return pl.concat(found)


def _candidates(counts: pl.DataFrame, total: int, unit: Unit) -> list[int]:
    """The greatest length, and the most frequent one that at most 1% of the texts exceed."""
    long = counts.filter(pl.col("length") >= SHORTEST[unit])
    if not long.height:
        return []
    longer = long["len"].cum_sum() - long["len"]
    top = long.filter(longer <= MAX_LONGER_FRACTION * total)
    most = top.filter(pl.col("len") == top["len"].max())["length"][0]
    return list(dict.fromkeys((int(long["length"][0]), int(most))))


def _chance(at_limit: pl.DataFrame, below: pl.DataFrame, *, trusts_ends: bool) -> float:
    """The smaller bound of the two tests, of texts by how they end; 1 where most texts at the limit are complete."""
    from scipy.stats import binom

    share = 1 / (NUM_BELOW + 1)
    different = at_limit.unique("text")
    if len(different) < MIN_RATIO * len(below) / NUM_BELOW:
        return 1.0
    if not trusts_ends:
        # sf(k - 2) is P(X >= k - 1): one of the k is at the limit by definition.
        return float(binom.sf(len(different) - 2, len(different) - 1 + len(below), share))
    num_cut = _num_cut(different)
    if num_cut < FEWEST_AT_LIMIT:
        return 1.0
    chance = float(binom.sf(num_cut - 2, num_cut - 1 + len(below), share))
    num_open = int((~below["ended"]).sum())
    # Rule of succession: no open end among few texts does not prove that there are none.
    open_fraction = max((num_open + 1) / (len(below) + 2), MIN_OPEN_FRACTION)
    if open_fraction < 1 - MAX_COMPLETE_FRACTION and len(below) >= FEWEST_AT_LIMIT:
        chance = min(chance, float(binom.sf(num_cut - 1, len(different), open_fraction)))
    return chance


def _ended(texts: pl.Series) -> pl.Series:
    return texts.str.strip_chars_end().str.tail(8).str.contains(ENDED)


def _num_cut(different: pl.DataFrame) -> int:
    """How many different texts may have been cut; 0 where most of them end as complete ones do."""
    if int(different["ended"].sum()) > MAX_COMPLETE_FRACTION * len(different):
        return 0
    still_open = different.filter(~pl.col("ended"))
    codes = still_open.filter("has_code")["code"]
    return len(still_open) - len(codes) + int(codes.n_unique())


_NAME = "truncated_completion"
USUAL_FRACTION: Final = 0.9
FEWEST_ROWS: Final = 20
FEWEST_REPEATS: Final = 3
SHORTEST_CHARACTERS: Final = 40
_REASONS: Final = {
    "ellipsis": "ends with an ellipsis",
    "fence": "a code fence is not closed",
    "bracket": "the outer bracket is not closed",
    "unfinished": "ends without punctuation, unlike over 90% of the answers",
    "at_limit": "is exactly as long as the longest answers: cut by a limit",
}


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """Rows whose completion was likely cut, those with most signs first. details.reasons counts the signs.

    And rows whose prompt, or plain text, was cut by a limit: details.column, unit and limit say which.
    """
    table = request.table
    if not has_completions(table):
        found = _cut_column(table, "text", table.rows.column("num_tokens"))
        return found or Skipped("the rows have no completions")
    cut_prompts = _cut_column(table, "prompt", None)
    if answer_classes(table) is not None:
        return cut_prompts or Skipped("the completions are classes, which have no end to be cut")
    return [*_cut_answers(table), *cut_prompts]


def _cut_column(table: AuditTable, column: str, num_tokens: pl.Series | None) -> list[Finding]:
    spike = find_spike(table.rows.texts(column), num_tokens)
    if spike is None:
        return []
    positions = spike.at.arg_true().to_list()
    return [
        about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} whose {column} is exactly as long as the longest: {spike.length:,} "
            f"{spike.unit}, as a limit leaves it",
            fix="get these texts from their source again without the limit, or remove the rows: "
            "data repair --only truncated_completion",
            excerpts=_excerpts(table, column, positions),
            details={"column": column} | _limit(spike),
        )
    ]


def _limit(spike: Spike) -> dict[str, Any]:
    return {"unit": spike.unit, "limit": spike.length, "num_at_limit": spike.num, "chance": spike.chance}


def _cut_answers(table: AuditTable) -> list[Finding]:
    spike = find_spike(table.rows.texts("completion"), table.rows.column("num_tokens"))
    signs = _signs(table, spike)
    num_signs = signs.sum_horizontal()
    found = pl.DataFrame({"at": pl.int_range(signs.height, eager=True), "num": num_signs}).filter(pl.col("num") > 0)
    if not found.height:
        return []
    positions = found.sort("num", descending=True, maintain_order=True)["at"].to_list()
    reasons = {name: int(signs[name].sum()) for name in _REASONS if signs[name].any()}
    notes = {at: "; ".join(_REASONS[name] for name in _REASONS if signs[name][at]) for at in positions[:5]}
    limit = _limit(spike) if spike is not None and "at_limit" in reasons else {}
    return [
        about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with an answer that seems to stop before its end: "
            + ", ".join(f"{num:,} {_REASONS[name]}" for name, num in reasons.items())
            + (f" of {limit['limit']:,} {limit['unit']}" if limit else ""),
            fix="fetch these answers again without the limit, or remove them: data repair --only truncated_completion",
            notes=notes,
            excerpts=_excerpts(table, "completion", positions),
            details={"reasons": reasons} | limit,
        )
    ]


def _signs(table: AuditTable, spike: Spike | None) -> pl.DataFrame:
    """One boolean column a sign; null completions have none."""
    facts = pl.concat([_facts(part) for part in table.rows.texts("completion").parts()], rechunk=True)
    long, ended, fence = facts["long"], facts["ended"], facts["fence"]
    num_long = int(long.sum())
    is_usual = num_long >= FEWEST_ROWS and int((ended & long).sum()) > USUAL_FRACTION * num_long
    ellipsis = facts["ellipsis"] & long
    # An open code fence is its own sign, and code ends without punctuation.
    unfinished = long & ~ended & ~fence & pl.Series([is_usual])
    at_limit = pl.repeat(value=False, n=facts.height, eager=True) if spike is None else spike.at
    # An answer that several rows share was written so, not cut.
    written = ~_repeated(facts["answer"], ellipsis | unfinished | at_limit)
    return pl.DataFrame(
        {
            "ellipsis": ellipsis & written,
            "fence": fence,
            "bracket": facts["bracket"],
            "unfinished": unfinished & written,
            "at_limit": at_limit & written,
        }
    )


def _facts(completions: pl.Series) -> pl.DataFrame:
    """What the signs are made of; answer is a hash, equal for equal answers."""
    ends = completions.fill_null("").str.strip_chars_end()
    tail = ends.str.tail(8)
    return pl.DataFrame(
        {
            "long": ends.str.len_chars() >= SHORTEST_CHARACTERS,
            "ended": tail.str.contains(ENDED),
            "ellipsis": tail.str.contains(r"(?:\w|\s|,)(?:\.\.\.|…)$"),
            "fence": ends.str.count_matches("```", literal=True) % 2 == 1,
            "bracket": ends.str.contains(r"^\s*(?:\{\s*\"|\[\s*[\[{\"])") & ~tail.str.contains(r"[}\]][`\s;.]*$"),
            "answer": ends.hash(),
        }
    )


def _repeated(answers: pl.Series, suspects: pl.Series) -> pl.Series:
    """Whether an answer, of those suspected, occurs three times or more."""
    counts = answers.filter(suspects).value_counts()
    often = counts.filter(pl.col("count") >= FEWEST_REPEATS)[answers.name]
    return suspects & answers.is_in(often.implode())


def _excerpts(table: AuditTable, column: str, positions: list[int]) -> dict[int, str]:
    shown = positions[:5]
    return dict(zip(shown, map(_end_of, table.rows.take(shown, column)[column]), strict=True))


def _end_of(text: str) -> str:
    return text if len(text) <= 160 else "…" + text[-160:]
