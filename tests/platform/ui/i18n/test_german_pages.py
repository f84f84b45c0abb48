"""The pages of a home with a finished run, in German: no English sentence is left on any of them.

Each page is read in both languages. What stands in both, word for word, was not translated, unless a catalog says that
a text is the same in German, or it is a text of people.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from fastapi.testclient import TestClient
from tests.homes import fill
from tests.ml.evaluation.judged_cases import LINEAR, judged, sample, system
from tests.platform.ui.i18n.english_words import texts_in_english
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.evaluation import Evaluation, LabelConfidence, Metric, ReliabilityBin, RowsCurve, RowsPoint
from luthier.core.evaluation_plan import Bar, Prompting
from luthier.features.datasets.service import create_dataset, keep_rows
from luthier.ml.baselines.learning_curve import _advice
from luthier.ml.evaluation.label_confidence import coverage_at
from luthier.ml.evaluation.verdict import verdict
from luthier.ml.inference.models.catalog import entries
from luthier.platform.home.context import Context
from luthier.platform.ui.i18n.catalog import catalog

Browser = Callable[..., TestClient]
EVALUATION, WITHOUT_LEAK = "eval-20261125-093000-cccccc", "eval-20261125-093000-aaaaaa"
WORTH = "answers_per_week=400&minutes_each=6&cost_of_an_error=20"
PAGES = (
    *("/", "/start", "/start?goal=answers&dataset={dataset}&version=1", "/inbox", "/glossary"),
    *("/datasets", "/datasets/new", "/datasets/{dataset}", "/datasets/{dataset}/columns"),
    *("/datasets/{dataset}/annotate", "/datasets/{dataset}/split"),
    *("/runs", "/runs/{run}", "/runs/new", "/studies", "/pipelines/new/automl", "/pipelines/new/tune"),
    *("/pipelines/new/compare-models", "/pipelines/new/distill", "/pipelines/new/retrain"),
    *("/evaluations", "/evaluations/new", "/evaluations/panels", "/evaluations/panels/new?evaluation={evaluation}"),
    *("/evaluations/{evaluation}?details=1&{worth}", "/evaluations/{without_leak}/alternative"),
    *("/worth", "/worth?{worth}", "/worth?{worth}&evaluation={without_leak}"),
    *("/playground", "/playground/head", "/models", "/models/{run}", "/batches", "/deployments/support"),
    *("/monitor", "/review", "/settings/account", "/settings/keys", "/settings/members", "/settings/projects"),
    *("/settings/alerts", "/settings/traffic", "/settings/usage", "/settings/webhooks", "/settings/audit-log"),
)
_HIDDEN = re.compile(r"<(script|style|pre|textarea|code|kbd|head)\b.*?</\1>", re.S)
_OF_PEOPLE = re.compile(r'<(div|span|option|a)\b[^>]*class="(?:text|mono|sample-text)[^"]*"[^>]*>.*?</\1>', re.S)
_INLINE = re.compile(r"</?(?:a|abbr|b|bdi|em|i|span|strong|time|mark|label|small)\b[^>]*>")
_TIP = re.compile(r'<span class="term-tip".*?</span>', re.S)
_READ = re.compile(r'\b(?:title|aria-label|placeholder|data-confirm|alt)="([^"]*)"')
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NEXT = 3
"""So many words of an English page, one behind the other, are no coincidence."""


def rows_curve() -> RowsCurve:
    """Whether more rows would help, in the words of the baseline's own curve."""
    from luthier.core.estimate import Estimate
    from luthier.ml.evaluation.metrics.registry import load_metrics

    points = [RowsPoint(rows=n, value=v, low=v - 0.1, high=v + 0.1, num_draws=4) for n, v in ((50, 0.4), (100, 0.5))]
    now = RowsPoint(rows=200, value=0.6, low=0.5, high=0.7, num_draws=1)
    gain = Estimate(value=0.1, low=0.02, high=0.2)
    metric = load_metrics(["label_accuracy"])[0]
    advice = _advice("more_rows", [*points, now], 150, gain, 0.05, metric, LINEAR)
    expected = RowsPoint(rows=400, value=0.7, low=0.6, high=0.8, num_draws=0)
    return RowsCurve(
        system=LINEAR, metric="label_accuracy", word="more_rows", advice=advice, points=(*points, now),
        expected=expected, more_rows=150,
    )  # fmt: skip


