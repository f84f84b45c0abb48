"""A judge on samples of the traffic: a few answers of the window, and as many of the time before it.

Which ones is decided by a hash of their ids. So looks that overlap ask of the same answers, and what a judge has said
of one is kept: a look an hour later pays for what is new in the sample alone.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from http import HTTPStatus
from typing import TYPE_CHECKING

from luthier.core.errors import LuthierError
from luthier.core.records.monitor_settings import WatchSettings
from luthier.core.results.signal import Signal
from luthier.core.results.suite import CRITERIA
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    import polars as pl

    from luthier.core.ports import Engine
    from luthier.ml.drift.signals.judged import Scored

_MAX_CHARACTERS = 8_000
"""Of a prompt, and of an answer: longer ones are not asked about, so that a judge's window holds them."""


def judged_by(
    context: Context, project_id: str, settings: WatchSettings, frame: pl.DataFrame, since: float, num_others: int
) -> tuple[tuple[Signal, ...], tuple[str, ...]]:
    """The signals of the judge that the settings name, and cautions; nothing where they name none.

    frame: exchanges with their words, columns of `Exchange`. since: where the window begins, seconds since 1970.
    num_others: how many signals there are besides. A judge that cannot be asked is a caution, and no failed look.
    """
    from luthier.features.judges.calibrations import is_calibrated
    from luthier.features.judges.service import judge_name, open_judge
    from luthier.ml.drift.signals.judged import judged_signals

    if settings.judge is None:
        return (), ()
    try:
        name = judge_name(settings.judge)
        with closing(open_judge(context, settings.judge)) as judge:
            # The same number on both sides; with unequal samples the smaller one would limit the test anyway.
            before = _scored(context, judge, _sample(frame, None, since, settings.num_judged))
            now = _scored(context, judge, _sample(frame, since, None, settings.num_judged))
    except LuthierError as error:
        return (), (f"The judge {settings.judge} could not be asked: {error.came}.",)
    # The error is shared among all signals of the check, those of the judge included.
    signals = judged_signals(name, before, now, num_others + len(CRITERIA))
    # Scores of an uncalibrated judge are shown, with the caution that nobody has compared them with people.
    alone = [criterion for criterion in CRITERIA if is_calibrated(context, project_id, name, criterion) is None]
    if not alone:
        return signals, ()
    said = f"Scores are the opinion of {name}, which is not known to agree with people in {', '.join(alone)}"
    return signals, (f"{said}: luthier judge calibrate.",)


def _sample(frame: pl.DataFrame, since: float | None, until: float | None, num_wanted: int) -> pl.DataFrame:
    """Answered exchanges of a time whose words were kept: those with the lowest hashes, in that order."""
    import polars as pl

    is_it = (pl.col("status") < HTTPStatus.BAD_REQUEST) & pl.col("messages").is_not_null() & (pl.col("answer") != "")
    if since is not None:
        is_it &= pl.col("at") >= since
    if until is not None:
        is_it &= pl.col("at") < until
    found = frame.filter(is_it).unique("exchange_id", keep="last", maintain_order=True)
    # The lowest hashes of any window are a random sample, and overlapping windows share most of it.
    drawn = [hashlib.sha256(one.encode("utf-8", "replace")).hexdigest() for one in found["exchange_id"].to_list()]
    return found.with_columns(pl.Series("drawn", drawn, dtype=pl.String)).sort("drawn").head(num_wanted)


def _scored(context: Context, judge: Engine, sample: pl.DataFrame) -> Scored:
    from luthier.ml.drift.signals.judged import Scored
    from luthier.ml.evaluation.judge.replies import NoVerdict
    from luthier.ml.evaluation.judge.verdicts import judge_answers

    asked = []
    for exchange_id, messages, answer in sample.select("exchange_id", "messages", "answer").iter_rows():
        prompt = _prompt(messages)
        # Skipped, not cut: a judge would score the cut as a fault of the answer.
        if prompt is not None and max(len(prompt), len(answer)) <= _MAX_CHARACTERS:
            asked.append((exchange_id, prompt, answer))
    said = judge_answers(judge, CRITERIA, [(prompt, answer) for _, prompt, answer in asked], context.progress)
    judged = [
        (exchange_id, one)
        for (exchange_id, _, _), one in zip(asked, said, strict=True)
        if not isinstance(one, NoVerdict)
    ]
    return Scored(
        ids=[exchange_id for exchange_id, _ in judged],
        scores={criterion: [one[criterion] for _, one in judged] for criterion in CRITERIA},
        num_asked=len(asked),
    )


def _prompt(messages: str) -> str | None:
    """The text of the user's last message; None where there is none."""
    of_users = [one for one in json.loads(messages) if one.get("role") == "user"]
    content = of_users[-1].get("content") if of_users else None
    return content if isinstance(content, str) and content.strip() else None
