"""Every page of the app in German, over a home with one of everything, and what wrong forms are answered with."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.full_home import FullHome, fill_home
from tests.platform.ui.i18n.english_words import texts_in_english
from tests.platform.ui.i18n.test_german_pages import PAGES, texts_of
from tests.vacuous import nonempty

from luthier.core.access import SCOPES
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.ui import page_work
from luthier.server.home import create_home_app
from luthier.server.pages import page_routes

FILES = re.compile(
    r"\.(csv|tar|zip|yaml|jsonl|\{file_format\})$|/(series|report(\.html|\.json)?|log|download|pairs\.jsonl|audit\w*\.html)$|/files/"
)
"""Addresses of files: reports and downloads are English in every language."""
SECRET = re.compile(r"\{token\}|^/work/")
"""Addresses that a test cannot make up; wrong ones are among the errors below."""
OTHERS = (
    *("/runs/compare?run={run_id}&run=run-20261125-093008-bbbbbb", "/runs/new?from={run_id}&dataset={dataset_id}"),
    *("/monitor/model?name={name}", "/playground/head?model=run-20261125-093008-bbbbbb", "/models/{checkpoint}"),
    *("/datasets/{dataset_id}/tokens?version=1&model={model}", "/pipelines/auto-20261126-130000-abcdef"),
    *("/pipelines/showdown-20261126-120000-abcdef", "/evaluations/safety/{safety}", "/runs/run-20261125-093008-bbbbbb"),
)
"""Addresses beside the routes as they are."""
ENGLISH = re.compile(
    r"\b(?:the|of|and|are|with|that|this|not|by|from|your|you|which|has|have|its|than|where|when|is|for|it|to)\b"
)
"""Words that no German sentence has."""
MADE_UP = re.compile(
    "|".join(
        (
            r"(?:rows\.jsonl|ended, |beendet, )? ?is on a full disk, as the home and (?:tiny )?are",
            r"(?:nicht unterscheidbar ?)?(?:Rows ·.*?25 Nov|\S+)? ?is not better than (?:tiny )?\+ 4 (?:examples)?\.",
            r"jobs/(?:a\.pdf)? cannot be read(?: Im Eingang öffnen)?",
            r"room in the home|empty tiny|no room in runs|orders\.jsonl has no rows",
            r"train\.jsonl was read|a document with text|add another one|/imagine cats/dogs and what the row says",
            r"Answer with one SQL(?: query\.)?(?: · AutoML)?|Tune smollm2-135m-instruct: .*|12 exact duplicates",
            r"(?:besser |\d Bedenken )?The (?:tuned )?model (?:writes queries|refuses less) .*|<script>alert.*",
            r"By execution accuracy it gains .*|200 rows are few .*|Three labels of unequal size.*|Cannot tell\.",
            r"The judge likes long (?:answers)?.*|Refusal of harmful requests fell .*|Refusals are found by phrases.*",
            r"Pairs of sentences measure .*|A list of words finds .*|few rows|one row|enough for most",
            r"bfloat16 was faster|transformers|smollm2-135m-instruct, gemma3-270m|.*Mixture of Experts.*",
        )
    )
)
"""Sentences that `luthier.testing` has written into the home's records, and names."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[TestClient, FullHome]]:
    """A browser that prefers German, in a home with one of everything."""
    folder = tmp_path_factory.mktemp("german")
    base = folder / "bases" / "tiny"
    base.parent.mkdir()
    base.symlink_to(tiny_model)
    with Context.open(folder / "home") as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_work, "WAIT_SECONDS", 60.0)
        full = fill_home(home, folder, base)
        one = TestClient(create_home_app(home), base_url="http://127.0.0.1", follow_redirects=False)
        one.headers["Sec-Fetch-Site"] = "same-origin"
        one.post("/sign-in", data={"key": create_key(home, "walker", scopes=SCOPES)[1]})
        one.headers["accept-language"] = "de"
        yield one, full


