"""The trackers. A package adds one by the entry point group `luthier.trackers`, which names a `Tracker`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from luthier.core.import_string import import_string
from luthier.core.registry import TRACKERS as REGISTRY
from luthier.ml.tracking.protocol import Tracker, TrackerRules

TRACKERS: Final[Mapping[str, TrackerRules]] = {
    "tensorboard": TrackerRules(
        title="TensorBoard",
        summary="curves from files of this machine",
        implementation="luthier.ml.tracking.tensorboard:TensorBoard",
        modules=("tensorboard",),
        install="luthier[tensorboard]",
        chosen_by=("TENSORBOARD_LOGGING_DIR",),
        location_variable="TENSORBOARD_LOGGING_DIR",
    ),
    "mlflow": TrackerRules(
        title="MLflow",
        summary="experiments and a model registry, on a server or in a database",
        implementation="luthier.ml.tracking.mlflow_client:MLflow",
        modules=("mlflow",),
        install="luthier[mlflow]",
        chosen_by=("MLFLOW_TRACKING_URI",),
        project_variable="MLFLOW_EXPERIMENT_NAME",
        location_variable="MLFLOW_TRACKING_URI",
        # Its own default is the current folder, which differs from command to command.
        default_location="sqlite:///{home}/mlflow.db",
        has_registry=True,
    ),
    "wandb": TrackerRules(
        title="Weights & Biases",
        summary="experiments on wandb.ai or a server of one's own; offline without a network",
        implementation="luthier.ml.tracking.wandb_client:WeightsAndBiases",
        modules=("wandb",),
        install="luthier[wandb]",
        chosen_by=("WANDB_PROJECT",),
        project_variable="WANDB_PROJECT",
        entity_variable="WANDB_ENTITY",
        location_variable="WANDB_BASE_URL",
        disabled_by={"WANDB_MODE": ("disabled",), "WANDB_DISABLED": ("true", "1", "yes")},
        credentials=("WANDB_API_KEY",),
        offline={"WANDB_MODE": ("offline", "dryrun")},
    ),
    "trackio": TrackerRules(
        title="Trackio",
        summary="experiments in files of this machine, on a server of one's own or a Space of Hugging Face",
        implementation="luthier.ml.tracking.trackio_client:Trackio",
        modules=("trackio",),
        install="luthier[trackio]",
        chosen_by=("TRACKIO_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
        project_variable="TRACKIO_PROJECT",
        location_variable="TRACKIO_SERVER_URL",
    ),
}
"""The trackers that come with Luthier, by name."""


def make_tracker(name: str) -> Tracker:
    """A tracker by its name, not begun.

    Raises:
        RequestError: Its package is not installed.
        NotFoundError: There is no such tracker.
    """
    rules: TrackerRules = REGISTRY.declaration(name)
    rules.check_installed(name)
    made = import_string(rules.implementation) if rules.implementation else REGISTRY.load(name)
    found: Tracker = made()
    return found
