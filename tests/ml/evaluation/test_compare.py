import math
from dataclasses import replace

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.core.errors import DivergedError, NotFoundError, RequestError
from luthier.core.ports import SilentProgress
from luthier.ml.evaluation.compare import judge
from luthier.ml.evaluation.metrics.registry import load_metrics
from luthier.testing.engine_contract import CountingProgress

SILENT = SilentProgress()
WORDS = ["spruce", "maple", "ebony", "willow", "rosewood"]
REFERENCES = [f"the wood number {row} is {WORDS[row % 5]}" for row in range(40)]
GOOD = [reference if row % 4 else "no idea" for row, reference in enumerate(REFERENCES)]
BAD = ["no idea" if row % 10 else reference for row, reference in enumerate(REFERENCES)]


def run(systems, metrics=("perplexity", "bits_per_byte", "rouge", "bleu", "chrf", "exact_match", "token_f1")):
    return judge(systems, metrics=metrics, seed=0, progress=SILENT)


@pytest.fixture
def base(system_of):
    return system_of("base", BAD, REFERENCES, nats=2.0)


@pytest.fixture
def tuned(system_of):
    return system_of("tuned", GOOD, REFERENCES, nats=lambda e: 1.0 + 0.1 * (int(e.id.split(":")[1]) % 3), adapter="a")


