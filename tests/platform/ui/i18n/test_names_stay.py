"""Names that people give are never translated, also where they are words of the interface: `run`, `plan`, `split`."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient
from tests.homes import ME, fill
from tests.platform.ui.i18n.test_german_pages import evaluation
from tests.vacuous import nonempty

from luthier.core.access import SCOPES
from luthier.features.deployments import service as deployments
from luthier.features.runs.changes import edit_here
from luthier.features.runs.labels import LabelChanges, save_view
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.ui.i18n.catalog import catalog
from luthier.server.home import create_home_app

NEUTRAL = ("zqset", "zqrun", "zqother", "zqdeploy", "zqtag", "zqview")
WORDS = ("split", "plan", "run", "version", "better", "memory")
"""Of the dataset, the two runs, a deployment, a tag and a saved view. Each has a translation of its own."""
EVALUATION = "eval-20261125-093000-cccccc"
PAGES = (
    *("/", "/start", "/start?dataset={dataset}&version=1", "/inbox", "/datasets", "/datasets/{dataset}"),
    *("/datasets/{dataset}/split", "/datasets/{dataset}/repair", "/datasets/{dataset}/map", "/datasets/new"),
    *(
        "/runs",
        "/runs/{run}",
        "/runs/new",
        "/runs/new?from={run}&dataset={dataset}",
        "/runs/compare?run={run}&run={old}",
    ),
    *("/evaluations", "/evaluations/new", "/evaluations/{evaluation}?details=1", "/evaluations/panels/new"),
    *("/worth", "/worth?evaluation={evaluation}", "/playground", "/models", "/models/{run}", "/deployments"),
    *("/deployments/{deployment}", "/monitor", "/monitor/model?name={deployment}", "/review", "/settings/alerts"),
    *("/settings/usage", "/settings/traffic", "/pipelines/new/retrain", "/pipelines/new/tune", "/studies"),
)
_HIDDEN = re.compile(r"<(script|style|textarea|pre)\b.*?</\1>", re.S)
_READ = re.compile(r'\b(?:title|aria-label|placeholder|data-confirm|alt|value)="([^"]*)"')
_MOVING = re.compile(r"\d[\d.,:]*|data-\w+-\w+|gerade eben|vor \w+ \w+|in \w+ \w+")
"""Times and ids that no two homes share."""


@contextmanager
def named(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A browser that prefers German, in a home whose things have these names, and what its addresses are made of."""
    data, run, other, deployment, tag, view = names
    with Context.open(folder) as home:
        made = fill(home, name=data)
        home.evaluations.save(evaluation(made.runs[1], EVALUATION))
        home.runs.update(made.runs[1], evaluation_id=EVALUATION)
        edit_here(home, made.runs[1], LabelChanges(name=run, tags=(tag,)))
        edit_here(home, made.runs[0], LabelChanges(name=other))
        deployments.deploy(home, ME, deployment, made.runs[1])
        save_view(home, ME, view, "q=tag:x")
        key = create_key(home, "k", scopes=SCOPES)[1]
        one = TestClient(create_home_app(home), base_url="http://127.0.0.1", client=("192.0.2.7", 50000))
        one.headers["Sec-Fetch-Site"] = "same-origin"
        one.post("/sign-in", data={"key": key})
        one.headers["accept-language"] = "de"
        ids = {"dataset": made.dataset_id, "run": made.runs[1], "old": made.runs[0], "deployment": deployment}
        yield one, ids | {"evaluation": EVALUATION}
        one.close()


def texts_of(page: str) -> Counter[str]:
    """Each text of a page between two tags and in attributes that are read out or sent, without what moves."""
    body = _HIDDEN.sub("", page)
    found = [*_READ.findall(body), *re.split(r"<[^>]*>", body)]
    return Counter(_MOVING.sub("#", " ".join(html.unescape(text).split())) for text in found)


def test_words_of_the_interface_as_names_are_shown_as_they_are(tmp_path: Path) -> None:
    german = catalog("de")
    assert [word for word in WORDS if german.sentence(word, str) in (None, word)] == [], "names without a translation"
    shown, translated = 0, []
    with named(tmp_path / "neutral", NEUTRAL) as (one, its), named(tmp_path / "words", WORDS) as (other, others):
        for path in nonempty(PAGES):
            plain, page = one.get(path.format(**its)), other.get(path.format(**others))
            assert (plain.status_code, page.status_code) == (200, 200), path
            assert '<html lang="de"' in page.text, path
            there = texts_of(page.text)
            for text in texts_of(plain.text):
                expected = text
                for name, word in zip(NEUTRAL, WORDS, strict=True):
                    expected = expected.replace(name, word)
                shown += expected != text
                if expected != text and expected not in there:
                    translated.append(f"{path}: {expected}")
    assert translated == []
    assert shown > 50
