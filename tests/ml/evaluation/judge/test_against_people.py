import json
import random

import numpy as np
import pytest

from luthier.core.ports import SilentProgress
from luthier.core.records.calibration import FEWEST_ITEMS, LOWEST_KAPPA
from luthier.core.results.human_eval import RatingRow, RatingsTable
from luthier.ml.evaluation.judge.against_people import Occasion, calibrate, targets_of
from luthier.testing.fake_engine import FakeEngine

SILENT = SilentProgress()
OCCASION = Occasion(
    calibration_ids={name: f"calibration-{name}" for name in ("preference", "relevance", "accuracy")},
    created_at="2026-11-26T12:00:00+00:00",
    judge="J",
    source="ratings.csv",
    cautions=("known before",),
)
NUM = 80


def truth(item):
    """Which of the two answers is the good one, and how good a single answer is."""
    return ("a", "b", "a", "b", "tie")[item % 5], 1 + item % 5


def pair_rows(num=NUM, raters=("ann", "bob", "eve"), careful=0.9, seed=0, says=None):
    drawn = random.Random(seed)
    rows = []
    for item in range(num):
        for rater in raters:
            word = truth(item)[0] if drawn.random() < careful else drawn.choice(["a", "b", "tie"])
            rows.append(pair_row(item, rater, says or word))
    return RatingsTable(tuple(rows))


def pair_row(item, rater, preference, **more):
    good = truth(item)[0]
    words = {"a": ("good", "bad"), "b": ("bad", "good"), "tie": ("same", "equal")}[good]
    texts = [f"{word} " + "filler " * (item * 7 % (5 + side)) for side, word in enumerate(words)]
    known = {"panel_id": "p", "kind": "pairwise", "item": item, "row_id": f"r{item}", "prompt": f"question {item}"}
    answers = {"system_a": "one", "answer_a": texts[0], "system_b": "two", "answer_b": texts[1]}
    return RatingRow(**known, **answers, rater=rater, preference=preference, **more)


def score_rows(num=NUM, raters=("ann", "bob", "eve"), careful=0.9, seed=0):
    drawn = random.Random(seed)

    def score(item):
        return truth(item)[1] if drawn.random() < careful else drawn.randint(1, 5)

    return RatingsTable(
        tuple(
            RatingRow(
                panel_id="p", kind="likert", item=item, row_id=f"r{item}", rater=rater, prompt=f"question {item}",
                system_a="one", answer_a=f"level {truth(item)[1]}", relevance=score(item), accuracy=score(item),
            )
            for item in range(num)
            for rater in raters
        )
    )  # fmt: skip


def shown(prompt):
    text = prompt.conversation.messages[0].content
    return [text.split(f"[answer {name}, ")[1].split("\n", 1)[1].split("\n[end of")[0] for name in "AB"]


def reads(prompt):
    first, second = shown(prompt)
    word = "A" if first.startswith("good") else "B" if second.startswith("good") else "tie"
    return json.dumps({"better": word})


def held(answer, table):
    return calibrate(FakeEngine(answer), table, OCCASION, SILENT)


def test_a_judge_that_agrees_with_people_may_enter():
    (found,) = held(reads, pair_rows())
    assert found.may_enter_gate
    assert found.agreement.low >= LOWEST_KAPPA
    assert "is kappa" in found.reasons[0]
    assert (found.target, found.num_items, found.num_raters, found.num_ratings) == ("preference", NUM, 3, 3 * NUM)
    assert found.people.low > 0.5
    assert found.alpha.low > 0.5
    assert found.correlation is None
    counts = np.array(found.table.counts)
    assert counts.shape == (3, 4)
    assert counts.sum() == NUM
    assert np.trace(counts) > 0.8 * NUM
    assert found.cautions[0] == "known before"
    assert found.bias.num_flipped == 0


def test_a_judge_that_takes_the_first_shown_may_not():
    (found,) = held(lambda prompt: '{"better": "A"}', pair_rows())
    assert not found.may_enter_gate
    assert found.agreement.high < LOWEST_KAPPA
    assert "must be at least 0.4 at the interval's low end" in " ".join(found.reasons)
    assert found.bias.first_shown.value == 1.0
    assert any("leans to the first" in one for one in found.cautions)
    assert np.array(found.table.counts)[:, 1].sum() == NUM