def english_in(page: str) -> list[str]:
    """What a page shows in English: texts that are marked as that, and texts with an English word."""
    marked = [html.unescape(one) for one in re.findall(r'<span lang="en">(.*?)</span>', page, re.S)]
    return [one for one in (*marked, *filter(ENGLISH.search, texts_of(page))) if MADE_UP.sub("", one).strip()]


def addresses() -> list[str]:
    """Every page of the app that the walk of `test_german_pages.py` leaves out."""
    known = {re.sub(r"\{\w+\}", "{}", path) for path in PAGES}
    paths = [route.path for route in page_routes() if "GET" in (route.methods or ())]
    ours = [path for path in paths if not FILES.search(path) and not SECRET.search(path)]
    assert len(ours) > 70
    return [*(path for path in ours if re.sub(r"\{[\w:]+\}", "{}", path) not in known), *OTHERS]


@pytest.fixture(scope="module")
def pages(filled: tuple[TestClient, FullHome]) -> dict[str, str]:
    """Every page of the app that is HTML, by its address."""
    one, full = filled
    safety = full.of_route["/evaluations/safety/"]["result_id"]
    found = {}
    for path in nonempty(addresses()):
        answer = one.get(full.address(path.replace("{safety}", safety)))
        if answer.headers.get("content-type", "").startswith("text/html"):
            found[path] = answer.text
    assert len(found) > 30
    return found


def test_no_page_of_the_app_has_an_english_sentence_left(pages: dict[str, str]) -> None:
    assert [f"{path}: {text}" for path, page in nonempty(list(pages.items())) for text in english_in(page)] == []


def test_no_page_of_the_app_has_an_english_word_left(pages: dict[str, str]) -> None:
    left = {
        f"{path}: {text}"
        for path, page in nonempty(list(pages.items()))
        for text in texts_in_english(texts_of(page))
        if MADE_UP.sub("", text).strip(" ·,")
    }
    assert sorted(left) == [], "pass it through `| t` or `counted(...)`, and add the German text"


def test_a_page_has_one_primary_button_at_most(pages: dict[str, str]) -> None:
    several = {}
    for path, page in nonempty(list(pages.items())):
        buttons = re.findall(r'<(?:button|a)\b[^>]*class="[^"]*\bprimary\b[^"]*"[^>]*>(.*?)</(?:button|a)>', page, re.S)
        if len(buttons) > 1:
            several[path] = [re.sub(r"<[^>]*>", "", one).strip() for one in buttons]
    assert several == {}, "one next step a page; the others are plain buttons"


