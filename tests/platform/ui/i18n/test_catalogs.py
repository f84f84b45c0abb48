"""The catalogs: complete for all pages that are said to be translated, with the placeholders of the source."""

from __future__ import annotations

import re
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.frontend import parse_mapping_cfg
from babel.messages.pofile import read_po
from tests.vacuous import nonempty

import luthier
from luthier.ml.evaluation.metrics.classification import BrierScore, CalibrationError, MacroF1
from luthier.ml.evaluation.metrics.registry import BUILT_IN, load_metrics
from luthier.ml.evaluation.systems import Titled
from luthier.platform.jobs import attempt
from luthier.platform.ui.i18n import expressions
from luthier.platform.ui.i18n.catalog import LOCALE, Catalog, catalog
from luthier.platform.ui.i18n.environments import Coverage, messages_of, words
from luthier.platform.ui.i18n.extract import sentences, yaml_texts
from luthier.platform.ui.i18n.language import LANGUAGES
from luthier.platform.ui.i18n.messages import Message, placeholders
from luthier.platform.ui.i18n.templates import rewritten
from luthier.platform.ui.render import environment

SOURCE = Path(luthier.__file__).parent
ENGLISH_ONLY: frozenset[str] = frozenset()
"""Folders of templates that are shown in English in every language, until they are translated."""
OTHERS = [name for name in LANGUAGES if name != "en"]
_TAG = re.compile(r"<[^>]*>")


