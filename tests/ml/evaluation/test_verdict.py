import pytest

from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult
from luthier.ml.evaluation.verdict import primary_metric, verdict

SAMPLE = Sample(row_id="a:1", prompt="p", reference="r", output="o", num_new_tokens=1, finish_reason="stop")


def system(name, *, rows=100, adapter=None, shots=0, cut=0, **values):
    metrics = {
        key: Metric(value=v, low=v, high=v, unit="", higher_is_better=key not in ("perplexity", "bits_per_byte"))
        for key, v in values.items()
    }
    return SystemResult(
        name=name,
        model="m",
        adapter=adapter,
        num_few_shot=shots,
        num_samples=rows,
        metrics=metrics,
        samples=(SAMPLE,),
        seconds=1.0,
        num_cut_off=cut,
    )


def compared(one, other, word, metric="rouge_l", *, half=0.04, rows_needed=None):
    difference = other.metrics[metric].value - one.metrics[metric].value
    return Comparison(
        baseline=one.name,
        candidate=other.name,
        metric=metric,
        difference=difference,
        low=difference - half,
        high=difference + half,
        p_value=0.01,
        verdict=word,
        rows_needed=rows_needed,
    )


BASE = system("base", rouge_l=0.12)
SHOTS = system("base + 4 examples", shots=4, rouge_l=0.18)
TUNED = system("tuned", adapter="a", rouge_l=0.31)


def test_better_than_one_baseline():
    said = verdict([BASE, TUNED], [compared(BASE, TUNED, "better")], primary="rouge_l")
    assert said.word == "better"
    assert said.headline == "The tuned model is better than the base model, by ROUGE-L."
    assert said.details == (
        "Better than the base model: ROUGE-L 0.31 against 0.12 "
        "(+0.19, 95% interval 0.15 to 0.23, p = 0.010; 100 held-out rows).",
    )
    assert said.num_primary_details == 1


def test_better_than_both():
    said = verdict(
        [BASE, SHOTS, TUNED],
        [compared(BASE, SHOTS, "better"), compared(BASE, TUNED, "better"), compared(SHOTS, TUNED, "better")],
        primary="rouge_l",
    )
    assert said.word == "better"
    assert said.num_primary_details == 2
    assert said.details[0].startswith("Better than the base model: ROUGE-L 0.31 against 0.12")
    assert said.details[1].startswith("Better than the base model with 4 examples in its prompt: ROUGE-L 0.31 against")


@pytest.mark.parametrize("word", ["worse", "not distinguishable"])
def test_beating_only_one_is_said_plainly_and_is_not_better(word):
    strong = system("base + 4 examples", shots=4, rouge_l=0.33)
    needed = 1234 if word == "not distinguishable" else None
    said = verdict(
        [BASE, strong, TUNED],
        [compared(BASE, TUNED, "better"), compared(strong, TUNED, word, rows_needed=needed)],
        primary="rouge_l",
    )
    assert said.word == word
    assert "better than the base model" in said.headline
    assert f", but {'worse than' if word == 'worse' else 'not clearly different from'} it with" in said.headline
    assert said.details[1].startswith(f"{word.capitalize()} ")
    settles = "about 1,300 held-out rows would settle a difference of this size"
    assert (settles in said.details[1]) == (word == "not distinguishable")


def test_lower_is_better_is_said():
    base, tuned = system("base", perplexity=20.3), system("tuned", perplexity=12.1)
    said = verdict([base, tuned], [compared(base, tuned, "better", "perplexity", half=1)], primary="perplexity")
    assert said.headline == "The tuned model is better than the base model, by perplexity."
    assert (
        "perplexity 12.1 against 20.3 (lower is better; -8.2, 95% interval -9.2 to -7.2, p = 0.010" in said.details[0]
    )


def test_the_other_metrics_stand_behind_the_primary_one():
    base, tuned = system("base", rouge_l=0.1, bleu=3.0), system("tuned", rouge_l=0.3, bleu=9.5)
    said = verdict(
        [base, tuned],
        [compared(base, tuned, "better"), compared(base, tuned, "better", "bleu", half=2)],
        primary="rouge_l",
    )
    assert said.details[1:] == ("BLEU says the same.",)
    assert any("2 metrics were compared" in caveat for caveat in said.caveats)


