"""Which trackers a run is reported to."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.tracking import TrackerPlan, TrackerRecipe
from luthier.ml.tracking.registry import (
    TRACKERS,
    absolute_location,
    chosen,
    lacks_credentials,
    location_of,
    source_of,
    within_project,
)

ENVIRONMENT = {
    "MLFLOW_TRACKING_URI": "http://me:secret@host:5000",
    "MLFLOW_EXPERIMENT_NAME": "october",
    "WANDB_PROJECT": "mails",
    "WANDB_ENTITY": "team",
    "TENSORBOARD_LOGGING_DIR": "",
}


def test_without_recipe_and_environment_there_is_none() -> None:
    assert chosen(None, {}) == ()


def test_a_silent_recipe_takes_those_of_the_environment_without_their_secrets() -> None:
    mlflow, wandb = chosen(None, ENVIRONMENT)
    assert (mlflow.name, mlflow.project, mlflow.location) == ("mlflow", "october", "http://host:5000")
    assert (wandb.name, wandb.project, wandb.entity, wandb.source) == ("wandb", "mails", "team", "WANDB_PROJECT")
    source = source_of((mlflow, wandb))
    assert source.source == "derived"
    assert "MLFLOW_TRACKING_URI and WANDB_PROJECT are set" in source.why
    assert "secret" not in mlflow.model_dump_json()


def test_the_recipe_wins_value_by_value() -> None:
    asked = [TrackerRecipe(name="wandb", project="own"), TrackerRecipe(name="trackio")]
    wandb, trackio = chosen(asked, ENVIRONMENT)
    assert (wandb.project, wandb.entity, wandb.source) == ("own", "team", "")
    assert (trackio.project, trackio.registered_model) == ("luthier", None)
    assert source_of((wandb, trackio)).source == "asked"
    assert chosen([], ENVIRONMENT) == ()


def test_a_model_is_registered_under_the_project_or_its_own_name() -> None:
    named, other = (
        chosen([TrackerRecipe(name="mlflow", project="mails", registered_model=name)], {})[0] for name in (None, "m")
    )
    assert (named.registered_model, other.registered_model) == ("mails", "m")


def test_a_disabled_tracker_is_not_taken_from_the_environment() -> None:
    for variables in ({"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "TRUE"}):
        assert [one.name for one in chosen(None, ENVIRONMENT | variables)] == ["mlflow"]


def test_credentials_come_from_the_environment_for_the_same_address_only() -> None:
    (mlflow,) = chosen([TrackerRecipe(name="mlflow")], ENVIRONMENT)
    assert location_of(mlflow, ENVIRONMENT) == "http://me:secret@host:5000"
    assert location_of(mlflow, {"MLFLOW_TRACKING_URI": "http://other"}) == "http://host:5000"
    assert location_of(TrackerPlan(name="tensorboard", project="a"), ENVIRONMENT) is None


def test_a_key_is_needed_unless_it_works_offline() -> None:
    assert lacks_credentials(TRACKERS["wandb"], {})
    assert not lacks_credentials(TRACKERS["wandb"], {"WANDB_API_KEY": "k"})
    assert not lacks_credentials(TRACKERS["wandb"], {"WANDB_MODE": "offline"})
    assert not lacks_credentials(TRACKERS["mlflow"], {})


def test_projects_share_an_account_and_no_name_in_it() -> None:
    own, other = "proj-20261130-120000-aaaaaa", "proj-20261130-120000-bbbbbb"
    plan = TrackerPlan(name="mlflow", project="mails", registered_model="model")

    def names(project_id: str, name: str) -> tuple[str, str | None]:
        found = within_project(plan.model_copy(update={"project": name}), project_id)
        return found.project, found.registered_model

    assert names("default", "mails") == ("mails", "model")
    assert names(own, "mails") == (f"{own}-mails", f"{own}-model")
    # Named in full it is the same; the names of another project cannot be named, from `default` neither.
    assert names(own, f"{own}-mails")[0] == f"{own}-mails"
    assert names(own, f"{other}-mails")[0] == f"{own}-{other}-mails"
    assert names("default", f"{other}-mails")[0] == f"default-{other}-mails"
    assert within_project(plan.model_copy(update={"registered_model": None}), own).registered_model is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("curves", "/work/curves"),
        ("/curves", "/curves"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
        ("sqlite:///runs.db", "sqlite:////work/runs.db"),
        ("sqlite:////home/me/runs.db", "sqlite:////home/me/runs.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        (None, None),
    ],
)
def test_a_location_means_the_same_from_every_folder(location: str | None, expected: str | None) -> None:
    assert absolute_location(location, Path("/work")) == expected
