"""`luthier judge`: what it prints, and what it keeps."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.assessed import pair_ratings, reading_judge, write_ratings

from luthier.core.records.calibration import Calibration
from luthier.features.judges.format import show_calibration
from luthier.testing.openai_server import OpenAIServer, serving


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    return write_ratings(pair_ratings(), tmp_path / "ratings.csv")


def test_a_judge_is_held_against_people_and_listed(luthier, ratings: Path) -> None:
    with serving(OpenAIServer(answer=reading_judge)) as url:
        done = luthier("judge", "calibrate", "--ratings", ratings, "--judge", f"{url}#m", "--json")
        again = luthier("judge", "calibrate", "--ratings", ratings, "--judge", f"{url}#m")
    assert done.code == 0, done.err
    (found,) = done.document
    assert (found["target"], found["may_enter_gate"], found["num_items"]) == ("preference", True, 60)
    assert "May enter a gate" in again.out
    assert "first is better" in again.out
    listed = luthier("judge", "list", "--json")
    assert [one["may_enter_gate"] for one in listed.document] == [True, True]
    assert "may enter" in luthier("judge", "list").out
    assert luthier("judge", "list", "--judge", "another").out.startswith("no judge was compared with people yet")


def test_a_judge_that_takes_the_first_shown_is_told_so(luthier, ratings: Path) -> None:
    with serving(OpenAIServer(answer=lambda _: '{"better": "A"}')) as url:
        done = luthier("judge", "calibrate", "--ratings", ratings, "--judge", f"{url}#m")
    assert done.code == 0
    said = " ".join(done.out.replace("│", " ").split())
    for words in ("May not enter a gate", "must be at least 0.4", "of 120 showings with a winner"):
        assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--judge", "m"], "neither --ratings nor --panel"),
        (["--judge", "m", "--ratings", "gone.csv"], "there is no file gone.csv"),
        (["--judge", "http://127.0.0.1:9/v1", "--panel", "panel-1"], "panel-1"),
        (["--ratings", "gone.csv"], "--judge"),
    ],
)
def test_what_cannot_be_done_is_refused(luthier, arguments: list[str], words: str) -> None:
    done = luthier("judge", "calibrate", *arguments)
    assert done.code == 2
    assert words in done.err


def calibration() -> Calibration:
    estimate = {"value": 0.62, "low": 0.48, "high": 0.75}
    return Calibration.model_validate(
        {
            "calibration_id": "calibration-1",
            "created_at": "2026-11-26T12:00:00+00:00",
            "judge": "J\x1b[31m",
            "form": "0" * 64,
            "target": "relevance",
            "source": "panel-1",
            "num_items": 64,
            "num_raters": 3,
            "num_ratings": 192,
            "no_verdict": {"prose": 2},
            "measure": "quadratic kappa",
            "agreement": estimate,
            "people": {"value": 0.7, "low": 0.55, "high": 0.82},
            "alpha": None,
            "correlation": {"value": -0.9, "low": -1.0, "high": -0.5},
            "table": {"labels": ["1", "2", "3", "4", "5"], "counts": [[0, 1, 2, 3, 4, 1]] * 5},
            "may_enter_gate": True,
            "reasons": ["Its agreement is fine."],
            "cautions": ["J gave no verdict on 2 of 66 items."],
        }
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bars_fit_any_terminal_and_other_peoples_names_do_no_harm(encoding: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace" if encoding == "ascii" else "strict")
    console = Console(file=file, width=100, color_system=None, markup=False)
    show_calibration(console, calibration())
    file.seek(0)
    text = file.read()
    assert "\x1b[31m" not in text
    bars = [line for line in text.splitlines() if line.startswith(("quadratic", "rank", "alpha"))]
    assert len(bars) == 4
    assert len({len(line.partition("  ")[0]) for line in bars}) == len(bars)
    assert "0.62 [0.48, 0.75]" in text
    assert "cannot be told" in text
    assert ("●" in text) == (encoding == "utf-8")
