"""Names in the place of ids: in texts, records and charts, of the reader's project alone, and never in addresses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from markupsafe import Markup
from tests.fixtures.statements import statements
from tests.page_rules import ids_shown, primary_buttons

from luthier.features.runs.labels import RunLabels
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.ui.human_names import HumanNames
from luthier.testing.records import add_run, make_evaluation

NAME = "Support answers"


@dataclass(frozen=True)
class Shown:
    """A part of a page."""

    title: str
    run_id: str
    address: str
    rows: tuple[str, ...] = ()


@pytest.fixture
def run_id(home: Context) -> str:
    made = add_run(home, "a")
    home.run_labels.put(made, RunLabels(name=NAME))
    return made


def test_a_text_has_the_name_of_a_run_and_keeps_its_addresses(home: Context, run_id: str) -> None:
    names = HumanNames(home, "default")
    assert names(f"{run_id} is better than base.") == f"{NAME} is better than base."
    assert names(f"see /runs/{run_id} or ?model={run_id}") == f"see /runs/{run_id} or ?model={run_id}"
    assert names("base is better than tuned.") == "base is better than tuned."


def test_a_run_of_another_project_keeps_its_id(home: Context, run_id: str) -> None:
    stranger = create_project(home, "strangers").project_id
    assert HumanNames(home, stranger)(f"{run_id} is worse") == f"{run_id} is worse"
    assert HumanNames(home, "default")("run-20200101-000000-abcdef is worse") == "run-20200101-000000-abcdef is worse"


def test_two_runs_of_one_name_are_told_apart_by_the_end_of_their_ids(home: Context, run_id: str) -> None:
    other = add_run(home, "b")
    home.run_labels.put(other, RunLabels(name=NAME))
    found = HumanNames(home, "default")(f"{run_id}, {other}")
    assert found == f"{NAME} ({run_id[-6:]}), {NAME} ({other[-6:]})"


def test_a_record_has_names_in_its_texts_and_ids_in_its_ids(home: Context, run_id: str) -> None:
    names = HumanNames(home, "default").read([run_id])
    shown = Shown(f"Gain of {run_id}", run_id, f"/runs/{run_id}", ("base", run_id))
    assert names.within(shown) == Shown(f"Gain of {NAME}", run_id, f"/runs/{run_id}", ("base", NAME))
    assert names.within({"title": [run_id], "run_id": run_id}) == {"title": [NAME], "run_id": run_id}
    same = Shown("base", "", "")
    assert names.within(same) is same


def test_answers_of_an_evaluation_stay_and_its_systems_are_named(home: Context, run_id: str) -> None:
    plain = make_evaluation("eval-20261125-093000-aaaaaa", run_id=run_id)
    sample = plain.systems[1].samples[0].model_copy(update={"output": f"I am {run_id}"})
    named = plain.systems[1].model_copy(update={"name": run_id, "samples": (sample,)})
    found = (
        HumanNames(home, "default")
        .read([run_id])
        .within(plain.model_copy(update={"systems": (plain.systems[0], named)}))
    )
    assert [system.name for system in found.systems] == [plain.systems[0].name, NAME]
    assert found.systems[1].samples[0].output == f"I am {run_id}"
    assert found.run_id == run_id


def test_a_name_is_no_markup(home: Context, run_id: str) -> None:
    home.run_labels.put(run_id, RunLabels(name="<b>bold</b>"))
    names = HumanNames(home, "default").read([run_id])
    assert names.within(Markup(f"<i>{run_id}</i>")) == f"<i>{run_id}</i>"


def test_a_list_is_looked_up_together(home: Context, run_id: str) -> None:
    others = [add_run(home, letter) for letter in "bcd"]
    with statements(home) as one:
        HumanNames(home, "default").read([run_id])
    with statements(home) as many:
        names = HumanNames(home, "default").read(others)
        assert all(not names(other).startswith("run-") for other in others)
    assert len(many) == len(one) > 0
    with statements(home) as none:
        HumanNames(home, "default").read(["base", "tuned"])
    assert none == []


def test_the_rules_of_pages_find_ids_and_buttons() -> None:
    wrong = "run-20261125-093000-aaaaaa"
    page = f"""<main><h1>Export of {wrong}</h1><p>It is <code>{wrong}</code> <span class="mono small">{wrong}</span>
      <a href="/runs/{wrong}">its run</a></p><select><option value="{wrong}">{wrong}</option></select>
      <button class="primary">Start</button><a class="button primary" hidden>No</a><a class="button primary">Stop</a>
      <template><button class="primary">Copy</button></template><progress aria-label="Of {wrong}"></progress></main>"""
    assert ids_shown(page) == [f"Export of {wrong}", wrong, f"Of {wrong}"]
    assert primary_buttons(page) == ["Start", "Stop"]
