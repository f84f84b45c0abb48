"""Charts of pages in another language: words and numbers, but not what people have named."""

from __future__ import annotations

import re

import pytest

from luthier.core.evaluation import ReliabilityBin
from luthier.features.evaluations.view import charts as evaluation_charts
from luthier.ml.charts.spec import Axis, Bar, Bars, Cell, Intervals, Mark, Matrix, Note, OwnName, Plot, Series
from luthier.ml.evaluation.label_confidence import reliability_plot
from luthier.ml.evaluation.result_views import Roles
from luthier.platform.ui.i18n.catalog import catalog
from luthier.platform.ui.i18n.environments import figures_of, translated_environment
from luthier.platform.ui.render import environment
from luthier.testing.records import make_evaluation

GERMAN = translated_environment(environment(), "de")


def drawn_words(chart: object) -> list[str]:
    svg = str(GERMAN.filters["drawn_chart"](chart))
    return re.findall(r"<(?:text|title|desc)[^>]*>([^<]*)<", svg)


def test_a_chart_is_translated_with_its_numbers() -> None:
    rows = [Bar("tuned model", 0.25, "0.25", interval=(0.2, 0.35)), Bar("untuned model", 0.125)]
    chart = Bars("k", "Accuracy", Axis("", high=0.5), rows, limit=Mark(0.5, "asked for: 0.5"))
    found = drawn_words(chart)
    for word in ("Genauigkeit", "angepasstes Modell", "0,25", "0,125", "0,1", "verlangt: 0,5"):
        assert word in found
    assert not [word for word in found if re.search(r"\d\.\d", word)]


def test_ticks_and_notes_are_texts_too() -> None:
    axis = Axis("", ticks=[(0.0, "0"), (1500.0, "1.5k")])
    chart = Plot(
        "k", "t", Axis("step"), axis, [Series("", [(0, 0), (1, 1500)])], notes=[Note(1, 1, "paid back: never")]
    )
    found = drawn_words(chart)
    assert "1,5k" in found
    assert "Amortisationszeit: nie" in found


def test_labels_of_people_are_left_alone() -> None:
    matrix = Matrix(
        "k", "t", Axis("given"), Axis("true"), ["open", "1.5"], ["open", "1.5"], [[Cell(1.0, "0.5")] * 2] * 2
    )
    found = drawn_words(matrix)
    assert found.count("open") == 2
    assert found.count("1.5") == 2
    assert "0,5" in found


def test_a_name_of_a_person_is_no_word_and_a_label_is_one() -> None:
    series = [Series(OwnName("loss"), [(0, 0), (1, 1)], labels=["1,200 rows", "3 rows"]), Series("loss", [(0, 1)])]
    chart = Plot("k", "t", Axis("step"), Axis("y"), series)
    own, word = GERMAN.filters["chart_words"](chart).series
    assert (own.shown, list(own.labels)) == ("loss", ["1.200 Zeilen", "3 Zeilen"])
    assert word.shown == "Verlust"
    rows = [Bar(OwnName("run"), 1.0), Bar("run", 2.0)]
    bars = Bars("k", "t", Axis(""), rows)
    assert [one.name for one in GERMAN.filters["chart_words"](bars).rows] == ["run", "Lauf"]


def test_names_of_systems_in_charts_of_evaluations_and_suites_stay() -> None:
    made = make_evaluation()
    base, tuned = made.systems
    better = made.systems[0].metrics["exact_match"].model_copy(update={"value": 0.6})
    systems = (base.model_copy(update={"name": "loss"}), tuned.model_copy(update={"name": "memory"}))
    systems = (systems[0], systems[1].model_copy(update={"metrics": {"exact_match": better}}))
    evaluation = made.model_copy(update={"systems": systems, "comparisons": ()})
    (chart,) = evaluation_charts(evaluation, Roles("memory", "loss"))
    assert isinstance(chart, Intervals)
    assert [one.name for one in GERMAN.filters["chart_words"](chart).rows] == ["loss", "memory"]
    shown = reliability_plot(
        "k",
        "confidence",
        [("loss", (ReliabilityBin(low=0.4, high=0.6, num_rows=1, confidence=0.5, accuracy=0.5),))],
        {"loss": "tuned"},
        300,
    )
    assert "loss" in [one.shown for one in GERMAN.filters["chart_words"](shown).series]


@pytest.mark.parametrize(
    ("english", "german"),
    [("gradient norm", "Gradientennorm"), ("GPU memory", "GPU-Speicher"), ("gpu memory", "GPU-Speicher"),
     ("after 25%", "nach 25 %"), ("3 others", "3 weitere"), ("Where the budget went", "Verwendung des Budgets"),
     ("rank 8: loss 0.1234 on rung 2", "Rang 8: Verlust 0,1234 auf Stufe 2"),
     ("Who is preferred", "Was bevorzugt wird"),
     ("Right of zero: preferred more often than not. An interval across zero is inconclusive.",
      "Rechts von null: häufiger bevorzugt als nicht. Ein Intervall über null hinweg entscheidet nichts."),
     ("hours before the last check", "Stunden vor der letzten Prüfung")],
)  # fmt: skip
def test_charts_of_runs_studies_panels_and_monitors_have_german_words(english: str, german: str) -> None:
    chart = Plot("k", english, Axis("step"), Axis(english), [Series(english, [(0, 0), (1, 1)])], caption=english)
    assert german in drawn_words(chart)
    translated = GERMAN.filters["chart_words"](chart)
    assert (translated.title, translated.caption, translated.series[0].shown) == (german, german, german)
    assert translated.series[0].name == english


@pytest.mark.parametrize(
    ("text", "german"),
    [
        ("epoch 1.95", "Epoche 1,95"),
        ("step 1,260, the best so far", "Schritt 1.260, bisher am besten"),
        ("Validation loss 0.9886, the best so far.", "Validierungsverlust 0,9886, bisher am besten."),
        ("Validation loss 0.9886.", "Validierungsverlust 0,9886."),
        ("Token accuracy", "Token-Genauigkeit"),
        ("On held-out rows, with 95% intervals.", "Auf Testzeilen, mit 95-%-Intervallen."),
        ("nearest training row (embeddings)", "nächste Trainingszeile (Embeddings)"),
        ("4 nearest training rows in the prompt", "4 nächste Zeilen im Prompt"),
        ("From 2026-11-03 to 2026-12-02.", "Von 03.11.2026 bis 02.12.2026."),
        (
            "The tuned model is 0.043 ahead of the untuned model (95% interval 0.002 to 0.085, by ROUGE-L). 5 others "
            "are further behind.",
            "Das angepasste Modell liegt 0,043 vorn im Vergleich mit: das unveränderte Modell (95-%-Intervall 0,002 "
            "bis 0,085, nach ROUGE-L). 5 andere liegen weiter zurück.",
        ),
        ("untuned model + 4 nearest examples", "untuned model + 4 nächste Beispiele"),
        ("8 of 38 ratings by 2 raters", "8 von 38 Bewertungen durch 2 Personen"),
        ("Annotate the dataset Shop orders", "Datensatz Shop orders annotieren"),
        ("Rate answers: “Which one is better?”", "Antworten bewerten: „Which one is better?“"),
    ],
)
def test_words_beside_charts_and_on_the_page_of_a_run(text: str, german: str) -> None:
    figures = figures_of("de")
    assert catalog("de").sentence(text, figures.localised) == german
