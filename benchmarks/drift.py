"""Do the signals keep their word? False alarms on steady traffic, and how soon a shift of topics is told.

    python benchmarks/drift.py [--months 100] [--shifts 60] [--texts FILE.jsonl.gz]

A month of steady traffic (testing/traffic.py: busy and quiet hours, weekends, latency that follows the load and
wanders, users with several turns) is looked at every hour: since evidence is a sum over hours that later hours do not
change, one reading of the whole stretch holds what every hourly look of it would have said. Counted are signals that
become "changed". Shifts: from a known exchange on, 20% ask about a topic that nobody asked about before; the 500th
exchange after it is the last that is read. With --texts the same is done with real prompts (hh-rlhf's format): those
that name food, cars, drugs or money are kept out first, and are then 20%.

Prints JSON; how far it is to standard error.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from luthier.features.monitoring.service import text_checks
from luthier.ml.drift.evidence import RENEWED_DAYS, needed_strength
from luthier.ml.drift.signals.columns import Checks
from luthier.ml.drift.signals.signal_report import Compared, Watched, watch_rows
from luthier.ml.drift.signals.training import Profile
from luthier.platform.home.context import Context
from luthier.testing.traffic import Change, last_prompts, made_traffic, with_prompts

_DAY = 86_400.0
_SHIFT, _WITHIN = 0.2, 500
_SUBJECTS: Final = {
    "food": r"\b(cook|recipe|food|bake|dinner|cake|chicken|meal|soup)\w*",
    "cars": r"\b(car|cars|drive|engine|tire)s?\b",
    "drugs": r"\b(drug|weed|cocaine|meth|marijuana)s?\b",
    "money": r"\b(money|tax|bank|loan|credit)s?\b",
}


def main() -> None:
    """Simulate, and print what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=100)
    parser.add_argument("--shifts", type=int, default=60)
    parser.add_argument("--exchanges-an-hour", type=float, default=10.0)
    parser.add_argument("--only", choices=("steady", "shift", "real"), default=None)
    parser.add_argument("--texts", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Context.open(Path(folder)) as context:
        checks = text_checks(context)
        document: dict[str, Any] = {}
        if asked.only in (None, "steady"):
            document["steady"] = steady(asked.months, asked.exchanges_an_hour, checks)
        if asked.only in (None, "shift"):
            document["shift"] = shift(asked.shifts, asked.exchanges_an_hour, checks)
        if asked.only in (None, "real") and asked.texts is not None:
            document["shift of real prompts"] = real_shift(asked.shifts, asked.texts, checks)
    print(json.dumps(document, indent=1))


def steady(num_months: int, an_hour: float, checks: Checks) -> dict[str, Any]:
    """Alarms in months of steady traffic, by signal, and the share of signals that say steady at the end."""
    alarms: Counter[str] = Counter()
    states: Counter[str] = Counter()
    strongest = []
    for seed in range(num_months):
        watched = _look(made_traffic(28, an_hour, seed=seed), checks, seed)
        needed, most = needed_strength(watched.num_signals), -np.inf
        for one in watched.tested:
            looked_at = one.log_strength[one.hours >= one.hours[:1] + RENEWED_DAYS * 24]
            if len(looked_at):
                most = max(most, float(looked_at.max()))
                alarms[one.signal.name] += int(((looked_at[1:] >= needed) & (looked_at[:-1] < needed)).sum())
        for signal in watched.report.signals:
            states[signal.state] += 1
            if signal.state == "changed" and signal.p_value is None:
                alarms[signal.name] += 1
        strongest.append(most)
        print(f"stretch {seed + 1}: strongest {most:.1f}, {sum(alarms.values())} alarms", file=sys.stderr, flush=True)
    # A stretch is looked at for 14 days, from its 14th on.
    num = sum(alarms.values())
    return {
        "stretches": num_months,
        "months_looked_at": num_months * RENEWED_DAYS / 30,
        "exchanges_an_hour": an_hour,
        "alarms": num,
        "alarms_by_signal": +alarms,
        "alarms_a_month": num / (num_months * RENEWED_DAYS / 30),
        "needed": needed_strength(watched.num_signals),
        "strongest_evidence_quantiles": dict(
            zip(("50%", "90%", "100%"), np.quantile(strongest, [0.5, 0.9, 1.0]).tolist(), strict=True)
        ),
        "states_at_the_end": dict(states),
    }


def shift(num: int, an_hour: float, checks: Checks) -> dict[str, Any]:
    """How many of so many shifts are told within 500 exchanges, and after how many exchanges."""
    needed = [_told_after(seed, an_hour, checks) for seed in range(num)]
    return _summary(needed)


def _told_after(seed: int, an_hour: float, checks: Checks) -> float:
    plain = made_traffic(24, an_hour, seed=10_000 + seed)
    change = Change(at=plain.height - _WITHIN, moved=_SHIFT, topic=True)
    frame = made_traffic(24, an_hour, seed=10_000 + seed, change=change)
    return _first_told(_look(frame, checks, seed), change.at)


def real_shift(num: int, path: Path, checks: Checks) -> dict[str, Any]:
    """The same with real prompts, by subject: 3,000 exchanges before."""
    texts = list(dict.fromkeys(_prompts(path)))
    found = {}
    for name, pattern in _SUBJECTS.items():
        has = np.array([bool(re.search(pattern, text.lower())) for text in texts])
        of_subject, others = np.flatnonzero(has), np.flatnonzero(~has)
        needed = []
        for seed in range(max(1, num // len(_SUBJECTS))):
            generator = np.random.default_rng(seed)
            frame = made_traffic(24, 7.0, seed=20_000 + seed)
            at = frame.height - _WITHIN
            is_new = (np.arange(frame.height) >= at) & (generator.random(frame.height) < _SHIFT)
            chosen = np.where(
                is_new, generator.choice(of_subject, frame.height), generator.choice(others, frame.height)
            )
            frame = with_prompts(frame, [texts[place] for place in chosen])
            needed.append(_first_told(_look(frame, checks, seed), at))
        found[name] = {"prompts": int(has.sum()), "before": at} | _summary(needed)
    return found


def _look(frame: Any, checks: Checks, seed: int) -> Watched:
    """The whole stretch as the last look of it sees it; the training data is of the same kind."""
    until = float(frame["at"].max()) + 1
    trained = made_traffic(7, 10.0, seed=30_000 + seed)
    profile = Profile(last_prompts(trained), trained["answer"].to_list())
    return watch_rows(
        frame, project_id="p", model="m", since=until - 3 * _DAY, until=until, checks=checks, compared=Compared(profile)
    )


def _first_told(watched: Watched, at: int) -> float:
    """After how many exchanges the first signal of the input was told; infinity where none was."""
    needed, first = needed_strength(watched.num_signals), np.inf
    for one in watched.tested:
        if one.signal.group == "input" and (one.log_strength >= needed).any():
            hour = one.hours[np.flatnonzero(one.log_strength >= needed)[0]]
            first = min(first, float(np.searchsorted(watched.rows.hours, hour, "right")) - at)
    print(f"told after {first:.0f}", file=sys.stderr, flush=True)
    return first


def _summary(needed: list[float]) -> dict[str, Any]:
    found = np.array(needed)
    return {
        "shifts": len(found),
        "told_before_it_began": int((found <= 0).sum()),
        "told_within_500": int(((found > 0) & (found <= _WITHIN)).sum()),
        "exchanges_until_told": {
            name: float(np.quantile(found, share, method="lower")) for name, share in (("50%", 0.5), ("90%", 0.9))
        },
    }


def _prompts(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            match = re.search(r"Human: (.*?)\n\nAssistant", json.loads(line)["chosen"], re.DOTALL)
            if match:
                yield match[1][:1_000]


if __name__ == "__main__":
    main()
