from __future__ import annotations

from collections.abc import Callable

from tests.vacuous import nonempty

from luthier.core.evaluation import Evaluation
from luthier.ml.evaluation.report.evaluation_results import Choices, choose_samples
from luthier.ml.evaluation.result_views import roles

Make = Callable[..., Evaluation]


def chosen(evaluation: Evaluation) -> Choices:
    found = roles(evaluation)
    assert found is not None
    return choose_samples(evaluation, found)


def gains(evaluation: Evaluation) -> dict[str, float]:
    base, tuned = evaluation.systems[0].samples, evaluation.systems[2].samples
    return {t.row_id: t.scores["rouge_l"] - b.scores["rouge_l"] for b, t in zip(base, tuned, strict=True)}


def test_three_best_three_worst_and_four_of_the_rest(evaluation_of: Make) -> None:
    evaluation = evaluation_of(200)
    order = sorted(gains(evaluation).items(), key=lambda item: item[1])
    found = chosen(evaluation)
    by_kind = {kind: [c.row_id for c in found.chosen if c.kind == kind] for kind in ("best", "worst", "random")}
    assert by_kind["best"] == [row for row, _ in reversed(order[-3:])]
    assert by_kind["worst"] == [row for row, _ in order[:3]]
    assert len(by_kind["random"]) == 4
    assert len({c.row_id for c in found.chosen}) == 10
    assert found.metric == "rouge_l"
    assert "200" in found.rule
    assert "ROUGE-L" in found.rule


def test_the_same_evaluation_shows_the_same_rows_and_another_id_draws_others(evaluation_of: Make) -> None:
    first, again = chosen(evaluation_of(200)), chosen(evaluation_of(200))
    other = chosen(evaluation_of(200, evaluation_id="eval-20261125-094000-ffffff"))
    assert first == again
    assert [c.row_id for c in first.chosen[:6]] == [c.row_id for c in other.chosen[:6]]
    assert [c.row_id for c in first.chosen[6:]] != [c.row_id for c in other.chosen[6:]]


def test_few_rows_are_all_shown_once(evaluation_of: Make) -> None:
    for num in range(1, 11):
        found = chosen(evaluation_of(num))
        assert sorted(c.row_id for c in found.chosen) == sorted(f"held_out.jsonl:{i + 1}" for i in range(num))


def test_gain_is_positive_where_lower_is_better_and_it_went_down(evaluation_of: Make) -> None:
    evaluation = evaluation_of(20)
    systems = []
    for place, system in enumerate(evaluation.systems):
        samples = tuple(s.model_copy(update={"scores": {"perplexity": 9.0 - place}}) for s in system.samples)
        systems.append(system.model_copy(update={"samples": samples}))
    found = chosen(evaluation.model_copy(update={"systems": tuple(systems)}))
    assert found.metric == "perplexity"
    assert {c.gain for c in found.chosen} == {2.0}
    assert "has no score for single rows" in found.rule


def test_without_scores_all_are_random_and_the_page_says_so(evaluation_of: Make) -> None:
    evaluation = evaluation_of(40)
    bare = [
        s.model_copy(update={"samples": tuple(x.model_copy(update={"scores": {}}) for x in s.samples)})
        for s in evaluation.systems
    ]
    found = chosen(evaluation.model_copy(update={"systems": tuple(bare)}))
    assert [c.kind for c in found.chosen] == ["random"] * 10
    assert found.metric is None
    assert "all samples are random" in found.rule


def test_a_row_without_a_score_is_neither_best_nor_worst_and_is_told_of(evaluation_of: Make) -> None:
    evaluation = evaluation_of(40)
    tuned = evaluation.systems[2]
    bare = tuple(s.model_copy(update={"scores": {}}) if place < 30 else s for place, s in enumerate(tuned.samples))
    changed = (*evaluation.systems[:2], tuned.model_copy(update={"samples": bare}))
    found = chosen(evaluation.model_copy(update={"systems": changed}))
    assert found.metric == "rouge_l"
    assert "30 rows have no such score" in found.rule
    assert len(found.chosen) == 10
    assert all(nonempty((c.gain is not None) for c in found.chosen if c.kind != "random"))


def test_one_system_alone_is_ranked_by_its_own_score(evaluation_of: Make) -> None:
    evaluation = evaluation_of(40)
    alone = evaluation.model_copy(update={"systems": evaluation.systems[2:], "comparisons": ()})
    best = chosen(alone).chosen[0]
    assert best.gain == max(s.scores["rouge_l"] for s in alone.systems[0].samples)
    assert len(best.outputs) == 1


def test_likelihood_only_has_no_samples(evaluation_of: Make) -> None:
    evaluation = evaluation_of(40)
    silent = tuple(s.model_copy(update={"samples": ()}) for s in evaluation.systems)
    found = chosen(evaluation.model_copy(update={"systems": silent}))
    assert found.chosen == ()
    assert "no samples" in found.rule


def test_roles_with_and_without_an_adapter(evaluation_of: Make) -> None:
    evaluation = evaluation_of(5)
    found = roles(evaluation)
    assert found is not None
    assert (found.candidate, found.baseline) == ("tuned", "smollm2-135m-instruct")
    full = tuple(s.model_copy(update={"adapter": None}) for s in evaluation.systems)
    assert roles(evaluation.model_copy(update={"systems": full})) == found
    assert roles(evaluation.model_copy(update={"systems": ()})) is None


def test_a_reference_run_with_an_adapter_is_not_taken_for_the_fully_tuned_model(evaluation_of: Make) -> None:
    evaluation = evaluation_of(5)
    base, shots, tuned = evaluation.systems
    # Full fine-tuning makes a model of its own: only the run beside it has an adapter.
    earlier = base.model_copy(update={"name": "run-earlier", "adapter": "/runs/earlier"})
    systems = (base, shots, earlier, tuned.model_copy(update={"adapter": None}))
    found = roles(evaluation.model_copy(update={"systems": systems}))
    assert found is not None
    assert (found.candidate, found.baseline) == ("tuned", base.name)
