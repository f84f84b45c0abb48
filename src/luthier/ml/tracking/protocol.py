"""What an experiment tracker is: its declaration, what it is given of a run, and what it has to do.

A tracker is used by one thread in a separate process, so that one that is slow, hangs or ends its process delays no
training. Everything may be called again after a kill: what is delivered twice must not show twice where the tracker can
tell, and `TrackedRun.tracker_run_id` leads back to the run that it has begun.
"""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from luthier.core.errors import RequestError
from luthier.core.run import RunStatus
from luthier.core.system.extras import command_for
from luthier.core.tracking import TrackerPlan

Parameter = bool | int | float | str
_NOT_IN_A_FOLDER: Final = re.compile(r"[^A-Za-z0-9 ._-]+")
_MAX_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class TrackerRules:
    """The declaration of a tracker.

    Attributes:
        title: Display name.
        summary: What it is, in a few words.
        implementation: "module:Class" of a `Tracker`; empty for a plug-in, whose class has these rules.
        modules: Modules required.
        install: The argument of `pip install` for them.
        chosen_by: Environment variables that choose it where the recipe has no `tracking`.
        project_variable: The environment variable of the project; empty for none.
        entity_variable: The same of the entity.
        location_variable: The same of its server or folder.
        default_location: Where it stores runs without a location, with `{home}` for the home; empty leaves it to the
            tracker.
        disabled_by: Values of environment variables that turn it off, where the recipe does not ask for it.
        credentials: Environment variables of which one has to be set to reach its server; empty for none.
        offline: Values of environment variables with which no credentials are needed.
        has_registry: Whether it has a registry of models.
    """

    title: str
    summary: str
    implementation: str = ""
    modules: tuple[str, ...] = ()
    install: str = ""
    chosen_by: tuple[str, ...] = ()
    project_variable: str = ""
    entity_variable: str = ""
    location_variable: str = ""
    default_location: str = ""
    disabled_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    credentials: tuple[str, ...] = ()
    offline: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_registry: bool = False

    def missing(self) -> list[str]:
        """The required modules that are not installed."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]

    def check_installed(self, name: str) -> None:
        """Raise RequestError if a module is missing.

        Args:
            name: Of the tracker.
        """
        if missing := self.missing():
            raise RequestError(
                f"tracking by {name} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                "installed",
                expected=f"the packages of {self.title}",
                do=f"{command_for(self.install)}, or take {name} out of `tracking`",
            )


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker knows of a run when it begins.

    Attributes:
        run_id: Of the run.
        plan: The tracker's settings.
        parameters: Values of the plan and of what was asked for, by dotted name.
        plan_hash: Of the plan.
        base_model: Its name.
        created_at: When the run was made, in seconds since 1970.
        folder: For files of the tracker, in the folder of the run.
        tracker_run_id: What `begin` has returned before; empty the first time.
        number: Which of its runs in the tracker it is, from 1 on: another one after `--from-start`.
        location: As in the plan, or the same address with credentials from the environment; None for the default.
    """

    run_id: str
    plan: TrackerPlan
    parameters: Mapping[str, Parameter]
    plan_hash: str
    base_model: str
    created_at: float
    folder: Path
    tracker_run_id: str = ""
    number: int = 1
    location: str | None = None

    @property
    def key(self) -> str:
        """Names the run in the tracker and no other one: the id of our run, with a number from the second on."""
        return self.run_id if self.number == 1 else f"{self.run_id}-{self.number}"

    @property
    def name(self) -> str:
        """What the run is called; several may be called the same."""
        name = self.plan.run_name
        return self.key if name is None else name if self.number == 1 else f"{name} ({self.number})"

    @property
    def unique_name(self) -> str:
        """A name where names are folders or ids: its key, behind its name where a recipe gives it one.

        A name comes from whoever starts the run: it must lead neither out of a folder nor into another run.
        """
        return self.key if self.plan.run_name is None else f"{_part_of_path(self.plan.run_name)}-{self.key}".lstrip("-")

    @property
    def folder_project(self) -> str:
        """The project where projects are folders or files: it comes from whoever starts the run, too."""
        return _part_of_path(self.plan.project) or "luthier"

    @property
    def tags(self) -> dict[str, str]:
        """Tags that every tracker gets as far as it has them."""
        return {"luthier.run_id": self.run_id, "luthier.plan_hash": self.plan_hash, "base_model": self.base_model}


def _part_of_path(name: str) -> str:
    """A name as a part of a path, which leads neither up nor down."""
    return _NOT_IN_A_FOLDER.sub("_", name).strip(" .")[:_MAX_NAME]


@dataclass(frozen=True, slots=True)
class RemoteRun:
    """The run in the tracker. url: a page or a folder of it; empty for none."""

    tracker_run_id: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """Figures of one step.

    Attributes:
        step: The optimizer update that they belong to.
        at: Seconds since 1970.
        values: By name, such as `train/loss`.
    """

    step: int
    at: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TextModel:
    """A trained model that writes text, as far as a model registry has to know it.

    Attributes:
        folder: Its files: an adapter, or a whole model.
        template: How prompts are written.
    """

    folder: Path
    template: str


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended, or where it paused.

    Attributes:
        status: Of the run.
        reason: Why it ended, as text.
        step: The last step.
        summary: Figures of the result and its evaluation, by name.
        texts: Findings as text, by name: the verdict, warnings.
        report: The page of the report; None where there is none.
        weights: The folder of the trained weights; None where there are none, or they are not to be uploaded.
        model: The model in that folder, where it writes text.
    """

    status: RunStatus
    reason: str
    step: int
    summary: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    report: Path | None = None
    weights: Path | None = None
    model: TextModel | None = None


class Tracker(ABC):
    """One tracker in one process. A plug-in is a subclass with `rules`, made without arguments."""

    rules: ClassVar[TrackerRules]

    @abstractmethod
    def begin(self, run: TrackedRun) -> RemoteRun:
        """Begin a run, or continue the one that `run.tracker_run_id` names; parameters are there afterwards."""

    @abstractmethod
    def log(self, points: Sequence[Point]) -> None:
        """Store figures, in order of steps; returns once the tracker has them, or has them on the disk."""

    @abstractmethod
    def end(self, outcome: RunOutcome) -> list[str]:
        """Store outcome and files, and close the run; returns what a person should know."""

    def close(self) -> None:
        """Release connections; called after an error, too."""
        return
