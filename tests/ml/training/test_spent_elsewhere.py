"""A run that moves between machines: its spend is the sum of what each of them has spent."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.run import Spent
from luthier.ml.training.budget import Meter
from luthier.ml.training.ledger import LEDGER, Entry, Ledger, Throughput
from luthier.ml.training.spent_elsewhere import ELSEWHERE, UNKNOWN, Share, with_rest

HOMES = ("a", "b", "c")
work = st.tuples(
    st.just("work"), st.sampled_from(HOMES), st.floats(0, 1e5, allow_nan=False), st.integers(0, 10**6), st.booleans()
)
upload = st.tuples(st.just("upload"), st.sampled_from(HOMES))
restore = st.tuples(st.just("restore"), st.sampled_from(HOMES), st.integers(0, 20))


def spend(folder: Path, seconds: float, tokens: int) -> None:
    """Work for some seconds, as the meter notes it: in totals of the run."""
    ledger = Ledger(folder)
    before = ledger.last()
    ledger.append(before.model_copy(update={"seconds": before.seconds + seconds, "tokens": before.tokens + tokens}))
    ledger.close()


def uploaded(folder: Path) -> tuple[Entry, dict[str, Share]]:
    return Ledger(folder).last(), Ledger(folder).shares()


def adopt(folder: Path, state: tuple[Entry, dict[str, Share]]) -> None:
    ledger = Ledger(folder)
    ledger.adopt(*state)
    ledger.close()


@given(moves=st.lists(st.one_of(work, upload, restore), max_size=16))
@settings(max_examples=40, deadline=None)
def test_each_second_and_token_of_each_home_counts_once_whatever_is_fetched_when(moves: list[tuple]) -> None:  # type: ignore[type-arg]
    # What each home knows of each: its own work, and of the others what their states say that it has fetched.
    known = {home: dict.fromkeys(HOMES, (0.0, 0)) for home in HOMES}
    states: list[tuple[tuple[Entry, dict[str, Share]], dict[str, tuple[float, int]]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for move in moves:
            home, folder = move[1], Path(scratch) / move[1]
            if move[0] == "work":
                seconds, tokens = known[home][home]
                known[home][home] = (seconds + move[2], tokens + move[3])
                spend(folder, move[2], move[3])
            elif move[0] == "upload":
                states.append((uploaded(folder), dict(known[home])))
            elif states:
                state, of_state = states[move[2] % len(states)]
                known[home] = {other: max(known[home][other], of_state[other]) for other in HOMES}
                adopt(folder, state)
            spent = Ledger(folder).last()
            assert spent.seconds == pytest.approx(sum(one[0] for one in known[home].values()), abs=0.01)
            assert spent.tokens == sum(one[1] for one in known[home].values())


def test_a_home_that_went_on_after_its_last_upload_is_not_swallowed_by_the_one_that_took_over(tmp_path: Path) -> None:
    spend(tmp_path / "a", 50.0, 500)
    adopt(tmp_path / "b", uploaded(tmp_path / "a"))
    spend(tmp_path / "a", 10.0, 100)
    spend(tmp_path / "b", 30.0, 300)
    adopt(tmp_path / "a", uploaded(tmp_path / "b"))
    assert Ledger(tmp_path / "a").last().settled() == Spent(seconds=90.0, tokens=900)


def test_the_meter_goes_on_from_the_sum_and_writes_its_own_share_alone(tmp_path: Path) -> None:
    spend(tmp_path / "a", 50.0, 500)
    adopt(tmp_path / "b", uploaded(tmp_path / "a"))
    now = 0.0
    meter = Meter(None, Ledger(tmp_path / "b"), clock=lambda: now)
    meter.begin("step", 100)
    now = 7.0
    meter.close()
    assert meter.spent == Spent(seconds=57.0, tokens=600)
    first, second = Ledger(tmp_path / "b").shares().values()
    assert (first, second) == (Share(seconds=7.0, tokens=100), Share(seconds=50.0, tokens=500))


def test_an_action_that_a_kill_interrupted_counts_for_the_home_that_had_begun_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a")
    ledger.append(Entry(seconds=10.0, tokens=100, doing="step", expected_seconds=2.0, expected_tokens=30))
    ledger.close()
    adopt(tmp_path / "b", uploaded(tmp_path / "a"))
    spend(tmp_path / "b", 1.0, 10)
    assert Ledger(tmp_path / "b").last().settled() == Spent(seconds=13.0, tokens=140, interrupted_seconds=2.0)


def test_a_home_is_not_billed_for_what_its_own_state_expected_of_an_action(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a")
    ledger.append(Entry(seconds=10.0, tokens=100, doing="step", expected_seconds=2.0, expected_tokens=30))
    state = uploaded(tmp_path / "a")
    ledger.append(Entry(seconds=11.0, tokens=130))
    ledger.close()
    adopt(tmp_path / "b", state)
    spend(tmp_path / "b", 5.0, 50)
    for one in (state, uploaded(tmp_path / "b")):
        adopt(tmp_path / "a", one)
    assert Ledger(tmp_path / "a").last().settled() == Spent(seconds=16.0, tokens=180)


def test_a_home_that_lost_its_ledger_has_what_others_know_of_it(tmp_path: Path) -> None:
    spend(tmp_path / "a", 50.0, 500)
    adopt(tmp_path / "b", uploaded(tmp_path / "a"))
    spend(tmp_path / "b", 5.0, 50)
    (tmp_path / "a" / LEDGER).unlink()
    adopt(tmp_path / "a", uploaded(tmp_path / "b"))
    assert Ledger(tmp_path / "a").last().settled() == Spent(seconds=55.0, tokens=550)
    assert Ledger(tmp_path / "a").shares() == Ledger(tmp_path / "b").shares()


def test_the_pace_is_that_of_the_home_that_has_come_further(tmp_path: Path) -> None:
    pace = Throughput().after_step(100, 2.0)
    ledger = Ledger(tmp_path / "a")
    ledger.append(Entry(seconds=10.0, tokens=100, pace=pace))
    ledger.close()
    adopt(tmp_path / "b", uploaded(tmp_path / "a"))
    assert Ledger(tmp_path / "b").last().pace == pace


def test_a_home_that_lost_its_disk_is_another_one(tmp_path: Path) -> None:
    spend(tmp_path / "a", 50.0, 500)
    state = uploaded(tmp_path / "a")
    adopt(tmp_path / "new", state)
    spend(tmp_path / "new", 5.0, 50)
    assert Ledger(tmp_path / "new").last().seconds == 55.0
    assert len(Ledger(tmp_path / "new").shares()) == 2


def test_a_state_without_shares_counts_for_what_it_has_more(tmp_path: Path) -> None:
    spend(tmp_path / "a", 50.0, 500)
    for _ in range(2):
        adopt(tmp_path / "a", (Entry(seconds=80.0, tokens=600), {}))
        assert Ledger(tmp_path / "a").last().settled() == Spent(seconds=80.0, tokens=600)
    adopt(tmp_path / "a", (Entry(seconds=70.0, tokens=10), {}))
    assert Ledger(tmp_path / "a").last().settled() == Spent(seconds=80.0, tokens=600)


def test_the_rest_belongs_to_nobody() -> None:
    known = {"ab": Share(seconds=5.0, tokens=5)}
    assert with_rest(known, Share(seconds=5.0, tokens=5)) == known
    assert with_rest(known, Share(seconds=6.5, tokens=4)) == known | {UNKNOWN: Share(seconds=1.5)}


def test_a_damaged_file_counts_for_nothing(tmp_path: Path) -> None:
    spend(tmp_path, 1.0, 1)
    (tmp_path / ELSEWHERE).write_text('{"home": "ab", "shares": {"cd": {"seconds": -5}}}')
    assert Ledger(tmp_path).last().seconds == 1.0
