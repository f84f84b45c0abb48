"""The shop's rows and the ways to recommend without a model are what the story says they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vacuous import nonempty

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def make_story(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples" / "shop")
    import make_story

    return make_story


@pytest.fixture
def compare(make_story: Any) -> Any:
    import compare

    return compare


def test_the_same_numbers_make_the_same_rows_and_nobody_is_on_two_sides(make_story: Any) -> None:
    rows = make_story.make(200)
    assert rows == make_story.make(200) != make_story.make(200, seed=1)
    for task, key in (("recommend", "customer"), ("triage", "prompt")):
        sides = [{row[key] for row in rows[f"{task}_{side}"]} for side in ("train", "validation", "held_out")]
        assert len(set.union(*sides)) == sum(map(len, sides))
    assert sum(len(rows[f"recommend_{side}"]) for side in ("train", "validation", "held_out")) == 200


def test_held_out_messages_are_said_in_ways_that_no_other_message_uses(make_story: Any) -> None:
    rows = make_story.make(400)
    for label, ways in nonempty(make_story.TRIAGE.items()):
        for place, way in nonempty(enumerate(ways)):
            start, end = way.split("{}")
            used = {
                side
                for side in ("train", "validation", "held_out")
                for row in rows[f"triage_{side}"]
                if start in row["prompt"] and end in row["prompt"] and row["completion"] == label
            }
            known = place < make_story.NUM_KNOWN
            assert "held_out" not in used if known else used <= {"held_out"}, way


def test_odds_are_odds_and_customers_follow_them(make_story: Any) -> None:
    odds = make_story.chances("walnut board", "kitchen")
    assert sum(odds.values()) == pytest.approx(1)
    assert max(odds, key=odds.__getitem__) == "steel pan"
    # by hand: the rule, and a shelf's and everything's share of a thing that sells half as well as the best
    assert odds["steel pan"] == pytest.approx(0.5 + 0.33 * 0.5 / (1 + 1 / 2 + 1 / 3 + 1 / 4) + 0.17 * 0.5 / 12.5)
    rows = make_story.make(4000)["recommend_train"]
    by_the_rule = sum(row["completion"] == make_story.GOES_WITH[row["last"]] for row in rows) / len(rows)
    expected = sum(
        make_story.chances(row["last"], row["shelf"])[make_story.GOES_WITH[row["last"]]] for row in rows
    ) / len(rows)
    assert by_the_rule == pytest.approx(expected, abs=0.03)


def test_ways_without_a_model_order_all_things(make_story: Any, compare: Any) -> None:
    rows = make_story.make(600)
    held_out = rows["recommend_held_out"]
    found = compare.orders(rows["recommend_train"], held_out)
    assert list(found) == ["popularity", "goes together", "the shop's rule"]
    for order in found.values():
        assert all(nonempty(sorted(things) == sorted(make_story.THINGS) for things in order))
    assert len({tuple(things) for things in found["popularity"]}) == 1
    ids = [row["customer"] for row in held_out]
    means = {
        name: sum(row["hit_at_1"] for row in compare.values(order, held_out, ids).values()) / len(ids)
        for name, order in found.items()
    }
    assert means["popularity"] < means["goes together"] <= means["the shop's rule"]


def test_the_table_holds_a_model_that_knows_all_against_the_rest(make_story: Any, compare: Any, tmp_path: Path) -> None:
    rows = make_story.make(100)
    held_out = rows["recommend_held_out"]
    best = dict.fromkeys(("hit_at_1", "hit_at_3", "hit_at_5", "ndcg_at_5"), 1.0)
    samples = [{"row_id": str(place), "prompt": f"user: {row['prompt']}"} for place, row in enumerate(held_out)]
    systems = [
        {
            "name": name,
            "samples": [one | {"scores": {key: value * good for key, value in best.items()}} for one in samples],
        }
        for name, good in (("small", 0.0), ("run-1", 1.0))
    ]
    suite = {"candidate": "run-1", "tasks": [{"name": "next_item", "systems": systems}]}
    found = compare.systems(json.loads(json.dumps(suite)), rows["recommend_train"], held_out)
    lines, intervals = compare.table(found)
    assert [line[0] for line in lines[1:]] == ["tuned", "base", "popularity", "goes together", "the shop's rule"]
    assert lines[1][1].startswith("1.00 [")
    assert lines[1][-1] == ""
    assert lines[2][1].startswith("0.00 [")
    assert lines[2][-1].startswith("+1.00")
    compare.draw(intervals, len(held_out), tmp_path / "hits.svg")
    assert (tmp_path / "hits.svg").read_text(encoding="utf-8").count("NDCG@5") == 1