def test_a_model_of_another_tokenizer_is_not_left_out_of_the_verdict():
    """Perplexity has no figure against it, in which the tuned model would be better than all that is left."""
    base, other = (
        system("base", perplexity=20.0, bits_per_byte=1.2),
        system("other", perplexity=30.0, bits_per_byte=0.8),
    )
    tuned = system("tuned", adapter="a", perplexity=12.0, bits_per_byte=1.0)
    found = [
        compared(base, tuned, "better", "perplexity", half=1),
        compared(base, tuned, "better", "bits_per_byte"),
        compared(other, tuned, "worse", "bits_per_byte"),
    ]
    said = verdict([base, other, tuned], found, primary="perplexity")
    assert (said.word, said.metric) == ("worse", "bits_per_byte")
    assert "worse than other" in said.headline
    alone = verdict([base, other, tuned], found[:1], primary="perplexity")
    assert (alone.word, alone.metric) == ("better", "perplexity")
    assert "Perplexity is not compared with that of other" in " ".join(alone.caveats)
    for name in ("teacher", "teacher other"):
        beside = [base, other.model_copy(update={"name": name}), tuned]
        assert "is not compared" not in " ".join(verdict(beside, found[:1], primary="perplexity").caveats)


def test_perplexity_of_different_tokenizers_gives_way_to_bits_per_byte():
    base = system("base", perplexity=20.0, bits_per_byte=1.2)
    tuned = system("tuned", perplexity=30.0, bits_per_byte=1.0)
    said = verdict([base, tuned], [compared(base, tuned, "better", "bits_per_byte")], primary="perplexity")
    assert said.metric == "bits_per_byte"
    assert any("different tokens: perplexity" in caveat for caveat in said.caveats)


def caveats_of(results, comparisons, **settings):
    return " ".join(verdict(results, comparisons, primary="rouge_l", **settings).caveats)


def test_leaked_rows_come_first():
    said = verdict([BASE, SHOTS, TUNED], [compared(BASE, TUNED, "better")], primary="rouge_l", num_leaked=3)
    assert said.caveats[0].startswith("3 held-out rows are also in the training rows")


@pytest.mark.parametrize(
    ("shots", "said"), [(1, "The example in the prompt is"), (4, "The 4 examples in the prompt are")]
)
def test_shown_examples_are_one_draw_and_nothing_else_is_warned_of(shots, said):
    """Four draws for the quickstart came to ROUGE-L 0.242 to 0.287: docs/statistics.md."""
    results = [BASE, SHOTS.model_copy(update={"num_few_shot": shots}), TUNED]
    (caveat,) = verdict(results, [compared(BASE, TUNED, "better")], primary="rouge_l").caveats
    assert caveat.startswith(said)
    assert "one draw from the training rows" in caveat


@pytest.mark.parametrize(("rows", "words"), [(29, "only 29 held-out rows"), (1, "one held-out row")])
def test_few_rows_are_said(rows, words):
    base, tuned = system("base", rows=rows, rouge_l=0.1), system("tuned", rows=rows, rouge_l=0.2)
    assert words in caveats_of([base, tuned], [compared(base, tuned, "better")])


def test_what_was_left_out_or_cut_off_is_said():
    base, tuned = system("base", rouge_l=0.1, cut=40), system("tuned", adapter="a", rouge_l=0.2)
    said = caveats_of([base, tuned], [compared(base, tuned, "better")], num_same_prompt=1, num_rows_in_file=250)
    assert "40 of base" in said
    assert "100 of the 250 held-out rows were evaluated" in said
    assert "1 held-out row asks the same as a training row" in said
    assert "not tried with few-shot examples" in said


@pytest.mark.parametrize("name", ["tuned", "run-20261125-093000-aaaaaa"])
def test_full_fine_tuning_could_have_been_spared_by_examples_too(name):
    base, whole = system("base", rouge_l=0.1), system(name, rouge_l=0.2)
    assert "not tried with few-shot examples" in caveats_of([base, whole], [compared(base, whole, "better")])
    other = system("other", rouge_l=0.2)
    assert "not tried with few-shot" not in caveats_of([base, other], [compared(base, other, "better")])


def test_perplexity_and_text_that_disagree_are_said():
    base, tuned = system("base", rouge_l=0.3, perplexity=20.0), system("tuned", rouge_l=0.2, perplexity=9.0)
    said = caveats_of(
        [base, tuned], [compared(base, tuned, "worse"), compared(base, tuned, "better", "perplexity", half=1)]
    )
    assert "Against base perplexity is better but ROUGE-L worse" in said


def test_a_named_candidate_is_judged_and_an_unknown_one_refused():
    comparisons = [compared(BASE, SHOTS, "better"), compared(BASE, TUNED, "better")]
    said = verdict([BASE, SHOTS, TUNED], comparisons, primary="rouge_l", candidate="base + 4 examples")
    assert said.headline == ("The base model with 4 examples in its prompt is better than the base model, by ROUGE-L.")
    with pytest.raises(RequestError, match="nobody"):
        verdict([BASE, TUNED], comparisons, primary="rouge_l", candidate="nobody")
    with pytest.raises(RequestError, match="0 comparisons"):
        verdict([BASE], [], primary="rouge_l")


