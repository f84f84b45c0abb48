"""Texts cut by a limit: more of them of exactly the greatest length than a smooth tail of lengths has.

Two tests of the hypothesis that nothing was cut, each at 0.0004; with three columns and four units a natural
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
from typing import Final, Literal

import polars as pl

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


def find_spike(texts: pl.Series, num_tokens: pl.Series | None = None) -> Spike | None:
    """The limit that texts (nulls are none) were cut by, the surest of all units; None where there is none.

    Args:
        texts: strings, or nulls.
        num_tokens: of each text, where they were counted.
    """
    lengths: dict[Unit, pl.Series] = {"characters": texts.str.len_chars()}
    lengths["bytes"] = texts.str.len_bytes()
    # ASCII only: a second test of the same lengths would only raise the chance of a false alarm.
    if lengths["bytes"].equals(lengths["characters"]):
        del lengths["bytes"]
    lengths["words"] = texts.str.strip_chars().str.count_matches(" ", literal=True) + 1
    if num_tokens is not None and num_tokens.null_count() == 0:
        lengths["tokens"] = num_tokens
    found = [spike for unit, length in lengths.items() if (spike := _spike(texts, length, unit)) is not None]
    return min(found, key=lambda spike: spike.chance, default=None)


def _spike(texts: pl.Series, lengths: pl.Series, unit: Unit) -> Spike | None:
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
        chance = _chance(texts.filter(at), texts.filter(near), trusts_ends=trusts_ends)
        if chance <= MAX_CHANCE:
            return Spike(unit, limit, at, num, chance)
    return None


def _candidates(counts: pl.DataFrame, total: int, unit: Unit) -> list[int]:
    """The greatest length, and the most frequent one that at most 1% of the texts exceed."""
    long = counts.filter(pl.col("length") >= SHORTEST[unit])
    if not long.height:
        return []
    longer = long["len"].cum_sum() - long["len"]
    top = long.filter(longer <= MAX_LONGER_FRACTION * total)
    most = top.filter(pl.col("len") == top["len"].max())["length"][0]
    return list(dict.fromkeys((int(long["length"][0]), int(most))))


def _chance(at_limit: pl.Series, below: pl.Series, *, trusts_ends: bool) -> float:
    """The smaller bound of the two tests; 1 where most texts at the limit are complete."""
    from scipy.stats import binom

    share = 1 / (NUM_BELOW + 1)
    different = at_limit.str.strip_chars_end().unique()
    if len(different) < MIN_RATIO * len(below) / NUM_BELOW:
        return 1.0
    if not trusts_ends:
        # sf(k - 2) is P(X >= k - 1): one of the k is at the limit by definition.
        return float(binom.sf(len(different) - 2, len(different) - 1 + len(below), share))
    num_cut = _num_cut(different)
    if num_cut < FEWEST_AT_LIMIT:
        return 1.0
    chance = float(binom.sf(num_cut - 2, num_cut - 1 + len(below), share))
    num_open = int((~_ended(below)).sum())
    # Rule of succession: no open end among few texts does not prove that there are none.
    open_fraction = max((num_open + 1) / (len(below) + 2), MIN_OPEN_FRACTION)
    if open_fraction < 1 - MAX_COMPLETE_FRACTION and len(below) >= FEWEST_AT_LIMIT:
        chance = min(chance, float(binom.sf(num_cut - 1, len(different), open_fraction)))
    return chance


def _ended(texts: pl.Series) -> pl.Series:
    return texts.str.strip_chars_end().str.tail(8).str.contains(ENDED)


def _num_cut(different: pl.Series) -> int:
    """How many different texts may have been cut; 0 where most of them end as complete ones do."""
    ended = _ended(different)
    if int(ended.sum()) > MAX_COMPLETE_FRACTION * len(different):
        return 0
    codes = different.filter(~ended).str.tail(40).str.extract(f"({_CODE})", 1)
    forms = codes.str.replace_all(r"\p{Lu}", "A").str.replace_all(r"[0-9]", "0")
    return int(codes.null_count()) + int(forms.drop_nulls().n_unique())
