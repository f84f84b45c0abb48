"""MLflow's runs and registered models, read back by its own client."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from tests.ml.tracking.tracked_run import BEGAN, RUN_ID, deliver_to

from luthier.core.errors import NotFoundError
from luthier.ml.tracking import mlflow_model
from luthier.ml.tracking.figures import Clock, metric_name, points_of
from luthier.ml.tracking.protocol import TrackedRun
from luthier.testing.records import make_step

# Of classes that are not used here, and of an example of inputs, which a signature makes unnecessary.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*An input example was not provided:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    """Imported here: every process of a run collects this file, and one runs it."""
    pytest.importorskip("mlflow", reason="needs luthier[mlflow]")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store in files: the cheapest that has a model registry."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # Set by the client for good: each later training of this process would be reported there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return str(tmp_path / "mlruns")


def test_run_artifacts_and_model_are_read_back(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient
    from mlflow.models import get_model_info

    run = deliver_to("mlflow", tmp_path, location=store, registered_model="mails")
    client = MlflowClient(tracking_uri=store)
    found = client.get_run(run.tracker_run_id)
    assert (found.info.status, found.info.run_name, found.info.start_time) == ("FINISHED", RUN_ID, int(BEGAN * 1000))
    assert client.get_experiment(found.info.experiment_id).name == "mails"
    assert found.data.params == {
        "training.learning_rate": "0.0002",
        "training.packing": "True",
        "recipe.method.name": "lora",
        "template": "chat",
    }
    history = client.get_metric_history(run.tracker_run_id, "train/loss")
    assert [(one.step, one.timestamp) for one in history] == [(n, int((BEGAN + n) * 1000)) for n in range(1, 6)]
    assert found.data.metrics["verdict/exact_match/tuned minus base_low"] == 0.1
    tags = found.data.tags
    assert (tags["luthier.verdict"], tags["luthier.plan_hash"], tags["october"]) == ("better", "0" * 64, "true")
    assert [one.path for one in client.list_artifacts(run.tracker_run_id, "report")] == ["report/report.html"]
    (version,) = client.search_model_versions("name = 'mails'")
    assert version.run_id == run.tracker_run_id
    signature = get_model_info(version.source).signature
    assert [column.name for column in signature.inputs.inputs] == ["prompt"]
    assert [column.name for column in signature.outputs.inputs] == ["answer"]


def test_a_second_delivery_of_the_end_registers_no_second_model(tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    from luthier.ml.tracking.mlflow_client import MLflow

    run = deliver_to("mlflow", tmp_path, location=store, registered_model="mails")
    again = MLflow()
    again.begin(run)
    assert again._is_registered()
    assert len(MlflowClient(tracking_uri=store).search_model_versions("name = 'mails'")) == 1
    lost = MLflow()
    lost_id = lost.begin(TrackedRun(**{name: getattr(run, name) for name in run.__slots__} | {"tracker_run_id": ""}))
    assert lost_id.tracker_run_id == run.tracker_run_id, "a run whose id was lost is found by its tag"
    new_id = MLflow().begin(replace(run, tracker_run_id="", number=2))
    assert new_id.tracker_run_id != run.tracker_run_id, "a delivery from the start has a run of its own"


def test_a_run_that_goes_on_with_other_values_keeps_its_parameters_and_has_these_as_tags(
    tmp_path: Path, store: str
) -> None:
    from mlflow import MlflowClient

    from luthier.ml.tracking.mlflow_client import MLflow

    run = deliver_to("mlflow", tmp_path, location=store)
    resumed = replace(run, parameters={**run.parameters, "template": "plain", "budget.hours": 4.0})
    assert MLflow().begin(resumed).tracker_run_id == run.tracker_run_id
    found = MlflowClient(tracking_uri=store).get_run(run.tracker_run_id).data
    assert found.params["template"] == "chat"
    assert found.params["budget.hours"] == "4.0"
    assert found.tags["luthier.template"] == "plain"
    assert "luthier.training.packing" not in found.tags, "it has not changed"


def test_a_base_model_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone"}')
    with pytest.raises(NotFoundError, match="no base model in '/gone'") as caught:
        mlflow_model._load_pyfunc(str(tmp_path))
    assert "model_config" in caught.value.do


def test_figures_and_parameters_that_a_recipe_names_freely_are_taken(tmp_path: Path, store: str) -> None:
    """MLflow refuses a whole request over one name: a grader's name must not keep a run from being reported."""
    from mlflow import MlflowClient

    from luthier.ml.tracking.mlflow_client import MLflow

    names = ("exact match (strict)?", "a//b/", "../up", "./here", "Kürze: 100%", "正解", "long " * 80, "long " * 81)
    step = make_step(1).model_copy(update={"measures": {f"reward_{name}": n / 8 for n, name in enumerate(names)}})
    run = deliver_to("mlflow", tmp_path, location=store)
    parameters = {metric_name(f"recipe.objective.grader.graders.{name}.type"): name for name in names}
    tracker = MLflow()
    tracker.begin(replace(run, parameters={**run.parameters, **parameters}))
    tracker.log(points_of([step], Clock(None, BEGAN)))
    found = MlflowClient(tracking_uri=store).get_run(run.tracker_run_id).data
    rewards = {name: value for name, value in found.metrics.items() if name.startswith("train/reward_")}
    assert sorted(rewards.values()) == [n / 8 for n in range(len(names))]
    assert found.metrics["train/reward_exact match _strict_"] == 0.0
    assert found.metrics["train/reward_正解"] == 5 / 8
    assert {name.strip() for name in names} <= {value.strip() for value in found.params.values()}


def test_an_experiment_that_is_a_path_and_a_tag_of_any_text_end_like_others(tmp_path: Path, store: str) -> None:
    """Databricks has such experiments only; a model of that name would be refused, at the end of each delivery."""
    from mlflow import MlflowClient

    name = "/Shared/mails: v2"
    note = "the model is registered as Shared-mails-v2: MLflow takes neither / nor : in such a name"
    settings = {"location": store, "project": name, "registered_model": name, "tags": ("prod (eu)?", "/")}
    run = deliver_to("mlflow", tmp_path, notes=[note], **settings)
    client = MlflowClient(tracking_uri=store)
    found = client.get_run(run.tracker_run_id)
    assert client.get_experiment(found.info.experiment_id).name == name
    assert (found.info.status, found.data.tags["prod _eu_"]) == ("FINISHED", "true")
    (version,) = client.search_model_versions(f"run_id = '{run.tracker_run_id}'")
    assert version.name == "Shared-mails-v2"
