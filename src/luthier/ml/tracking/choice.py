"""Which trackers a run is reported to: those of its recipe, else those that the environment names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from luthier.core.access import DEFAULT_PROJECT as LUTHIER_DEFAULT
from luthier.core.plan import ValueSource
from luthier.core.registry import TRACKERS
from luthier.core.tracking import TrackerPlan, TrackerRecipe, without_credentials
from luthier.ml.tracking.protocol import TrackerRules

DEFAULT_PROJECT: Final = "luthier"
_PROJECT_ID: Final = "proj-"


def chosen(asked: Sequence[TrackerRecipe] | None, environment: Mapping[str, str]) -> tuple[TrackerPlan, ...]:
    """The trackers with their settings: an explicit recipe wins over the environment, value by value.

    Args:
        asked: The `tracking` of the recipe; None takes the trackers whose variables are set, an empty list none.
        environment: Of this process.
    """
    if asked is not None:
        return tuple(_settings(one, TRACKERS.declaration(one.name), environment) for one in asked)
    found = []
    for name, rules in TRACKERS.declarations().items():
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
    rules: TrackerRules = TRACKERS.declaration(plan.name)
    given = environment.get(rules.location_variable) if rules.location_variable else None
    return given if given and without_credentials(given) == plan.location else plan.location


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