def test_every_system_has_every_figure_within_its_interval(base, tuned):
    results, _ = run([base, tuned])
    assert [result.name for result in results] == ["base", "tuned"]
    for result in results:
        assert set(result.metrics) == {
            *("perplexity", "bits_per_byte", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"),
            *("exact_match", "exact_match_ignoring_case", "token_f1"),
        }
        for figure in result.metrics.values():
            assert figure.low <= figure.value <= figure.high
    assert results[0].metrics["perplexity"].value == pytest.approx(math.exp(2.0))
    assert results[1].metrics["exact_match"].value == pytest.approx(0.75)
    assert results[0].metrics["bits_per_byte"].value == pytest.approx(2.0 * 4 / 10 / math.log(2))


def test_each_later_system_is_held_against_each_earlier_one(base, tuned, system_of):
    shots = system_of("base + 4 examples", BAD, REFERENCES, shots=4)
    _, comparisons = run([base, shots, tuned], ["perplexity", "exact_match"])
    pairs = [(c.baseline, c.candidate) for c in comparisons if c.metric == "exact_match"]
    assert pairs == [("base", "base + 4 examples"), ("base", "tuned"), ("base + 4 examples", "tuned")]
    assert len(comparisons) == 3 * 3


def test_differences_agree_with_the_figures_and_words_with_the_direction(base, tuned):
    results, comparisons = run([base, tuned])
    by_name = {result.name: result for result in results}
    for comparison in nonempty(comparisons):
        candidate = by_name[comparison.candidate].metrics[comparison.metric]
        baseline = by_name[comparison.baseline].metrics[comparison.metric]
        assert comparison.difference == pytest.approx(candidate.value - baseline.value)
        assert comparison.low <= comparison.difference <= comparison.high
        assert comparison.verdict == "better"
        assert (comparison.difference > 0) == candidate.higher_is_better
        assert comparison.rows_needed is None
    _, backwards = run([tuned, base])
    assert {comparison.verdict for comparison in backwards} == {"worse"}


def test_a_small_difference_is_not_distinguishable_and_says_how_many_rows_would_settle_it(system_of):
    one = system_of("base", GOOD, REFERENCES)
    other = system_of("tuned", [*GOOD[:-2], "no idea", GOOD[-1]], REFERENCES)
    _, (comparison, *_) = run([one, other], ["exact_match"])
    assert comparison.verdict == "not distinguishable"
    # One of 40 rows differs: spread sqrt(0.025 * 0.975), so (2.8 / 0.025)^2 * 0.0244 rows.
    assert comparison.rows_needed == pytest.approx(306, rel=0.05)


def test_identical_systems_are_not_distinguishable_by_any_metric(base):
    _, comparisons = run([base, replace(base, name="again")])
    for comparison in nonempty(comparisons):
        assert comparison.verdict == "not distinguishable"
        assert (comparison.difference, comparison.p_value, comparison.rows_needed) == (0.0, 1.0, None)


def test_intervals_of_corpus_metrics_reach_as_far_as_resampled_corpora(base):
    (result,), _ = run([base], ["bleu"])
    bleu = load_metrics(["bleu"])[0]
    from luthier.ml.evaluation.metrics.protocol import Observations

    stats = bleu.statistics(Observations(outputs=BAD, references=REFERENCES))
    generator = np.random.default_rng(1)
    values = [float(bleu.aggregate(stats[generator.integers(0, 40, 40)].sum(axis=0))) for _ in range(2_000)]
    low, high = np.quantile(values, [0.025, 0.975])
    # and a little further, since a bootstrap of 40 rows is too sure of itself
    assert low - 10 < result.metrics["bleu"].low < low + 1
    assert high - 1 < result.metrics["bleu"].high < high + 10


def test_samples_carry_prompt_reference_output_and_their_own_scores(base):
    (result,), _ = run([base])
    sample = result.samples[0]
    assert (sample.row_id, sample.prompt, sample.reference) == ("test.jsonl:1", "question 0", REFERENCES[0])
    assert sample.output == BAD[0] == REFERENCES[0]
    assert sample.scores["exact_match"] == 1.0
    assert sample.scores["perplexity"] == pytest.approx(math.exp(2.0))
    assert "bleu" not in sample.scores
    assert result.num_samples == len(result.samples) == 40


def test_answers_with_a_canonical_form_are_compared_in_it_and_shown_as_they_are(system_of):
    def in_order(text):
        return ", ".join(sorted(text.split(", ")))

    references = ["a, b", "b", "c, a"] * 4
    one = replace(system_of("one", ["b, a", "b", "c"] * 4, references), canonical=in_order)
    (result,), _ = run([one], ["exact_match"])
    assert [sample.scores["exact_match"] for sample in result.samples] == [1.0, 1.0, 0.0] * 4
    assert result.metrics["exact_match"].value == pytest.approx(2 / 3)
    assert [(sample.output, sample.reference) for sample in result.samples[:1]] == [("b, a", "a, b")]
    (plain,), _ = run([replace(one, canonical=None)], ["exact_match"])
    assert plain.metrics["exact_match"].value == pytest.approx(1 / 3)


def test_answers_cut_off_are_counted(system_of):
    (result,), _ = run([system_of("base", BAD, REFERENCES, max_new_tokens=3)], ["rouge"])
    assert result.num_cut_off == sum(len(answer.split()) > 3 for answer in BAD) == 4


def test_plain_text_is_scored_only_and_text_metrics_are_refused(base):
    plain = replace(base, prompts=(), references=(), prompt_texts=())
    (result,), _ = run([plain], ["perplexity", "bits_per_byte"])
    assert result.samples == ()
    with pytest.raises(RequestError, match="rouge_1 on rows without a prompt and an answer"):
        run([plain], ["perplexity", "rouge"])


def test_only_what_a_metric_needs_is_run(base):
    run([replace(base, tokenised=(), num_bytes=())], ["exact_match"])
    with pytest.raises(RequestError, match="without tokens"):
        run([replace(base, tokenised=(), num_bytes=())], ["perplexity"])


def test_perplexities_of_different_tokens_are_not_compared(base, system_of):
    other = system_of("other", GOOD, REFERENCES, tokens=6)
    results, comparisons = run([base, other], ["perplexity", "bits_per_byte"])
    assert [comparison.metric for comparison in comparisons] == ["bits_per_byte"]
    assert all(nonempty("perplexity" in result.metrics for result in results))


def test_a_figure_that_is_not_finite_is_an_error(system_of):
    with pytest.raises(DivergedError, match="perplexity of base"):
        run([system_of("base", BAD, REFERENCES, nats=800.0)], ["perplexity"])


def test_systems_that_do_not_fit_together_are_refused(base, tuned):
    with pytest.raises(RequestError, match="other rows"):
        run([base, replace(tuned, row_ids=tuned.row_ids[::-1])])
    with pytest.raises(RequestError, match="base"):
        run([base, base])
    with pytest.raises(RequestError, match="at least one system"):
        run([])
    with pytest.raises(RequestError, match="0 metrics"):
        run([base], [])
    with pytest.raises(RequestError, match=r"\[39, 40, 40\] values for 40 rows"):
        run([replace(base, prompts=base.prompts[1:])])
    with pytest.raises(RequestError, match="0 bytes"):
        run([replace(base, num_bytes=(0,) * 40)])
    with pytest.raises(RequestError, match="different ids"):
        run([replace(base, row_ids=("a",) * 40)])
    with pytest.raises(NotFoundError, match="blue"):
        run([base], ["blue"])


def test_progress_speaks_of_each_system(base, tuned):
    titles = []

    class Noting(CountingProgress):
        def task(self, title, total, unit, done=0):
            titles.append(title)
            return super().task(title, total, unit, done)

    progress = Noting()
    judge([base, tuned], metrics=["perplexity", "rouge"], seed=0, progress=progress)
    assert titles[:4] == ["base: writing answers", "base: scoring", "tuned: writing answers", "tuned: scoring"]
    assert progress.done == progress.total


def test_pairs_are_judged_by_what_each_side_gained_over_the_first_system(system_of):
    """The base finds every chosen side unlikelier; tuned gains on it in three rows of four."""
    rejected = system_of("other", BAD, REFERENCES, tokens=2).tokenised
    base = replace(system_of("base", BAD, REFERENCES, nats=1.0), rejected=rejected)
    nats = lambda e: 0.8 if e.num_tokens > 3 and int(e.id.split(":")[1]) % 4 else 1.0  # noqa: E731
    tuned = replace(system_of("tuned", BAD, REFERENCES, nats=nats, adapter="a"), rejected=rejected)
    results, comparisons = run([base, tuned], ["reward_accuracy", "preference_accuracy", "preference_margin"])
    assert results[0].metrics["reward_accuracy"].value == 0.5
    assert results[1].metrics["reward_accuracy"].value == pytest.approx(0.75 + 0.25 / 2)
    assert results[0].metrics["preference_accuracy"].value == 0.0
    assert results[0].metrics["preference_margin"].value == pytest.approx(-2.0)
    assert results[1].metrics["preference_margin"].value == pytest.approx(-2.0 + 0.75 * 0.8)
    assert {c.metric: c.verdict for c in comparisons}["reward_accuracy"] == "better"


def test_metrics_of_pairs_need_both_sides(base):
    with pytest.raises(RequestError, match="two sides"):
        run([base], ["preference_accuracy"])
