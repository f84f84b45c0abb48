"""The trackers, and those that a run is reported to: of its recipe, else of the environment.

A package adds a tracker by the entry point group `luthier.trackers`, which names a `Tracker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from luthier.core.access import DEFAULT_PROJECT as LUTHIER_DEFAULT
from luthier.core.import_string import import_string
from luthier.core.plan import ValueSource
from luthier.core.registry import TRACKERS as REGISTRY
from luthier.core.system.files import expanded
from luthier.core.tracking import TrackerPlan, TrackerRecipe, without_credentials
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
        summary="experiments on wandb.ai or on your own server; offline without a network",
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
        summary="experiments in files on this machine, on your own server or in a Space of Hugging Face",
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


DEFAULT_PROJECT: Final = "luthier"
_PROJECT_ID: Final = "proj-"


def chosen(asked: Sequence[TrackerRecipe] | None, environment: Mapping[str, str]) -> tuple[TrackerPlan, ...]:
    """The trackers with their settings: an explicit recipe wins over the environment, value by value.

    Args:
        asked: The `tracking` of the recipe; None takes the trackers whose variables are set, an empty list none.
        environment: Of this process.
    """
    if asked is not None:
        return tuple(_settings(one, REGISTRY.declaration(one.name), environment) for one in asked)
    found = []
    for name, rules in REGISTRY.declarations().items():
        variable = next((one for one in rules.chosen_by if environment.get(one)), None)
        if variable is not None and not _is_disabled(rules, environment):
            settings = _settings(TrackerRecipe(name=name), rules, environment)
            found.append(settings.model_copy(update={"source": variable}))
    return tuple(found)


def source_of(trackers: Sequence[TrackerPlan], left_out: Sequence[str] = ()) -> ValueSource:
    """Where the choice comes from, for the plan.

    Args:
        trackers: The trackers of the plan.
        left_out: Why the environment's other trackers are not used.
    """
    variables = [one.source for one in trackers if one.source]
    if not variables and not left_out:
        return ValueSource(source="asked", why="in the recipe; changes nothing that is trained")
    set_here = f"{' and '.join(variables)} {'is' if len(variables) == 1 else 'are'} set in the environment"
    said = [*([set_here] if variables else []), *left_out, "`tracking: []` in the recipe turns it off"]
    return ValueSource(source="derived", why="; ".join(said))


def location_of(plan: TrackerPlan, environment: Mapping[str, str]) -> str | None:
    """The address of the plan, with the credentials that the environment has for the same address.

    Plans are stored and shown, so they hold none.
    """
    rules: TrackerRules = REGISTRY.declaration(plan.name)
    given = environment.get(rules.location_variable) if rules.location_variable else None
    return given if given and without_credentials(given) == plan.location else plan.location


_SERVERS: Final = ("databricks", "databricks-uc", "uc")
"""Servers that MLflow knows by a word."""
_SQLITE: Final = "sqlite:///"


def absolute_location(location: str | None, folder: Path) -> str | None:
    """A location that means the same from every folder: an address as it is, a folder or file of a database absolute.

    Args:
        location: of a tracker; None for its default.
        folder: where relative ones count from.
    """
    file = (location or "").removeprefix(_SQLITE)
    if file and file != location and not file.startswith(":"):
        return f"{_SQLITE}{folder / file}"
    if location is None or ":" in location or location in _SERVERS:
        return location
    return str(folder / expanded(location))


def within_project(plan: TrackerPlan, project_id: str) -> TrackerPlan:
    """The tracker with names that no other project of the home has: its runs share the account of the server.

    The names of the project `default` stay as they are, unless they look like those of another project.

    Args:
        plan: The tracker of a run.
        project_id: The project of the run.
    """

    def own(name: str | None) -> str | None:
        is_plain = project_id == LUTHIER_DEFAULT and name is not None and not name.startswith(_PROJECT_ID)
        prefix = f"{project_id}-"
        return name if name is None or is_plain or name.startswith(prefix) else f"{prefix}{name}"

    return plan.model_copy(update={"project": own(plan.project), "registered_model": own(plan.registered_model)})


def lacks_credentials(rules: TrackerRules, environment: Mapping[str, str]) -> bool:
    """Whether the environment has neither credentials for the tracker nor says that it works offline."""
    if any(environment.get(name, "").lower() in values for name, values in rules.offline.items()):
        return False
    return bool(rules.credentials) and not any(environment.get(name) for name in rules.credentials)


def _settings(asked: TrackerRecipe, rules: TrackerRules, environment: Mapping[str, str]) -> TrackerPlan:
    def given(variable: str) -> str | None:
        # A variable that is set to nothing counts as unset.
        return (environment.get(variable) or None) if variable else None

    project = asked.project or given(rules.project_variable) or DEFAULT_PROJECT
    location = asked.location or given(rules.location_variable)
    return TrackerPlan(
        name=asked.name,
        project=project,
        run_name=asked.run_name,
        entity=asked.entity or given(rules.entity_variable),
        tags=asked.tags or (),
        location=None if location is None else without_credentials(location),
        artifacts=asked.artifacts,
        registered_model=(asked.registered_model or project) if rules.has_registry else None,
    )


def _is_disabled(rules: TrackerRules, environment: Mapping[str, str]) -> bool:
    return any(environment.get(name, "").lower() in values for name, values in rules.disabled_by.items())
