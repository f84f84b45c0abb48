"""Experiment trackers of a run: what a recipe asks for, and what its plan holds.

Credentials are in neither: they are read from the environment of the process that delivers.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from luthier.core.frozen_model import FrozenModel
from luthier.core.registry import TRACKERS

TrackerName = Annotated[str, AfterValidator(TRACKERS.validated), Field(json_schema_extra=TRACKERS.add_names)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Location = Annotated[str, Field(min_length=1, max_length=2048)]


class TrackerRecipe(FrozenModel):
    """An experiment tracker that a run is reported to. A name alone, `tracking: [mlflow]`, leaves the rest to defaults.

    Attributes:
        name: the tracker.
        project: the project there; the experiment in MLflow. None: from the environment, else `luthier`.
        run_name: what the run is called there; None for its id.
        entity: wandb: the user or team that the project belongs to.
        tags: tags of the run there.
        location: the address of its server, or a folder of this machine; None: from the environment, else the tracker's
            default.
        artifacts: whether the report and the weights are uploaded. None uploads the report and adapters, and leaves out
            the weights of a whole model.
        registered_model: mlflow: the name in its model registry; None for the name of the project.
    """

    name: TrackerName
    project: Text | None = None
    run_name: Text | None = None
    entity: Text | None = None
    tags: Annotated[tuple[Text, ...], Field(max_length=50)] | None = None
    location: Location | None = None
    artifacts: bool | None = None
    registered_model: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        # What passes through here counts as Python's own, where strict means no list for a tuple, even in JSON.
        if isinstance(given, dict) and isinstance(given.get("tags"), list):
            return {**given, "tags": tuple(given["tags"])}
        return given

    @field_validator("location")
    @classmethod
    def _holds_no_secret(cls, location: str | None) -> str | None:
        if location is not None and location != without_credentials(location):
            raise ValueError("an address without user, password and query: credentials are read from the environment")
        return location


def _each_once(trackers: tuple[TrackerRecipe, ...]) -> tuple[TrackerRecipe, ...]:
    names = [one.name for one in trackers]
    if len({*names}) < len(names):
        raise ValueError("each tracker once")
    return trackers


Tracking = Annotated[tuple[TrackerRecipe, ...], AfterValidator(_each_once)]
"""The `tracking` of a recipe; an empty list reports to none, whatever the environment says."""


class TrackerPlan(FrozenModel):
    """A tracker with all of its settings, short of credentials.

    Attributes:
        name: the tracker.
        project: the project or experiment there.
        run_name: what the run is called there; None for its id.
        entity: the user or team that the project belongs to; None for the default of the credentials.
        tags: tags of the run there.
        location: the server or folder; None for the tracker's own default.
        artifacts: as in the recipe.
        registered_model: the name in the model registry; None for none.
        source: the environment variable that chose the tracker; empty where the recipe did.
    """

    name: str
    project: str
    run_name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()
    location: str | None = None
    artifacts: bool | None = None
    registered_model: str | None = None
    source: str = ""

    @property
    def summary(self) -> str:
        """As a line of the plan has it: `mlflow: luthier at http://localhost:5000`; folders are not named."""
        owner = f"{self.entity}/" if self.entity else ""
        place = f" at {self.location}" if is_address(self.location) else ""
        return f"{self.name}: {owner}{self.project}{place}"


def is_address(location: str | None) -> bool:
    """Whether it is the address of a server, which others may see; folders and databases are of this machine."""
    return location is not None and location.startswith(("http://", "https://"))


def hide_folders(plan: dict[str, Any]) -> None:
    """Take folders and databases of this machine out of the trackers in the document of a plan."""
    for one in (*plan["tracking"], *(plan["recipe"]["tracking"] or ())):
        one["location"] = one["location"] if is_address(one["location"]) else None


def without_credentials(location: str) -> str:
    """An address without user, password, query and fragment; anything that is no address as it is."""
    parts = urlsplit(location)
    if not parts.netloc:
        return location
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