def evaluation(run_id: str, evaluation_id: str, *, num_leaked: int = 0) -> Evaluation:
    """A tuned model beside every kind of alternative, with the verdict that the platform writes about it."""
    answers = [sample(n, "right" if n % 2 else "wrong", float(n % 2)) for n in range(1, 41)]
    shown = Prompting(kind="few_shot", examples="drawn", num_draws=3, extra_prompt_tokens=41.6)
    others = [
        system("base", 0.2, samples=answers),
        system("base + 4 examples", 0.5, prompting=shown, num_few_shot=4, samples=answers),
        system(LINEAR, 0.78, kind="linear", samples=answers),
        system("commonest answer", 0.3, kind="majority", samples=answers),
    ]
    plain = judged(
        0.6, others, ["better", "not distinguishable", "worse", "better"], word="worse", rows_needed=410,
        tuned_samples=answers,
    )  # fmt: skip
    figure = Metric(value=0.1, low=0.05, high=0.15, unit="", higher_is_better=False)
    sure = LabelConfidence(
        system="tuned", num_labels=2, calibration_error=figure, brier=figure,
        bins=tuple(ReliabilityBin(low=n / 5, high=(n + 1) / 5, num_rows=20, confidence=n / 5 + 0.1, accuracy=n / 5)
                   for n in range(5)),
        confidence=tuple(n / 100 for n in range(1, 101)), is_right=tuple(n > 3 for n in range(1, 101)),
    )  # fmt: skip
    sure = sure.model_copy(update={"coverage": coverage_at(sure, 0.9)})
    words = verdict(
        plain.systems,
        plain.comparisons,
        primary="label_accuracy",
        num_leaked=num_leaked,
        num_same_prompt=1,
        num_rows_in_file=400,
        # Without a bar that it misses, the simple method is recommended.
        bar=Bar(metric="label_accuracy", value=0.9) if num_leaked else None,
        are_labels=True,
        confidence=[sure],
    ).model_copy(update={"learning_curve": rows_curve()})
    changes = {"evaluation_id": evaluation_id, "run_id": run_id, "verdict": words, "label_confidence": (sure,)}
    return plain.model_copy(update=changes)


@pytest.fixture
def addresses(home: Context) -> dict[str, str]:
    """A dataset, two finished runs with a model, and an evaluation of the newer one: what addresses are made of."""
    made = fill(home)
    rows = b"".join(f'{{"prompt": "p{n}", "completion": "c{n}"}}\n'.encode() for n in range(30))
    file = keep_rows(home, Caller(), [rows], "rows.jsonl")
    dataset, _ = create_dataset(home, Caller(), "Zettel", file)
    home.evaluations.save(evaluation(made.runs[0], WITHOUT_LEAK))
    home.evaluations.save(evaluation(made.runs[1], EVALUATION, num_leaked=2))
    home.runs.update(made.runs[1], evaluation_id=EVALUATION)
    known = {"evaluation": EVALUATION, "without_leak": WITHOUT_LEAK, "worth": WORTH}
    return known | {"dataset": dataset.dataset_id, "run": made.runs[1]}


_NAMES = re.compile(
    r"(?<!\w)(?:[a-z]+-2026[\w-]*|Answers · tiny · 25 Nov|\S+\.jsonl|answers|Zettel[\w-]*|tiny"
    r"|ft:[\w:….-]+|linear classifier, commonest answer|examples|read, train, infer, admin|/v1/[\w/]*|export:\S*"
    r"|(?:adapter|executorch|gguf|merged|onnx|vllm|float16|float32|bfloat16) in \w+|transformers|pytorch_tokenizers"
    r"|enough for most|Schedule-free AdamW|bfloat16 was faster|Cannot tell\.|one row|few rows|[a-z_]+\.[a-z_]+)(?!\w)"
)
"""Names that the test or a person has given, of formats and of keys; and sentences that `luthier.testing` makes up."""