LONG = ["the front is made of spruce because it is light"] * 3


@pytest.mark.parametrize(
    ("metrics", "references", "expected"),
    [
        (["perplexity", "rouge", "bleu", "exact_match"], LONG, "rouge_l"),
        (["perplexity", "rouge", "bleu", "exact_match"], ["spruce", "maple wood"], "exact_match"),
        (["perplexity", "label_accuracy", "exact_match"], ["spruce"], "label_accuracy"),
        (["perplexity", "bleu"], LONG, "bleu"),
        (["exact_match"], LONG, "exact_match"),
        (["bits_per_byte", "perplexity"], LONG, "perplexity"),
        (["rouge", "perplexity"], [None, None], "perplexity"),
        (["bits_per_byte"], [], "bits_per_byte"),
        (["a_plug_in"], LONG, "a_plug_in"),
    ],
)
def test_the_primary_metric_follows_its_rule(metrics, references, expected):
    assert primary_metric(metrics, references) == expected


LONG_RUSSIAN = ["Верхняя дека делается из ели, потому что она лёгкая и прочная"] * 3
LONG_CHINESE = ["小提琴的面板由云杉制成，因为它又轻又结实，而且声音很好听"] * 3


@pytest.mark.parametrize(
    ("metrics", "references", "expected"),
    [
        (["perplexity", "rouge", "bleu", "exact_match"], LONG_RUSSIAN, "bleu"),
        (["perplexity", "chrf", "bleu", "exact_match"], LONG_RUSSIAN, "chrf"),
        (["perplexity", "rouge", "bleu", "exact_match"], LONG_CHINESE, "perplexity"),
        (["perplexity", "chrf", "bleu", "exact_match"], LONG_CHINESE, "chrf"),
        (["perplexity", "chrf", "bleu", "exact_match"], ["客户投诉", "退款"], "exact_match"),
        (["rouge"], LONG_CHINESE, "rouge_l"),
    ],
)
def test_answers_in_other_scripts_rest_on_a_metric_that_sees_them(metrics, references, expected):
    assert primary_metric(metrics, references) == expected


def test_plain_text_without_likelihood_has_no_primary_metric():
    with pytest.raises(RequestError, match="rouge"):
        primary_metric(["rouge"], [None])


def test_a_scale_that_is_not_from_0_to_1_is_said():
    base, tuned = system("base", bleu=9.2), system("tuned", bleu=14.3)
    base, tuned = (
        one.model_copy(update={"metrics": {"bleu": one.metrics["bleu"].model_copy(update={"unit": "0 to 100"})}})
        for one in (base, tuned)
    )
    (said,) = verdict([base, tuned], [compared(base, tuned, "better", "bleu", half=2.0)], primary="bleu").details
    assert "BLEU 14.3 against 9.2 (on 0 to 100; +5.1, 95% interval" in said


def answering(name, outputs, references, kind="model"):
    samples = tuple(
        SAMPLE.model_copy(update={"output": output, "reference": reference})
        for output, reference in zip(outputs, references, strict=True)
    )
    found = system(name, rows=len(samples), rouge_l=0.1 if name == "base" else 0.2)
    return found.model_copy(update={"samples": samples, "kind": kind})


@pytest.mark.parametrize(
    ("outputs", "references", "is_warned"),
    [
        (["great"] * 36 + ["bad"] * 4, ["great", "bad"] * 20, True),
        (["Great\nand so on"] * 20 + ["great "] * 20, ["great", "bad"] * 20, True),
        (["great"] * 35 + ["bad"] * 5, ["great", "bad"] * 20, False),
        (["great"] * 40, ["great"] * 36 + ["bad"] * 4, False),
    ],
)
def test_one_answer_in_most_rows_is_warned_of_where_the_references_are_not_alike(outputs, references, is_warned):
    base = answering("base", references, references)
    # The commonest answer is always the same: that is what it is.
    majority = answering("commonest answer", ["great"] * 40, references, kind="majority")
    results = [base, majority, answering("tuned", outputs, references)]
    comparisons = [compared(base, results[-1], "better")]
    caveats = verdict(results, comparisons, primary="rouge_l", are_labels=True).caveats
    warned = [caveat for caveat in caveats if "gives the same answer" in caveat]
    assert len(warned) == is_warned
    if is_warned:
        share = sum(text.strip().casefold().startswith("great") for text in outputs) / 40
        assert warned[0].startswith(f'The tuned model gives the same answer in {share:.0%} of rows: "great". Of the ')
    assert "gives the same answer" not in caveats_of(results, comparisons), "answers that are not labels"


