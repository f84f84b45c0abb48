"""MLflow: parameters, metrics, artifacts and a registered model, by its client; no active run, nothing automatic."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from luthier.core.errors import NotFoundError
from luthier.ml.tracking.figures import metric_name
from luthier.ml.tracking.protocol import Point, RemoteRun, RunOutcome, TextModel, TrackedRun, Tracker, TrackerRules
from luthier.ml.tracking.registry import TRACKERS

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_METRICS: Final = 1000
_MAX_PARAMETERS: Final = 100
"""What a server takes in one request."""
_MAX_TAG: Final = 5000
_STATUSES: Final = {"succeeded": "FINISHED", "failed": "FAILED", "paused": "SCHEDULED"}
"""A paused run is to be continued, which is what MLflow calls scheduled."""
_KEY: Final = "luthier.key"
_NOT_IN_A_MODEL: Final = re.compile(r"\s*[/:]+\s*")
LOADER: Final = "luthier.ml.tracking.mlflow_model"
Item = TypeVar("Item")


class MLflow(Tracker):
    """An MLflow run; its id is kept, so that a resumed training continues it."""

    rules: ClassVar[TrackerRules] = TRACKERS["mlflow"]

    def __init__(self) -> None:
        self._client: MlflowClient
        self._run: TrackedRun
        self._id = ""

    def begin(self, run: TrackedRun) -> RemoteRun:
        """Find or make experiment and run, and store the parameters."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # MLflow waits for hours in all with its own retries; ours are between deliveries.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._run, self._client = run, MlflowClient(tracking_uri=run.location)
        experiment_id = self._experiment(run.plan.project)
        if run.tracker_run_id:
            self._id = run.tracker_run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            # A run that was begun by a delivery that was killed before it could note the id.
            self._id = self._begun(experiment_id) or self._created(experiment_id)
        known = self._client.get_run(self._id).data.params
        now = {name: str(value) for name, value in run.parameters.items()}
        for some in _chunks([Param(name, value) for name, value in now.items() if name not in known], _MAX_PARAMETERS):
            self._client.log_batch(self._id, params=some)
        for name, value in now.items():
            # MLflow refuses another value of a parameter, and takes one of a tag: a run that was resumed with a larger
            # budget continues with both.
            if known.get(name, value) != value:
                self._client.set_tag(self._id, f"luthier.{name}", value)
        return RemoteRun(self._id, self._url(experiment_id))

    def log(self, points: Sequence[Point]) -> None:
        """Send metrics with step and time."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(point.at * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for some in _chunks(metrics, _MAX_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def end(self, outcome: RunOutcome) -> list[str]:
        """Store figures, texts, report and model, register the model, and set the status."""
        import time

        self.log([Point(outcome.step, time.time(), outcome.summary)])
        for name, text in {"reason": outcome.reason, **outcome.texts}.items():
            self._client.set_tag(self._id, f"luthier.{name}", text[:_MAX_TAG])
        if outcome.report is not None:
            self._client.log_artifact(self._id, str(outcome.report), "report")
        notes = []
        registered = self._model_name()
        if outcome.model is not None:
            self._log_model(outcome.model, registered)
            if registered is not None and registered != self._run.plan.registered_model:
                notes.append(f"the model is registered as {registered}: MLflow takes neither / nor : in such a name")
        elif outcome.weights is not None:
            self._client.log_artifacts(self._id, str(outcome.weights), "weights")
            notes.append("the weights are stored as files and not registered: its registry gets models that write text")
        self._client.set_terminated(self._id, status=_STATUSES.get(outcome.status, "RUNNING"))
        return notes

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name, artifact_location=self._artifacts()))
        if found.lifecycle_stage == "deleted":
            raise NotFoundError(
                f"the experiment {name!r} was deleted in MLflow",
                expected="an experiment that is there",
                do="restore it there, or name another one as the project of `tracking`",
            )
        return str(found.experiment_id)

    def _artifacts(self) -> str | None:
        """Beside a database in a file, since MLflow would take the current folder; a server decides itself."""
        uri = str(self._client.tracking_uri)
        if not uri.startswith("sqlite:///"):
            return None
        return str(Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts")

    def _begun(self, experiment_id: str) -> str:
        same = f"tags.`{_KEY}` = '{self._run.key}'"
        found = self._client.search_runs([experiment_id], filter_string=same, max_results=1)
        return str(found[0].info.run_id) if found else ""

    def _created(self, experiment_id: str) -> str:
        run = self._run
        own = {"mlflow.source.name": "luthier", _KEY: run.key}
        # A tag that nothing is left of has no letter in it.
        chosen = dict.fromkeys(filter(None, map(metric_name, run.plan.tags)), "true")
        tags = run.tags | chosen | own
        began = int(run.created_at * 1000)
        made = self._client.create_run(experiment_id, start_time=began, run_name=run.name, tags=tags)
        return str(made.info.run_id)

    def _url(self, experiment_id: str) -> str:
        from luthier.core.tracking import without_credentials

        server = without_credentials(self._client.tracking_uri).rstrip("/")
        return f"{server}/#/experiments/{experiment_id}/runs/{self._id}" if server.startswith("http") else server

    def _model_name(self) -> str | None:
        """What the model is registered as; None for not at all. Experiments may be called like paths, models not."""
        name = self._run.plan.registered_model
        return None if name is None else "-".join(filter(None, _NOT_IN_A_MODEL.split(name))).strip(".") or "luthier"

    def _log_model(self, model: TextModel, name: str | None) -> None:
        """Log the weights as a pyfunc model with signature, and register it."""
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

        if self._is_registered():
            return
        mlflow.set_tracking_uri(self._client.tracking_uri)
        mlflow.set_experiment(self._run.plan.project)
        signature = ModelSignature(
            inputs=Schema([ColSpec(DataType.string, "prompt")]),
            outputs=Schema([ColSpec(DataType.string, "answer")]),
            params=ParamSchema([ParamSpec("max_new_tokens", DataType.integer, 256)]),
        )
        with mlflow.start_run(run_id=self._id):
            mlflow.pyfunc.log_model(
                name="model",
                loader_module=LOADER,
                data_path=str(model.folder),
                signature=signature,
                # Not the folder of the base: the adapter's own config names it.
                model_config={"template": model.template},
                # Named, not inferred: inferring loads the model in its own process.
                pip_requirements=["luthier"],
                registered_model_name=name,
                metadata={"luthier.run_id": self._run.run_id, "luthier.plan_hash": self._run.plan_hash},
                tags={"luthier.run_id": self._run.run_id},
            )

    def _is_registered(self) -> bool:
        """Whether a delivery before this one has registered the model."""
        name = self._model_name()
        if name is None:
            return False
        versions = self._client.search_model_versions(f"run_id = '{self._id}'")
        return any(one.name == name for one in versions)


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    starts: Iterable[int] = range(0, len(items), size)
    return (items[start : start + size] for start in starts)