def texts_of(page: str) -> list[str]:
    """What a page shows or reads out, one text an element; texts of people left out."""
    body = _OF_PEOPLE.sub("", _TIP.sub("", _HIDDEN.sub("\x1f", page)))
    for title in _model_titles():
        body = body.replace(title, "")
    body = _NAMES.sub("", body)
    found = [html.unescape(one) for one in _READ.findall(body)]
    parts = re.split(r"<[^>]*>|\x1f", _INLINE.sub("", body))
    return [" ".join(text.split()) for text in (*found, *map(html.unescape, parts)) if _WORD.search(text)]


def chains(texts: list[str]) -> Iterator[tuple[str, ...]]:
    """Every few words that follow each other in a text."""
    for text in texts:
        words = _WORD.findall(text)
        yield from zip(*(words[n:] for n in range(_NEXT)), strict=False)


@cache
def _model_titles() -> list[str]:
    return sorted((one.title for one in entries().values()), key=len, reverse=True)


@cache
def german_texts() -> frozenset[str]:
    """All texts of the German catalogs."""
    texts = catalog("de")
    return frozenset((*texts.sentences.values(), *(form for own in texts.pages.values() for form in own)))


@cache
def german_chains() -> frozenset[tuple[str, ...]]:
    """What words follow each other in German, too."""
    return frozenset(chains(sorted(german_texts())))


def left_in_english(english: str, german: str) -> list[str]:
    """The texts of the German page that have three words in a row of the English one, or are known to be English."""
    of_english = set(chains(texts_of(english))) - german_chains()
    missed = catalog("de").missed - german_texts()
    return sorted({text for text in texts_of(german) if text in missed or not of_english.isdisjoint(chains([text]))})


def test_no_page_of_a_home_with_a_finished_run_has_an_english_sentence_left(
    browser: Browser, addresses: dict[str, str]
) -> None:
    one = browser("read", "train", "infer", "admin")
    catalog("de").missed.clear()  # of other tests
    left = []
    for path in nonempty(PAGES):
        address = path.format(**addresses)
        english, german = (one.get(address, headers={"accept-language": language}) for language in ("en", "de"))
        is_german = (english.status_code, german.status_code) == (200, 200) and '<html lang="de"' in german.text
        left += [] if is_german else [f"{path}: no German page"]
        left += [f"{path}: {text}" for text in left_in_english(english.text, german.text)]
        left += [f"{path}: {text}" for text in texts_in_english(texts_of(german.text))]
        marked = re.findall(r'<span lang="en">(.*?)</span>', german.text, re.S)
        left += [f"{path}: {text}" for text in marked if _WORD.search(_NAMES.sub("", text))]
    assert left == []


@pytest.mark.parametrize(
    ("english", "german", "left"),
    [
        ("<p>No rows are left here.</p>", "<p>Keine Zeilen übrig.</p>", []),
        ("<p>No rows are left here.</p>", "<p>Nun: rows are left here.</p>", ["Nun: rows are left here."]),
        ('<p title="All rows of it">x</p>', '<p title="All rows of it">x</p>', ["All rows of it"]),
        ('<div class="text">all of these words</div>', '<div class="text">all of these words</div>', []),
        ("<pre>all of these words</pre>", "<pre>all of these words</pre>", []),
        ("<desc>all of these words</desc>", "<desc>all of these words</desc>", ["all of these words"]),
    ],
)  # fmt: skip
def test_english_is_found_wherever_people_read_it(english: str, german: str, left: list[str]) -> None:
    assert left_in_english(english, german) == left


def test_numbers_of_german_pages_have_a_decimal_comma(browser: Browser, addresses: dict[str, str]) -> None:
    """On a page full of figures no number has a decimal point, but in fields, addresses and file names."""
    address = f"/evaluations/{EVALUATION}?details=1&{WORTH}"
    page = browser("read").get(address, headers={"accept-language": "de"}).text
    found = [text for text in texts_of(page) if re.search(r"(?<![\w.-])\d+\.\d(?!\d{2}\b)(?![\w.-]*\w)", text)]
    assert found == []
    assert re.search(r"\d,\d", page)