ERRORS: tuple[tuple[str, str, dict[str, str], int, str], ...] = (
    ("GET", "/no-such-page", {}, 404, "keine Seite /no-such-page"),
    ("GET", "/runs/run-none", {}, 404, "kein Lauf 'run-none'"),
    ("GET", "/datasets/ds-none", {}, 404, "kein Datensatz"),
    ("GET", "/evaluations/eval-none", {}, 404, "keine Evaluation 'eval-none'"),
    ("GET", "/models/none", {}, 404, "das Modell 'none' gibt es nicht"),
    ("GET", "/deployments/none", {}, 404, "kein Deployment 'none'"),
    ("GET", "/exports/exp-none", {}, 404, "kein Export"),
    ("GET", "/batches/batch_none", {}, 404, "Batch"),
    ("GET", "/invite/none", {}, 404, "diese Einladung ist nicht gültig"),
    ("GET", "/rate/none", {}, 404, "dieser Link ist nicht gültig"),
    ("GET", "/welcome/none", {}, 422, "dieser Link wurde schon benutzt oder ist älter als eine Viertelstunde"),
    ("GET", "/runs?filter=(lr>1", {}, 422, "eine öffnende Klammer, die nie geschlossen wird"),
    ("GET", "/runs?filter=lr>>1", {}, 422, "ein Wert nach lr>"),
    ("GET", "/evaluations/suites/none", {}, 404, "kein Suite-Ergebnis 'none'"),
    ("POST", "/sign-in", {"key": "sk-luthier-wrong"}, 422, "dieser Schlüssel ist nicht gültig"),
    ("POST", "/sign-in", {"name": "ada", "password": "x"}, 422, "dieser Name und dieses Passwort sind nicht gültig"),
    ("POST", "/batches", {}, 400, "multipart/form-data"),
    ("POST", "/datasets/adopt", {"file": "none"}, 404, "keine solche Datei: 'none'"),
    ("POST", "/datasets/import", {"address": "x"}, 422, "ORGANISATION/DATASET des Hubs"),
    ("POST", "/datasets/{dataset_id}/repair?version=1", {"action": "keep"}, 422, ""),
    ("POST", "/runs/edit", {"do": "star"}, 422, "kein Lauf ist gewählt"),
    ("POST", "/runs/views", {"query": ""}, 422, "eine Ansicht ohne Namen"),
    ("POST", "/runs/views/delete", {"name": "x"}, 404, "keine Ansicht 'x'"),
    ("POST", "/evaluations/new", {"candidate": "x"}, 422, "das Modell 'x' zum Evaluieren"),
    ("POST", "/evaluations/panels/new", {}, 404, "keine Evaluation"),
    ("POST", "/deployments", {"name": "a", "target": "none"}, 404, "das Modell 'none' gibt es nicht"),
    ("POST", "/exports", {"source": "none", "form": "gguf"}, 404, "ein Basismodell, ein angepasstes Modell"),
    ("POST", "/playground", {}, 422, "kein Modell ist gewählt"),
    ("POST", "/pipelines/new/none", {}, 404, "kein Workflow 'none'"),
    ("POST", "/settings/keys", {"name": ""}, 422, "der Name '' für einen Schlüssel"),
    ("POST", "/settings/keys", {"scopes": "x"}, 422, "'read', 'train', 'infer' oder 'admin'"),
    ("POST", "/settings/account/password", {"password": "a", "again": "b"}, 422, "die beiden neuen Passwörter"),
    ("POST", "/settings/members", {}, 422, "role: Feld fehlt"),
    ("POST", "/settings/gate", {"text": ""}, 422, "die Freigaberegeln enthalten keine Schlüssel"),
    ("POST", "/settings/webhooks", {"url": "https://example.com"}, 422, "kein Ereignis ist gewählt"),
    ("POST", "/settings/members/address", {"public_url": "x"}, 422, "die Adresse für Links 'x'"),
    ("POST", "/settings/sign-in/groups", {"name": ""}, 422, "druckbare Zeichen, wie der Anbieter sie schreibt"),
    ("POST", "/review/add", {"dataset": "none", "model": "front-desk"}, 404, "kein Datensatz 'none'"),
    ("POST", "/work/none", {}, 404, ""),
)
"""Of pages: method, address, form, status, and a part of the German message."""


@pytest.mark.parametrize(("method", "path", "form", "status", "said"), ERRORS)
def test_what_is_wrong_is_said_in_german(
    filled: tuple[TestClient, FullHome], method: str, path: str, form: dict[str, str], status: int, said: str
) -> None:
    one, full = filled
    answer = one.request(method, full.address(path), data=form or None)
    assert answer.status_code == status
    assert '<html lang="de"' in answer.text
    assert said in html.unescape(answer.text)
    boxes = re.findall(r'<div class="message bad".*?</div>', answer.text, re.S)
    assert [one for box in nonempty(boxes) for one in english_in(box)] == []


def test_scripts_get_errors_in_the_language_of_their_page(filled: tuple[TestClient, FullHome]) -> None:
    one, _ = filled
    error = one.post("/playground/answer", data={}, headers={"accept": "application/json"}).json()["error"]
    assert error == {
        "came": "nichts zu beantworten",
        "expected": "ein Modell und eine Frage an das Modell",
        "do": "stellen Sie eine Frage",
    }
    english = one.post("/playground/answer", data={}, headers={"accept-language": "en"}).json()["error"]
    assert english["came"] == "nothing to answer"
    sent = {"accept": "application/json", "content-type": "multipart/form-data; boundary=x"}
    refused = one.post("/datasets/new", content=b"--x--", headers=sent).json()
    assert not ENGLISH.search(f"{refused['came']}; {refused['expected']}; {refused['do']}")
