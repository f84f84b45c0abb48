"""All signals of a model in a window of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from luthier.core.results.signal import Signal, WatchReport
from luthier.ml.drift.drift.evidence import LOOK_BACK_DAYS, RENEWED_DAYS
from luthier.ml.drift.signals.bias import OUTCOMES, bias_signals
from luthier.ml.drift.signals.column import MAX_AN_HOUR, Checks, Rows, read_rows
from luthier.ml.drift.signals.columns import columns_of
from luthier.ml.drift.signals.hourly import HOURLY, hour_signals
from luthier.ml.drift.signals.new_words import new_words_signal
from luthier.ml.drift.signals.signal_test import Tested, column_signal
from luthier.ml.drift.signals.training import NAMES, Profile, training_signals

_DAY: Final = 86_400.0
_NUM_COLUMNS: Final = 14
_MAX_UNTESTED: Final = 0.1


@dataclass(frozen=True, slots=True)
class Compared:
    """What the traffic is held against, besides the traffic before.

    Attributes:
        profile: the training data, None where it is not available.
        groups: names, and regular expressions of prompts.
        quality: signals of judged suites, made elsewhere.
    """

    profile: Profile | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    quality: Sequence[Signal] = ()


@dataclass(frozen=True, slots=True)
class Watched:
    """The report, and what its pictures need.

    Attributes:
        rows: all exchanges that were read.
        num_signals: which the bound on false alarms is shared out to.
    """

    report: WatchReport
    tested: tuple[Tested, ...]
    rows: Rows
    num_signals: int


def stretch_begins(until: float, normal_since: float = 0.0) -> float:
    """Where the stretch of time that is tested begins, 14 to 28 days before `until`.

    A new stretch is taken every 14 days, the same at every look between: a test that moved along with the time would be
    a new one at every look.

    Args:
        normal_since: what was before that is not to be compared with.
    """
    step = RENEWED_DAYS * _DAY
    return max(normal_since, ((until - (LOOK_BACK_DAYS - RENEWED_DAYS) * _DAY) // step) * step)


def watch_rows(
    frame: pl.DataFrame,
    *,
    project_id: str,
    model: str,
    since: float,
    until: float,
    checks: Checks,
    compared: Compared,
    num_dropped: int = 0,
    normal_since: float = 0.0,
) -> Watched:
    """The report of a window [since, until), from the exchanges of the stretch it lies in (`stretch_begins`).

    Args:
        frame: columns of `Exchange`, `messages` as JSON.
        normal_since: as in `stretch_begins`.
    """
    # Nothing after `until` takes part, so that a report of the past can be made again.
    rows = read_rows(frame.filter(pl.col("at") < until), since, stretch_begins(until, normal_since))
    num_signals = number_of_signals(compared)
    columns = columns_of(rows, checks)
    tested = [
        *hour_signals(rows, num_signals),
        new_words_signal(rows, checks, num_signals),
        *(column_signal(column, rows, checks, num_signals) for column in columns),
    ]
    by_name = {column.name: column for column in columns}
    signals = (
        *(one.signal for one in tested),
        *training_signals(rows, compared.profile, checks, num_signals),
        *compared.quality,
        *bias_signals(rows, by_name, compared.groups, checks, num_signals),
    )
    order = ("serving", "input", "output", "quality", "bias")
    report = WatchReport(
        project_id=project_id,
        model=model,
        since=since,
        until=until,
        num_exchanges=int(rows.is_now.sum()),
        num_with_text=_num_with_text(rows),
        num_dropped=num_dropped,
        signals=tuple(sorted(signals, key=lambda one: order.index(one.group))),
        cautions=_cautions(rows, num_dropped),
    )
    return Watched(report, tuple(tested), rows, num_signals)


def number_of_signals(compared: Compared) -> int:
    """How many signals the bound on false alarms is shared out to: the same for a model, whatever its traffic has."""
    return len(HOURLY) + 1 + _NUM_COLUMNS + len(NAMES) + len(compared.quality) + len(OUTCOMES) * len(compared.groups)


def _num_with_text(rows: Rows) -> int:
    return int((rows.is_now & rows.frame["messages"].is_not_null().to_numpy()).sum())


def _cautions(rows: Rows, num_dropped: int) -> tuple[str, ...]:
    found = []
    if num_dropped:
        found.append(f"The log had to drop {num_dropped:,} exchanges of this time: what they were like is not known.")
    num_now = int(rows.is_now.sum())
    num_untested = num_now - int((rows.is_now & rows.is_tested).sum())
    if num_now and num_untested > _MAX_UNTESTED * num_now:
        found.append(
            f"{num_untested:,} of {num_now:,} exchanges enter no test: of one user's within an hour the first alone "
            f"does, and at most {MAX_AN_HOUR} an hour do."
        )
    if num_now and not _num_with_text(rows):
        found.append("No words are kept, so that nothing is known of what was asked and answered.")
    if len(rows.at) and not (~rows.is_now).any():
        found.append(
            f"Nothing was asked in the {RENEWED_DAYS} to {LOOK_BACK_DAYS} days before: there is nothing to "
            "compare with."
        )
    return tuple(found)
