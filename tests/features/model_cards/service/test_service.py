"""The models of a project: what a run has made, how it is called, what it can be deployed as."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.homes import ME, add_export, fill

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.features.deployments import service as deployments
from luthier.features.model_cards import service as project_models
from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

STRANGER = Caller(project_id="proj-other")


def test_what_was_tuned_with_all_that_is_known_of_it(context: Context) -> None:
    made = fill(context)
    add_run(context, "c", status="failed")
    (second, first), has_more = project_models.list_tuned(context, ME, limit=9)
    assert not has_more
    assert (second.name, second.asked_as, second.base) == (made.tuned, made.tuned, "tiny")
    assert [one.step for one in second.checkpoints] == [5]
    assert second.evaluation is not None
    assert [one.export_id for one in second.exports] == [made.export_id]
    assert (first.name, first.asked_as, first.deployments) == (made.runs[0], "support", ("support",))
    newest, has_more = project_models.list_tuned(context, ME, limit=1)
    assert has_more
    rest, _ = project_models.list_tuned(context, ME, limit=9, after=newest[0].record.run_id)
    assert [view.record.run_id for view in rest] == [made.runs[0]]
    assert project_models.list_tuned(context, STRANGER, limit=9) == ([], False)
    with pytest.raises(NotFoundError):
        project_models.list_tuned(context, STRANGER, limit=9, after=made.runs[0])


def test_a_card_names_rows_limits_and_licence(context: Context) -> None:
    made = fill(context)
    details = project_models.show_tuned(context, ME, made.runs[1])
    assert [(dataset.name, version.number) for dataset, version in details.rows.values()] == [("answers", 1)]
    assert "validation rises" in details.limits
    assert "not stated" in details.licence
    assert details.facts.evaluation is not None
    assert details.facts.evaluation.systems[0].samples == ()


def test_a_deployment_of_an_export_is_one_of_its_model(context: Context) -> None:
    made = fill(context)
    revision = context.deployments.get("default", "support").revision
    share = revision.shares[0].model_copy(update={"target": f"export:{made.export_id}"})
    current = context.deployments.get("default", "support")
    context.deployments.revise(current, revision.model_copy(update={"number": 2, "shares": (share,)}))
    assert project_models.show_tuned(context, ME, made.runs[1]).view.deployments == ("support",)


def test_what_can_be_deployed(context: Context, tiny_model: Path) -> None:
    made = fill(context)
    add_export(context, made.runs[1], "b", is_made=False)
    pull_model(context, str(tiny_model))
    found = dict(project_models.targets(context, ME))
    assert list(found) == [made.tuned, made.runs[0], f"export:{made.export_id}", "tiny"]
    assert project_models.find_base(context, "tiny").is_here
    assert not project_models.find_base(context, "gemma3-270m").is_here
    with pytest.raises(NotFoundError):
        project_models.find_base(context, str(tiny_model))


def test_who_made_which_revision(context: Context) -> None:
    ada = Caller(key_id="key-20261125-093000-aaaaaa", name="Ada")
    made = fill(context)
    deployments.deploy(context, ada, "support", made.runs[1], canary=0.1)
    assert deployments.authors_of(context, ME, "support") == {1: "local", 2: "Ada"}
    deployments.remove(context, ada, "support")
    deployments.deploy(context, ada, "support", made.runs[1])
    assert deployments.authors_of(context, ME, "support") == {1: "Ada"}
