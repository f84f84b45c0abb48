"""/evaluations/panels: made by who may train, seen by who may read, of one project; links are shown once."""

from __future__ import annotations

import re

import pytest
from tests.assessed import careful, clicking, make_panel, rate_all
from tests.fixtures.pages import Browser, shown
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.features.human_eval import service as rating_links
from luthier.features.human_eval.service import list_panels
from luthier.platform.home.context import Context
from luthier.testing.records import make_evaluation

PANELS = "/evaluations/panels"


@pytest.fixture
def evaluation_id(home: Context) -> str:
    evaluation = make_evaluation(run_id=None)
    home.evaluations.save(evaluation)
    return evaluation.evaluation_id


def systems_of(home: Context, evaluation_id: str) -> list[str]:
    return [system.name for system in home.evaluations.get(evaluation_id).systems if system.samples]


def test_a_panel_is_made_of_an_evaluation_and_its_links_are_shown_once(
    home: Context, browser: Browser, evaluation_id: str
) -> None:
    one = browser("train", "read")
    assert "New panel" in one.get(PANELS).text
    assert evaluation_id in one.get(f"{PANELS}/new").text
    form = one.get(f"{PANELS}/new?evaluation={evaluation_id}").text
    systems = systems_of(home, evaluation_id)
    assert all(nonempty(name in form for name in systems))
    data = {"evaluation": evaluation_id, "systems": systems, "raters": "Ada, Ben", "attention": "0", "kind": "likert"}
    made = shown(one, one.post(f"{PANELS}/new", data=data))
    assert made.status_code == 200
    links = re.findall(r"http://127\.0\.0\.1(/rate/[\w-]{43})", made.text)
    assert len(links) == 2
    assert one.get(links[0]).status_code == 200
    (counts,) = list_panels(home, Caller())
    assert counts.panel.kind == "likert"
    page = one.get(f"{PANELS}/{counts.panel.panel_id}").text
    assert "/rate/" not in page
    assert "Ada" in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"raters": "0"}, "0 raters"),
        ({"raters": "Ada, Ada"}, "2 raters, 1 different"),
        ({"attention": "70"}, "attention checks in percent"),
        ({"most_rows": "many"}, "rows: &#39;many&#39;"),
        ({"systems": []}, "systems none"),
        ({"systems": ["nobody"]}, "has no answers"),
    ],
)
def test_what_cannot_be_made_is_said_and_the_form_keeps_its_words(
    home: Context, browser: Browser, evaluation_id: str, changes: dict[str, object], words: str
) -> None:
    one = browser("train", "read")
    systems = systems_of(home, evaluation_id)
    data = {"evaluation": evaluation_id, "systems": systems, "instructions": "look it up"} | changes
    refused = one.post(f"{PANELS}/new", data=data)
    assert refused.status_code == 422
    assert words in refused.text
    assert "look it up" in refused.text
    assert list_panels(home, Caller()) == []


def test_long_instructions_may_have_lines_and_too_long_ones_keep_the_form(
    home: Context, browser: Browser, evaluation_id: str
) -> None:
    one, systems = browser("train", "read"), systems_of(home, evaluation_id)
    data = {"evaluation": evaluation_id, "systems": systems, "raters": "Ada", "attention": "0", "name": "typed"}
    data["kind"] = "likert"
    refused = one.post(f"{PANELS}/new", data=data | {"instructions": 20_001 * "x"})
    assert refused.status_code == 422
    assert "instructions of 20,001 characters" in refused.text
    assert 20_001 * "x" in refused.text
    assert 'value="typed"' in refused.text
    lines = 5_000 * "xyz\n"  # 20,000 characters, for which a browser sends 25,000
    made = one.post(f"{PANELS}/new", data=data | {"instructions": lines.replace("\n", "\r\n")})
    assert made.status_code == 303
    (counts,) = list_panels(home, Caller())
    assert counts.panel.instructions == lines.strip()


