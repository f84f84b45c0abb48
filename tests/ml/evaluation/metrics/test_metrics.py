"""Every metric against its reference implementation, on texts that hypothesis finds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.core.errors import NotFoundError
from luthier.core.ports import Score
from luthier.core.text.written_numbers import NumberMarks
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.metrics.reference_based import NormalisedAbsoluteError
from luthier.ml.evaluation.metrics.registry import BUILT_IN, FAMILIES, load_metrics

WORDS = st.sampled_from(["the", "cat", "cats", "sat", "on", "a", "mat", ".", "Grüße", "x1", "running"])
TEXT = st.lists(WORDS, max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


def metric(name):
    return load_metrics([name])[0]


def observed(pairs):
    outputs, references = zip(*pairs, strict=True)
    return Observations(outputs=outputs, references=references)


def value(name, pairs):
    definition = metric(name)
    return float(definition.aggregate(definition.statistics(observed(pairs)).sum(axis=0)))


@given(PAIRS)
def test_bleu_is_corpus_bleu_of_sacrebleu(pairs):
    import sacrebleu

    outputs, references = zip(*pairs, strict=True)
    expected = sacrebleu.corpus_bleu(list(outputs), [list(references)]).score
    assert value("bleu", pairs) == pytest.approx(expected, abs=1e-9)


@given(PAIRS)
def test_chrf_is_corpus_chrf_of_sacrebleu(pairs):
    import sacrebleu

    outputs, references = zip(*pairs, strict=True)
    expected = sacrebleu.corpus_chrf(list(outputs), [list(references)]).score
    assert value("chrf", pairs) == pytest.approx(expected, abs=1e-9)


@given(PAIRS)
@settings(max_examples=50)
def test_rouge_is_the_mean_of_rouge_score(pairs):
    from rouge_score.rouge_scorer import RougeScorer

    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        scorer = RougeScorer([kind], use_stemmer=True)
        expected = np.mean([scorer.score(reference, output)[kind].fmeasure for output, reference in pairs])
        assert value(name, pairs) == pytest.approx(expected)


@given(PAIRS)
def test_the_formula_works_on_many_sums_at_once(pairs):
    for name in ("bleu", "chrf", "rouge_l", "exact_match", "token_f1", "label_accuracy"):
        definition = metric(name)
        stats = definition.statistics(observed(pairs))
        one_by_one = [float(definition.aggregate(row)) for row in stats]
        assert definition.aggregate(stats) == pytest.approx(one_by_one)
        assert definition.aggregate(stats[None]).shape == (1, len(pairs))


@given(PAIRS)
def test_a_system_that_repeats_the_references_has_the_best_figure(pairs):
    same = [(reference, reference) for _, reference in pairs]
    for name in ("exact_match", "exact_match_ignoring_case", "token_f1"):
        assert value(name, same) == 1.0
    assert value("chrf", same) == pytest.approx(100.0 if any(r.strip() for _, r in pairs) else 0.0)


def test_exact_match_strips_and_no_more():
    pairs = [(" SELECT a\n", "SELECT a"), ("select a", "SELECT a"), ("SELECT  a", "SELECT a"), ("", "SELECT a")]
    assert value("exact_match", pairs) == 0.25
    assert value("exact_match_ignoring_case", pairs) == 0.5


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("$1,100", 0.0),
        ("1100 EUR", 0.0),
        ("$1,150", 0.05),
        ("$1,050", 0.05),
        ("9e9", 1.0),  # farther away than the references are from each other
        ("eleven hundred", 1.0),
        ("", 1.0),
    ],
)
def test_nmae_is_the_distance_as_a_share_of_the_range_of_the_references(output, error):
    # The references lie between 500 and 1,500.
    pairs = [("$500", "$500"), (output, "$1,100"), ("$1,500", "$1,500"), ("$500", "$500")]
    assert value("nmae", pairs) == pytest.approx(error / 4)
    assert metric("nmae").statistics(observed(pairs))[1].tolist() == pytest.approx([error, 1.0])


def test_numbers_are_read_as_the_references_write_them_or_as_all_rows_do():
    pairs = [("1.500", "1.000"), ("2.000", "2.000")]
    german = [*pairs, ("0,00", "0,00")]
    # From 0 to 2,000, of which the first answer is 500 off.
    assert value("nmae", german) == pytest.approx(0.25 / 3)
    assert value("nmae", [("1.5", "1,5"), ("2,5", "2,5")]) == 0.5  # no number by a decimal comma
    # Two whole numbers show nothing: a decimal point by themselves, thousands beside all other rows.
    assert value("nmae", [("750", "1.000"), ("500", "2.000")]) == 1.0
    by_rows = NormalisedAbsoluteError(NumberMarks(",", "."))
    stats = by_rows.statistics(observed([("750", "1.000"), ("500", "2.000")]))
    assert stats[:, 0].tolist() == pytest.approx([0.25, 1.0])


def test_nmae_has_a_figure_where_there_is_no_range_and_where_a_reference_is_no_number():
    assert value("nmae", [("3", "3.0"), ("4", "3")]) == 0.5
    assert value("nmae", [("none", "none "), ("3", "none"), ("1e308", "-1e308"), ("1", "1e308")]) == pytest.approx(
        (0 + 1 + 1 + 0.5) / 4
    )


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [
        ("The cat sat.", "a cat SAT", 1.0),
        ("cat dog", "cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("the", "a", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_token_f1_follows_squad(output, reference, expected):
    assert value("token_f1", [(output, reference)]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [
        ("\n  Positive \nbecause it is kind", "positive", 1.0),
        ("positive, surely", "positive", 0.0),
        ("", "positive", 0.0),
        ("", "", 0.0),
        ("STRASSE", "straße", 1.0),
    ],
)
def test_label_accuracy_reads_the_first_line_with_text(output, reference, expected):
    assert value("label_accuracy", [(output, reference)]) == expected


def scored(*rows):
    scores = [Score(nll_nats=nats, num_tokens=tokens, num_correct=0) for nats, tokens, _ in rows]
    return Observations(scores=scores, num_bytes=[num_bytes for *_, num_bytes in rows])


def test_perplexity_weighs_tokens_not_rows():
    definition = metric("perplexity")
    stats = definition.statistics(scored((3 * math.log(8), 3, 1), (math.log(2), 1, 1)))
    assert float(definition.aggregate(stats.sum(axis=0))) == pytest.approx(2 ** (10 / 4))
    assert definition.aggregate(stats) == pytest.approx([8.0, 2.0])


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight():
    definition = metric("bits_per_byte")
    stats = definition.statistics(scored((7 * math.log(256), 7, 7), (2 * math.log(256), 2, 2)))
    assert float(definition.aggregate(stats.sum(axis=0))) == pytest.approx(8.0)


def test_every_metric_in_the_table_says_what_it_is():
    for name, definition in nonempty(zip(BUILT_IN, load_metrics(list(BUILT_IN)), strict=True)):
        assert definition.name == name
        assert definition.unit
        assert definition.title
        assert definition.needs in ("likelihood", "text", "pairs", "ranking")
        is_cost = definition.needs == "likelihood" or name == "nmae"
        assert definition.higher_is_better == (not is_cost)


def test_families_stand_for_their_figures_once():
    names = [definition.name for definition in load_metrics(["rouge", "rouge_l", "exact_match", "bleu"])]
    assert names == [*FAMILIES["rouge"], *FAMILIES["exact_match"], "bleu"]


def test_an_unknown_metric_is_told_the_known_ones():
    with pytest.raises(NotFoundError, match="'blue'") as caught:
        load_metrics(["blue"])
    assert "bleu" in caught.value.expected
    assert "rouge" in caught.value.expected