def test_a_judge_that_prefers_length_is_seen_beside_people():
    def longer(prompt):
        first, second = map(len, shown(prompt))
        return json.dumps({"better": "tie" if first == second else "A" if first > second else "B"})

    (found,) = held(longer, pair_rows())
    assert not found.may_enter_gate
    assert found.bias.length.low > 0.4 > found.bias.people_length.value
    assert any("prefers longer answers" in one and "; people: " in one for one in found.cautions)


def test_too_few_items_say_nothing_however_well_they_agree():
    (found,) = held(reads, pair_rows(num=20, careful=1.0))
    assert not found.may_enter_gate
    assert found.reasons == (f"It was compared with people on 20 items; at least {FEWEST_ITEMS} are needed.",)


def test_verdicts_that_are_none_are_counted_and_too_many_bar_the_gate():
    def shy(prompt):
        number = int(prompt.conversation.messages[0].content.split("question ")[1].split("\n")[0])
        return "I'd rather not say." if number % 4 == 0 else reads(prompt)

    (found,) = held(shy, pair_rows())
    assert found.no_verdict == {"prose": 20}
    assert found.num_items == NUM - 20
    assert found.agreement.low > LOWEST_KAPPA
    assert found.reasons == ("It gave no verdict on 20 of 80 items; at most 10% may be missing.",)
    assert np.array(found.table.counts)[:, -1].sum() == 20
    assert any("no verdict on 20 of 80 items (25%)" in one for one in found.cautions)


def test_a_judge_that_never_gives_a_verdict_is_reported_and_not_raised():
    (found,) = held(lambda prompt: "Both have their merits, I would say.", pair_rows())
    assert (found.num_items, found.agreement, found.bias) == (0, None, None)
    assert not found.may_enter_gate


def test_one_rater_an_item_leaves_peoples_own_agreement_unknown():
    (found,) = held(reads, pair_rows(raters=("ann",)))
    assert (found.people, found.alpha) == (None, None)
    assert any("How far people agree with each other is not known" in one for one in found.cautions)
    assert found.may_enter_gate


def test_people_who_all_say_the_same_of_everything_prove_nothing():
    (found,) = held(
        lambda prompt: json.dumps({"better": "AB"[shown(prompt)[1] > shown(prompt)[0]]}), pair_rows(says="a")
    )
    assert not found.may_enter_gate
    (same,) = held(lambda prompt: '{"better": "tie"}', pair_rows(says="tie"))
    assert same.agreement is None
    assert "cannot be measured" in " ".join(same.reasons)


def test_people_who_click_at_random_are_no_measure_for_a_judge():
    (found,) = held(reads, pair_rows(careful=0.0))
    assert not found.may_enter_gate
    assert found.people.high < LOWEST_KAPPA
    assert any("better instructions for people" in one for one in found.cautions)


def test_attention_checks_are_not_part_of_it():
    table = pair_rows()
    checks = tuple(pair_row(1000 + n, "ann", "a", is_check=True, passed=True) for n in range(5))
    (found,) = held(reads, RatingsTable(table.rows + checks))
    assert found.num_items == NUM


def test_scores_are_held_against_people_one_criterion_at_a_time():
    def answer(prompt):
        level = int(prompt.conversation.messages[0].content.split("level ")[1].split("\n")[0])
        return json.dumps({"relevance": level, "accuracy": 6 - level})

    table = score_rows()
    assert targets_of(table) == ("relevance", "accuracy")
    relevance, accuracy = held(answer, table)
    assert (relevance.target, relevance.measure) == ("relevance", "quadratic kappa")
    assert relevance.may_enter_gate
    assert relevance.correlation.low > 0.7
    assert not accuracy.may_enter_gate
    assert accuracy.correlation.high < 0
    assert relevance.table.labels == ("1", "2", "3", "4", "5")
    assert relevance.bias is None


def test_a_judge_that_is_always_one_point_too_kind_ranks_well_and_agrees_less():
    def answer(prompt):
        level = int(prompt.conversation.messages[0].content.split("level ")[1].split("\n")[0])
        return json.dumps({"relevance": min(5, level + 1), "accuracy": level})

    kind, exact = held(answer, score_rows(careful=1.0))
    assert exact.agreement.value == pytest.approx(1.0)
    assert kind.correlation.value > 0.9
    assert kind.agreement.value < 0.9
