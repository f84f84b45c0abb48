"""`luthier human-eval`: from rows to links, from ratings to pairs; every word as text and as one document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.assessed import careful, clicking, make_panel, rate_all
from tests.fixtures.cli import Luthier
from tests.vacuous import nonempty

from luthier.core.results.human_eval import RatingsTable
from luthier.platform.home.context import Context
from luthier.testing.records import make_evaluation


@pytest.fixture
def rated(home: Path) -> str:
    """A panel that three have rated, one of whom clicks."""
    with Context.open(home) as context:
        made = make_panel(context, num_rows=25)
        for place in (0, 1):
            rate_all(context, made, place, careful("pairwise", seed=place))
        rate_all(context, made, 2, clicking("pairwise", seed=3))
    return made.panel.panel_id


def test_a_panel_of_an_evaluation_prints_a_link_a_rater(luthier: Luthier, home: Path) -> None:
    evaluation = make_evaluation(run_id=None)
    with Context.open(home) as context:
        context.evaluations.save(evaluation)
    options = ("--evaluation", evaluation.evaluation_id, "--raters", "Ada,Ben", "--kind", "likert", "--attention", 0)
    done = luthier("human-eval", "create", *options, "--url", "https://rate.example.org/")
    assert done.code == 0, done.err
    assert done.out.count("https://rate.example.org/rate/") == 2
    again = luthier("human-eval", "create", *options, "--json").document
    assert [one["rater"] for one in again["links"]] == ["Ada", "Ben"]
    assert again["num_checks"] == 0
    assert len(luthier("human-eval", "list", "--json").document) == 2
    assert again["panel_id"] in luthier("human-eval", "list").out


def test_systems_answer_rows_for_a_panel(luthier: Luthier, tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(3)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = tmp_path / "words.txt"
    words.write_text("Look it up.")
    options = ("--systems", tiny_model, "--data", data, "--kind", "likert", "--max-new-tokens", 4)
    made = luthier("human-eval", "create", *options, "--instructions", words, "--raters", 1, "--json")
    assert made.code == 0, made.err
    assert (made.document["num_items"], made.document["instructions"]) == (5, "Look it up.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "neither --data nor --evaluation"),
        (("--data", "x.jsonl", "--evaluation", "eval-1"), "--data and --evaluation"),
        (("--evaluation", "eval-1"), "no evaluation"),
        (("--data", "missing.jsonl"), "systems none"),
        (("--systems", "a,b", "--data", "missing.jsonl"), "model 'a' does not exist"),
        (("--systems", "smollm2-135m-instruct,qwen3-0.6b", "--data", "missing.jsonl"), "missing.jsonl"),
        (("--evaluation", "e", "--instructions", "missing.txt"), "missing.txt"),
        (("--evaluation", "e", "--url", "example.org"), "--url"),
        (("--evaluation", "e", "--project", "none"), "none"),
    ],
)
def test_what_cannot_be_made_says_why(luthier: Luthier, options: tuple[str, ...], words: str) -> None:
    done = luthier("human-eval", "create", *options)
    assert done.code == 2
    assert words in done.err


def test_the_status_names_who_does_not_read(luthier: Luthier, rated: str) -> None:
    done = luthier("human-eval", "status", rated)
    assert done.code == 0, done.err
    for words in ("Cleo failed", "Everyone", "Without Cleo", "Krippendorff", "win rate", "nothing is dropped"):
        assert words in done.out
    document = luthier("human-eval", "status", rated, "--json").document
    assert document["caught"] == ["Cleo"]
    assert document["without_caught"]["win_rates"][0]["rate"]["low"] > 0


def test_files_pairs_links_and_the_end(luthier: Luthier, rated: str, tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    assert luthier("human-eval", "export", rated, "-o", table).code == 0
    assert RatingsTable.read(table).raters == ("Ada", "Ben", "Cleo")
    pairs = tmp_path / "pairs.jsonl"
    told = luthier("human-eval", "pairs", rated, "-o", pairs)
    assert "without Cleo" in told.out
    assert "left out" in told.out
    assert all(
        nonempty(set(json.loads(line)) == {"prompt", "chosen", "rejected"} for line in pairs.read_text().splitlines())
    )
    tasks = tmp_path / "tasks.json"
    luthier("human-eval", "export", rated, "-o", tasks)
    assert "imported" in luthier("human-eval", "import-labelstudio", rated, tasks).out
    assert "/rate/" in luthier("human-eval", "link", rated, "Ada").out
    assert luthier("human-eval", "link", rated, "Ada", "--revoke").out == "revoked\n"
    assert luthier("human-eval", "link", rated, "Dora", "--json").document["rater"] == "Dora"
    assert luthier("human-eval", "link", rated, "Nobody", "--revoke").code == 2
    assert "closed" in luthier("human-eval", "close", rated).out
    assert luthier("human-eval", "close", rated).code == 2
    for wrong in (("export", rated, "-o", "x.xlsx"), ("pairs", rated, "-o", "x.csv"), ("status", "panel-9")):
        assert luthier("human-eval", *wrong).code == 2
    assert luthier("human-eval", "export", rated, "-o", tmp_path / "no" / "x.csv").code == 2