def test_empty_answers_are_one_thing_too():
    results = [
        answering("base", [" "] * 40, ["great", "bad"] * 20),
        answering("tuned", ["bad", "great"] * 20, ["a"] * 40),
    ]
    (said,) = [
        caveat
        for caveat in verdict(results, [compared(*results, "better")], primary="rouge_l", are_labels=True).caveats
        if "gives the same answer" in caveat
    ]
    assert said.startswith(
        "The base model gives the same answer in 100% of rows: no text. Of the references, 50% are that answer"
    )


@pytest.mark.parametrize(
    ("reference", "is_warned"), [("Скрипка делается из ели", True), ("It is made of spruce", False)]
)
def test_a_rouge_of_letters_that_it_does_not_see_is_warned_of(reference, is_warned):
    base, tuned = (answering(name, [reference], [reference]) for name in ("base", "tuned"))
    caveats = verdict([base, tuned], [compared(base, tuned, "better")], primary="rouge_l").caveats
    assert sum("ROUGE sees the letters a-z and digits alone" in caveat for caveat in caveats) == is_warned


@pytest.mark.parametrize(("word", "is_warned"), [("worse", True), ("not distinguishable", True), ("better", False)])
def test_a_regression_that_is_as_near_is_named_where_equal_numbers_decide(word, is_warned):
    base = system("base", exact_match=0.0, nmae=0.9)
    ridge = system("ridge regression", exact_match=0.0, nmae=0.1).model_copy(update={"kind": "ridge"})
    tuned = system("tuned", adapter="a", exact_match=0.2, nmae=0.2)
    found = [compared(one, tuned, "better", "exact_match") for one in (base, ridge)]
    found += [compared(base, tuned, "not distinguishable", "nmae"), compared(ridge, tuned, word, "nmae")]
    caveats = verdict([base, ridge, tuned], found, primary="exact_match").caveats
    warned = [caveat for caveat in caveats if "near miss" in caveat]
    assert len(warned) == is_warned
    if is_warned:
        assert "not shown to be nearer than those of ridge regression (normalised absolute error)" in warned[0]
        assert "--metrics nmae" in warned[0]
    # Where nearness decides, the verdict itself says it.
    assert not any("near miss" in one for one in verdict([base, ridge, tuned], found, primary="nmae").caveats)


@pytest.mark.parametrize(
    ("primary", "num"), [("exact_match", 3), ("exact_match_ignoring_case", 2), ("rouge_l", None), ("exact_match", None)]
)
def test_right_labels_that_are_not_equal_to_their_references_are_counted(primary, num):
    """Equality alone would make a model that ends its labels with a full stop one that is never right."""
    references = ["great", "bad"] * 4
    outputs = ["Great.", "Bad", "great\nfor it is loud", "bad", "bad.", "", "good.", "great"]
    figures = [system(name, **{primary: figure}).metrics for name, figure in (("base", 1.0), ("tuned", 0.1))]
    base, tuned = answering("base", references, references), answering("tuned", outputs, references)
    results = [
        base.model_copy(update={"metrics": figures[0]}),
        tuned.model_copy(update={"metrics": figures[1], "adapter": "a"}),
    ]
    caveats = verdict(
        results,
        [compared(*results, "worse", primary)],
        primary=primary,
        are_labels=num is not None or "rouge" in primary,
    ).caveats
    found = [caveat for caveat in caveats if "names the right label" in caveat]
    if num is None:
        assert found == []
    else:
        (said,) = found
        assert said.startswith(
            f"The tuned model names the right label in {num} answers that are not equal to it: exact"
        )
        assert said.endswith("--metrics label_accuracy, or evaluation.metrics in the recipe.")


def test_one_right_label_that_is_not_equal_to_its_reference_is_named_in_the_singular():
    figures = [system(name, exact_match=figure).metrics for name, figure in (("base", 1.0), ("tuned", 0.5))]
    outputs = [["great", "bad"], ["great.", "bad"]]
    results = [
        answering(name, own, ["great", "bad"]).model_copy(update={"metrics": metrics})
        for name, own, metrics in zip(("base", "tuned"), outputs, figures, strict=True)
    ]
    comparisons = [compared(*results, "worse", "exact_match")]
    caveats = verdict(results, comparisons, primary="exact_match", are_labels=True).caveats
    (said,) = [caveat for caveat in caveats if "names the right label" in caveat]
    assert "in 1 answer that is not equal to it: exact match counts it as wrong" in said