@cache
def forms(language: str, domain: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By the text: its forms in English, and those of the translation."""
    with (LOCALE / language / "LC_MESSAGES" / f"{domain}.po").open("rb") as file:
        read = read_po(file, locale=language)
    found = {}
    for message in read:
        if message.id:
            source = (message.id,) if isinstance(message.id, str) else tuple(message.id)
            own = (message.string,) if isinstance(message.string, str) else tuple(message.string or ())
            assert not message.fuzzy, f"fuzzy: {source[0]}"
            found[source[0]] = (source, own)
    return found


@cache
def folders() -> list[str]:
    loader = environment().loader
    assert loader is not None
    return sorted({name.rpartition("/")[0] for name in loader.list_templates() if name.endswith(".html")})


def extracted(mapping: str) -> set[str]:
    """The texts that Babel extracts by a mapping."""
    with (LOCALE / mapping).open(encoding="utf-8") as file:
        methods, options = parse_mapping_cfg(file)  # type: ignore[no-untyped-call]
    found = extract_from_dir(SOURCE, methods, options, keywords={"t": None, "Luthier.t": None, "ngettext": None})
    return {text if isinstance(text, str) else text[0] for _, _, text, _, _ in found}


@pytest.mark.parametrize("language", OTHERS)
def test_every_folder_of_templates_is_translated_or_said_not_to_be(language: str) -> None:
    coverage = Coverage(environment(), language)
    missing = [
        f"{name}: {message.id!r}"
        for name in nonempty(environment().loader.list_templates())  # type: ignore[union-attr]
        if name.endswith(".html") and name.rpartition("/")[0] not in ENGLISH_ONLY
        for message in coverage.missing(name)
    ]
    assert missing == [], "translate them (make messages), or the whole folder is shown in English"
    assert {one for one in nonempty(folders()) if not coverage.has(f"{one}/x" if one else "x")} == ENGLISH_ONLY


@pytest.mark.parametrize("language", OTHERS)
def test_the_sentences_of_python_are_all_translated(language: str) -> None:
    found = extracted("sentences.cfg")
    known = forms(language, "sentences")
    pages = forms(language, "pages")
    assert sorted(text for text in nonempty(sorted(found)) if text not in known and text not in pages) == []
    assert [text for text, (_, own) in known.items() if not all(own)] == []


@pytest.mark.parametrize("domain", ["pages", "sentences", "scripts"])
@pytest.mark.parametrize("language", OTHERS)
def test_no_translation_is_of_a_text_that_nothing_makes(language: str, domain: str) -> None:
    found = extracted(f"{domain}.cfg")
    unused = [text for text in nonempty(sorted(forms(language, domain))) if text not in found]
    assert unused == [], (
        "remove it, or list it in composed.txt: in parts that code puts together, or as stored by earlier versions"
    )


@pytest.mark.parametrize("language", OTHERS)
def test_the_texts_of_scripts_are_all_translated(language: str) -> None:
    found = extracted("scripts.cfg")
    known = forms(language, "scripts")
    assert sorted(text for text in nonempty(sorted(found)) if not all(known.get(text, ((), ("",)))[1])) == []


@pytest.mark.parametrize("domain", ["pages", "sentences", "scripts"])
@pytest.mark.parametrize("language", OTHERS)
def test_translations_keep_placeholders_and_the_blanks_at_their_ends(language: str, domain: str) -> None:
    wrong = []
    for source, own in nonempty(list(forms(language, domain).values())):
        for text, other in zip(source, own, strict=True):
            names = {one for one in placeholders(text) if one != "{ending}"}
            others = {one.replace(":t}", "}") for one in re.findall(r"\{\w+(?::t)?\}|</?\d+>", other)} - {"{ending}"}
            ends = (text[:1].isspace(), text[-1:].isspace()) == (other[:1].isspace(), other[-1:].isspace())
            if other and (names != others or not ends or "{{" in other or "{%" in other):
                wrong.append((text, other))
    assert wrong == []


def test_no_text_of_a_template_is_left_out() -> None:
    """With every message taken away, no letters are left between the tags of any template."""
    loader = environment().loader
    assert loader is not None
    left = []
    for name in nonempty([one for one in loader.list_templates() if one.endswith(".html")]):
        source = loader.get_source(environment(), name)[0]
        bare = rewritten(source, lambda message: ("·", "·") if message.plural else ("·",))
        bare = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", "", bare, flags=re.DOTALL)
        bare = re.sub(r"<(script|style|pre|textarea|svg|code|kbd)\b.*?</\1>", "", bare, flags=re.DOTALL)
        texts = (text.strip() for text in _TAG.split(bare) if re.search(r"[A-Za-z]{2}", text))
        # Attributes that a block of `set` holds are no text.
        left += [f"{name}: {text}" for text in texts if '="' not in text]
    assert left == []


def test_no_macro_is_called_as_a_function_whose_strings_are_keys() -> None:
    loader = environment().loader
    assert loader is not None
    sources = {name: loader.get_source(environment(), name)[0] for name in nonempty(loader.list_templates())}
    macros = [(name, found) for name, source in sources.items() for found in re.findall(r"\{% macro (\w+)\(", source)]
    assert [one for one in nonempty(macros) if one[1] in expressions._NO_TEXT_CALLS] == [], "its texts stay English"


def test_english_is_never_rewritten() -> None:
    assert type(environment().loader).__name__ == "ChoiceLoader"
    assert messages_of("<p>Data</p>") == [Message("Data", "", 0)]


def test_a_sentence_is_recognised_with_its_values() -> None:
    texts = Catalog("de", {}, {"{n} rows of {name}": "{n} Zeilen von {name}", "{n} rows": "{n} Zeilen"})
    assert texts.sentence("12 rows of {n} %s", str) == "12 Zeilen von {n} %s"
    assert texts.sentence("1,200.5 rows", lambda value: value.replace(",", " ")) == "1 200.5 Zeilen"
    assert texts.sentence("rows of mine", str) is None


@pytest.mark.parametrize(
    ("sentence", "text", "values"),
    [
        ("{a} of {b} of {c}.", "1 of 2 of 3 of 4.", ("1", "2", "3 of 4")),
        ("{n} row{ending} wait", "1 row wait", ("1", "")),
        ("{name} {num} to {num_high}", "x y 1.5 to 20", ("x y", "1.5", "20")),
        ("{a}{b}: {c}", "xyz: w", ("x", "yz", "w")),
        ("about {num}", "about x", None),
        ("{a} of {b}", "x of ", None),
    ],
)
def test_values_are_the_shortest_that_fit(sentence: str, text: str, values: tuple[str, ...] | None) -> None:
    found = Catalog("de", {}, {sentence: "x"})._search(text)
    assert (None if found is None else found[1]) == values


def test_an_amount_has_a_currency_of_three_capitals() -> None:
    texts = Catalog("de", {}, {"{num_low} to {num_high} {currency}": "{num_low} bis {num_high} {currency}"})
    assert texts.sentence("5 to 12,000 USD", str) == "5 bis 12,000 USD"
    assert texts.sentence("5 to 12 rows of it", str) is None


def test_several_sentences_are_translated_one_by_one() -> None:
    """Else the value at the end of the first one would reach to the end of the last."""
    texts = Catalog("de", {}, {"{a} is better, by {b}.": "{a} ist besser ({b}).", "It fits.": "Es passt."})
    assert texts.sentence("One is better, by two. It fits.", str) == "One ist besser (two). Es passt."


def test_a_pattern_without_words_of_its_own_takes_no_sentence_apart_that_is_not_known() -> None:
    """Half of it would stay English without being marked as that."""
    texts = Catalog("de", {}, {"{a} is {b}.{ending}": "{a:t}: {b:t}.{ending:t}", "a sure thing": "sicher"})
    assert texts.sentence("The disk of the server is full.", str) is None
    assert texts.sentence("run-7 is a sure thing.", str) == "run-7: sicher."
    assert catalog("de").sentence("The disk of the server is full.", str) is None
    assert texts.sentence("abc is def. " * 40, str) == "abc: def. " * 40, "and soon"


def test_a_pattern_with_few_words_takes_names_and_no_phrases() -> None:
    texts = Catalog("de", {}, {"one of {names}": "eines von {names}", "write a {what}": "schreiben Sie: {what}"})
    assert texts.sentence("one of lora, full", str) == "eines von lora, full"
    assert texts.sentence("one of them is not on this machine", str) is None
    assert texts.sentence("write a case file to say them yourself", str) is None
    assert texts.sentence("one of 'the plan of mine'", str) == "eines von 'the plan of mine'", "quoted"


def test_a_list_is_translated_part_by_part_or_not_at_all() -> None:
    texts = Catalog("de", {}, {"{num} rows": "{num} Zeilen", "no answer": "keine Antwort"})
    assert texts.sentence("3 rows; no answer", str) == "3 Zeilen; keine Antwort"
    assert texts.sentence("3 rows; a name", str) is None


def test_a_text_of_the_middle_of_a_sentence_is_known_at_its_beginning() -> None:
    texts = Catalog("de", {}, {"a linear classifier": "ein linearer Klassifikator"})
    assert texts.sentence("A linear classifier", str) == "Ein linearer Klassifikator"
    assert texts.sentence("AUC", str) is None


def test_a_text_that_nearly_fits_many_placeholders_is_soon_refused() -> None:
    """By trying all ways to share it out this would take years."""
    sentence = "{a}{b}, {c} {d}, {num} {e}; {f}!"
    assert Catalog("de", {}, {sentence: "x"}).sentence(", 1 " * 400 + "; " * 100, str) is None
    assert catalog("de").sentence(": worth ; the tuned model is worth more with a probability of " * 500, str) is None


def test_a_text_that_holds_itself_many_times_over_does_not_exhaust_the_stack() -> None:
    texts = Catalog("de", {}, {"about {rows}": "etwa {rows:t}", "no page {path}": "keine Seite {path}"})
    for text in ("about " * 240 + "x", "no page /a; " + "about " * 240 + "x"):
        assert (texts.sentence(text, str) or "").count("x") == 1


def test_what_a_caller_has_translated_is_not_english() -> None:
    assert words("de").in_text("nicht unterscheidbar") == "nicht unterscheidbar"
    assert words("de").in_text("no such sentence anywhere") == '<span lang="en">no such sentence anywhere</span>'


@pytest.mark.parametrize(
    ("english", "german"),
    [("The tuned model is better than the base model, but worse than a linear classifier, by accuracy.",
      "Das angepasste Modell ist besser als das Basismodell, aber schlechter als ein linearer Klassifikator (Metrik: "
      "Genauigkeit)."),
     ("Not distinguishable from the base model: perplexity 3.10 against 3.20 (lower is better; -0.10, 95% interval "
      "-0.40 to 0.20, p = 0.40; 40 held-out rows); about 400 held-out rows would settle a difference of this size.",
      "Nicht unterscheidbar von folgendem System: das Basismodell: Perplexität 3,10 gegen 3,20 (niedriger ist besser; "
      "-0,10, 95-%-Intervall -0,40 bis 0,20, p = 0,40; 40 Testzeilen); etwa 400 Testzeilen würden einen Unterschied "
      "dieser Größe entscheiden."),
     ("2 epochs of 12 steps", "2 Epochen zu 12 Schritten"),
     ("repaired from version 1: 3 rows changed, 1 row removed, grade C → A",
      "repariert aus Version 1: 3 Zeilen geändert, 1 Zeile entfernt, Note C → A"),
     ("questions from Notes version 2, by qwen", "Fragen aus Notes, Version 2, von qwen"),
     ("It is also better than the best of 2 baselines without a language model: a linear classifier. It reaches the "
      "0.8 asked for: label accuracy 0.9 [0.85, 0.94].",
      "Es ist auch besser als der beste von 2 Vergleichswerten ohne Sprachmodell: ein linearer Klassifikator. Es "
      "erreicht den verlangten Wert 0,8: Label-Genauigkeit 0,9 [0,85; 0,94]."),
     ("Each month it earns more correct answers (1,200 USD) and cheaper serving (30 USD), and it costs reviewing (20 "
      "USD): 1,210 USD are left.",
      "Pro Monat bleiben 1.210 USD. Einnahmen: mehr richtige Antworten (1.200 USD) und günstigerer Betrieb (30 USD); "
      "Kosten: Prüfen (20 USD)."),
     ("Yes: it is worth 29,600 USD in 12 months, and its cost is paid back after 0.5 months.",
      "Ja: Der Wert ist 29.600 USD über 12 Monate. Amortisationszeit: 0,5 Monate."),
     ("data.bin, a size that its server does not state: the first rows of such a file are only known once all of it "
      "was read",
      "data.bin, Größe vom Server nicht angegeben: Die ersten Zeilen von einer solchen Datei sind erst bekannt, wenn "
      "alles gelesen ist"),
     ("a.xlsx, 40,000,000 bytes: the first rows of .xlsx are only known once all of it was read",
      "a.xlsx, 40.000.000 Bytes: Die ersten Zeilen von .xlsx sind erst bekannt, wenn alles gelesen ist"),
     ("column 'price' holds numbers in a.csv and texts in b.csv",
      "Spalte 'price' enthält Zahlen in a.csv und Texte in b.csv")],
)  # fmt: skip
def test_sentences_of_verdicts_and_plans(english: str, german: str) -> None:
    assert words("de")(english) == german


SENTENCES = b'''
"""A module."""
why = "the rows have a template"
other = "nothing of this"


def check(sources, name):
    if name:
        raise RequestError(f"no column {name!r} here", expected="a column of the table", do="choose one")
    assert sources, "never without sources"
    sources.note("data.template", "asked", "in the recipe")
    return "this is no text"
'''


@pytest.mark.parametrize(
    ("within", "found"),
    [("note why", ["the rows have a template", "in the recipe"]),
     ("Error", ["no column {name} here", "a column of the table", "choose one"])],
)  # fmt: skip
def test_texts_within_named_calls_and_variables(within: str, found: list[str]) -> None:
    assert [text for _, _, text, _ in sentences(BytesIO(SENTENCES), (), (), {"within": within})] == found


def test_with_only_the_rest_of_the_module_is_read_within_the_named_calls() -> None:
    options = {"only": "other", "within": "Error"}
    assert [text for _, _, text, _ in sentences(BytesIO(SENTENCES), (), (), options)] == [
        "nothing of this",
        "no column {name} here",
        "a column of the table",
        "choose one",
    ]


METHODS = b"""
class Stage:
    def lines(self):
        return [f"{self.num_rows:,} rows of grade {self.grade}", f"{figures.size(self.num_bytes)} were read"]

    def other(self):
        return "nothing of this"
"""


def test_methods_are_taken_whole_and_a_number_with_a_unit_is_any_text() -> None:
    found = [text for _, _, text, _ in sentences(BytesIO(METHODS), (), (), {"functions": "lines"})]
    assert found == ["{num_rows} rows of grade {grade}", "{bytes} were read"]


COUNTED = b"""
def lines(self):
    yield f"{counted(self.num_rows, 'row is', 'rows are')} left out, of {counted(len(files), 'file')}"
    yield counted(total, "more row")
    yield f"{counted(num, 'row')}, {other:,} held out"
"""


def test_a_number_with_its_noun_is_a_text_in_both_forms() -> None:
    found = [text for _, _, text, _ in sentences(BytesIO(COUNTED), (), (), {})]
    assert found == [
        "{num_rows} row is left out, of {num_files} file",
        "{num_rows} row is left out, of {num_files} files",
        "{num_rows} rows are left out, of {num_files} file",
        "{num_rows} rows are left out, of {num_files} files",
        "{num_total} more row",
        "{num_total} more rows",
        "{num} row, {other} held out",
        "{num} rows, {other} held out",
    ]


def test_texts_of_a_yaml_file_are_those_below_the_named_keys() -> None:
    source = b"devices:\n  cpu: {source: a rented machine, basis: own}\n  gpu:\n    - source: two of them\n"
    assert [(line, text) for line, _, text, _ in yaml_texts(BytesIO(source), (), (), {"keys": "source title"})] == [
        (2, "a rented machine"),
        (4, "two of them"),
    ]


def test_the_catalog_of_the_package_says_german_words() -> None:
    assert catalog("de").sentence("not distinguishable", str) == "nicht unterscheidbar"


@pytest.mark.parametrize("language", OTHERS)
def test_the_units_of_all_metrics_are_translated(language: str) -> None:
    units = {one.unit for one in load_metrics([*BUILT_IN])} | {MacroF1.unit, CalibrationError.unit, BrierScore.unit}
    units |= {"1 to 5", "nats a token", "citations"}
    assert {unit for unit in nonempty(units) if unit and words(language)(unit) == unit} == set()


def test_a_unit_has_its_scale_in_the_language_of_the_page() -> None:
    german = words("de")
    assert german("F1, 0 to 1") == "F1, 0 bis 1"
    assert german("0 to 100") == "0 bis 100"
    assert german("-1 to 1") == "-1 bis 1"
    assert german("0.25 to 0.5") == "0,25 bis 0,5"
    assert german("per token") == "je Token"


def test_the_progress_of_a_job_is_shown_in_the_language_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are stored in English, with their figures; the page translates title, unit and time that is left."""
    said: list[str] = []
    events = SimpleNamespace(append=lambda _job_id, _code, message: said.append(message))
    monkeypatch.setattr(attempt, "_REPORT_SECONDS", 0.0)
    context: Any = SimpleNamespace(job_events=events)
    job: Any = SimpleNamespace(job_id="job-1", attempt=1)
    progress = attempt.JobProgress(context, job)
    with Titled(progress, "tuned + 4 examples").task("Writing answers", 1200, "answers") as task:
        task.advance(16)
        task.advance(1184)
    with progress.task("Resampling", 1, "steps"):
        pass
    german = [words("de")(one) for one in said]
    assert german[0] == "tuned + 4 examples: Antworten werden geschrieben"
    assert re.fullmatch(
        r"tuned \+ 4 examples: Antworten werden geschrieben: 16 von 1\.200 Antworten, noch etwa \S+ \S+", german[1]
    )
    assert german[2:] == [
        "tuned + 4 examples: Antworten werden geschrieben: 1.200 von 1.200 Antworten",
        "Intervalle werden geschätzt",
    ]


@pytest.mark.parametrize(
    ("english", "german"),
    [("Pausing: a checkpoint is written first", "Wird pausiert: Zuerst wird ein Checkpoint geschrieben"),
     ("The work ended unexpectedly (SIGKILL): it resumes from the last checkpoint",
      "Der Job endete unerwartet (SIGKILL): er setzt am letzten Checkpoint fort"),
     ("Continuing after 6 answers of an earlier attempt", "Fortsetzung nach 6 Antworten eines früheren Versuchs"),
     ("Proving it equal in llama.cpp: 3 of 8 prompts", "Gleichheit wird geprüft in llama.cpp: 3 von 8 Prompts"),
     ("job job-1 is an export", "Job job-1: ein Export")],
)  # fmt: skip
def test_what_a_job_says_of_itself_is_translated(english: str, german: str) -> None:
    assert words("de")(english) == german