def test_viewers_look_and_change_nothing(home: Context, browser: Browser, evaluation_id: str) -> None:
    made = make_panel(home)
    viewer = browser("read")
    here = f"{PANELS}/{made.panel.panel_id}"
    page = viewer.get(here)
    assert page.status_code == 200
    assert "Close the panel" not in page.text
    rater_id = made.links[0].rater.rater_id
    assert viewer.get(f"{PANELS}/new").status_code == 403
    posts = (f"{PANELS}/new", f"{here}/close", f"{here}/raters", f"{here}/raters/{rater_id}/revoke")
    for path in posts:
        assert viewer.post(path, data={"name": "x"}).status_code == 403
    assert rating_links.rater_of_token(home, made.links[0].token) is not None
    assert browser().get(here).headers["location"].startswith("/sign-in")


def test_panels_of_another_project_are_not_there(home: Context, browser: Browser) -> None:
    made = make_panel(home)
    home.access.add_project("proj-other", "other")
    other = browser("train", "read", project="other")
    here = f"{PANELS}/{made.panel.panel_id}"
    assert "No panels yet" in other.get(PANELS).text
    rater_id = made.links[0].rater.rater_id
    for path in (here, f"{here}/ratings.csv", f"{here}/pairs.jsonl"):
        assert other.get(path).status_code == 404
    for path in (
        f"{here}/close",
        f"{here}/raters",
        f"{here}/raters/{rater_id}/renew",
        f"{here}/raters/{rater_id}/revoke",
    ):
        assert other.post(path, data={"name": "x"}).status_code == 404
    assert rating_links.rater_of_token(home, made.links[0].token) is not None


def test_the_page_names_who_does_not_read_and_gives_files(home: Context, browser: Browser) -> None:
    made = make_panel(home, num_rows=20)
    for place in (0, 1):
        rate_all(home, made, place, careful("pairwise", seed=place))
    rate_all(home, made, 2, clicking("pairwise", seed=3))
    one = browser("read")
    here = f"{PANELS}/{made.panel.panel_id}"
    page = one.get(here).text
    assert "seems not to read" in page
    assert "Without Cleo" in page
    assert "Everyone" in page
    assert "Krippendorff" in page
    assert '<svg class="drawn"' in page
    table = one.get(f"{here}/ratings.csv")
    assert "attachment" in table.headers["content-disposition"]
    assert len(table.text.splitlines()) > made.panel.num_items
    assert one.get(f"{here}/ratings.parquet").content[:4] == b"PAR1"
    assert len(one.get(f"{here}/ratings.json").json()) == made.panel.num_items
    assert '"chosen"' in one.get(f"{here}/pairs.jsonl").text
    assert one.get(f"{here}/ratings.xlsx").status_code in (404, 422)


def test_links_are_renewed_revoked_and_raters_added_until_the_panel_is_closed(home: Context, browser: Browser) -> None:
    made = make_panel(home)
    one = browser("train", "read")
    here, rater = f"{PANELS}/{made.panel.panel_id}", made.links[0].rater
    renewed = shown(one, one.post(f"{here}/raters/{rater.rater_id}/renew"))
    assert len(re.findall(r"/rate/[\w-]{43}", renewed.text)) == 1
    assert rating_links.rater_of_token(home, made.links[0].token) is None
    assert one.post(f"{here}/raters/{rater.rater_id}/revoke").status_code == 303
    assert "no link" in one.get(here).text
    added = shown(one, one.post(f"{here}/raters", data={"name": "Dora"}))
    assert "/rate/" in added.text
    again = one.post(f"{here}/raters", data={"name": "Dora"})
    assert (again.status_code, 'name="name" value="Dora"' in again.text) == (409, True)
    assert one.post(f"{here}/raters", data={"name": " "}).status_code == 422
    assert one.post(f"{here}/raters/rater-x/revoke").status_code == 404
    assert one.post(f"{here}/close").status_code == 303
    assert one.post(f"{here}/close").status_code == 409
    assert one.post(f"{here}/raters", data={"name": "Eve"}).status_code == 409
    assert "closed" in one.get(PANELS).text


def test_no_pair_is_said_to_be_none(home: Context, browser: Browser) -> None:
    made = make_panel(home)
    refused = browser("read").get(f"{PANELS}/{made.panel.panel_id}/pairs.jsonl")
    assert refused.status_code == 422
    assert "it has no rating" in refused.text
