"""Registries of things by name: metrics, methods, objectives, optimizers and checks, ours and those of plug-ins.

A registry names its table by a string, so that recipes can be checked here against what libraries above declare; the
tables import nothing heavy. Plug-ins are the entry points of installed packages, and those that this process has
registered itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import PydanticCustomError

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.import_string import import_string

if TYPE_CHECKING:
    from pydantic import ValidationInfo

_OUR_GROUPS: Final = "luthier."
_REGISTERED: Final[dict[tuple[str, str], EntryPoint]] = {}
"""What `register` was given in this process, by group and name."""
STORED: Final = MappingProxyType({"is_stored": True})
"""The pydantic context of documents that Luthier has written: plans, recipes, studies.

A name in them may be of a plug-in that this process does not have: its package was removed, or a script registered it
and has ended. Such a run can still be shown, served and exported; what needs the plug-in itself says so by loading it.
"""


def entry_points(group: str) -> list[EntryPoint]:
    """The plug-ins of a group; one that this process has registered hides an installed one of its name.

    Args:
        group: an entry point group, such as `luthier.metrics`.
    """
    # Registered after the installed ones: in a notebook the class that is being written has to win.
    own = {name: entry for (of, name), entry in _REGISTERED.items() if of == group}
    return [*(entry for entry in _installed().get(group, ()) if entry.name not in own), *own.values()]


@cache
def _installed() -> dict[str, tuple[EntryPoint, ...]]:
    """Those of packages, by group."""
    # Reads the metadata of every installed package: tens of milliseconds for one group or all. A training looks into
    # six groups, and at metrics at every turn.
    found = metadata.entry_points()
    return {group: tuple(found.select(group=group)) for group in found.groups if group.startswith(_OUR_GROUPS)}


def register(group: str, plug_in: type) -> None:
    """Make a class known under its `name` until this process ends, as an installed package does by an entry point.

    Args:
        group: an entry point group, such as `luthier.metrics`.
        plug_in: a class on the top level of a module, with its name in an attribute `name`. The same name again
            replaces what was registered, as when a cell of a notebook runs twice.

    Raises:
        RequestError: it has no name, or is not on the top level of a module, from where it is loaded.
    """
    name = getattr(plug_in, "name", None)
    place = f"{plug_in.__module__}:{plug_in.__qualname__}"
    if not isinstance(name, str) or not name.isidentifier():
        raise RequestError(
            f"{place} has name {name!r}",
            expected="an attribute `name`: letters, digits and underscores, such as recipes use",
            do=f"add one to the class, such as name = {plug_in.__name__.lower()!r}",
        )
    if "." in plug_in.__qualname__:
        raise RequestError(
            f"{place} is defined inside a function or another class",
            expected="a class on the top level of a module, from where it is loaded by its name",
            do="move it there",
        )
    _REGISTERED[group, name] = EntryPoint(name, place, group)


@dataclass(frozen=True, slots=True)
class Registry:
    """One kind of thing.

    Attributes:
        kind: What one is called, with its article: "a metric".
        group: The group of entry points for those of other packages.
        table: "module:NAME" of a mapping from the names of ours to their declarations.
        declares: "module:Class" of a declaration; a plug-in has one in its attribute `rules`, or is one.
        key: Where users name one: a recipe key or an option.
    """

    kind: str
    group: str
    table: str
    declares: str
    key: str

    @property
    def noun(self) -> str:
        """`kind` without its article."""
        return self.kind.partition(" ")[2]

    @property
    def built_in(self) -> Mapping[str, Any]:
        """The table of ours, in its order."""
        found: Mapping[str, Any] = import_string(self.table)
        return found

    def plug_ins(self) -> dict[str, EntryPoint]:
        """The entry points of other packages, sorted by name; none takes the place of one of ours."""
        found = {entry.name: entry for entry in entry_points(self.group)}
        # Ours win: installing a package must not change what a recipe means. Sorted, since the order of packages is
        # arbitrary.
        return {name: found[name] for name in sorted(found) if name not in self.built_in}

    def names(self) -> tuple[str, ...]:
        """All names: ours in the order of the table, then those of plug-ins."""
        return (*self.built_in, *self.plug_ins())

    def is_known(self, name: str) -> bool:
        """Whether a name is in the table or brought by a plug-in."""
        return name in self.built_in or name in self.plug_ins()

    def validated(self, name: str, info: ValidationInfo) -> str:
        """The name, for a field of a pydantic model.

        Args:
            name: As it was given.
            info: With the context `STORED` any name is valid.

        Raises:
            PydanticCustomError: The name is unknown; the context lists all known ones.
        """
        if info.context is not STORED and not self.is_known(name):
            # The type that pydantic gives for a Literal, so that one handler formats both kinds of error.
            raise PydanticCustomError("literal_error", f"not {self.kind}", {"expected": ", ".join(self.names())})
        return name

    def add_names(self, schema: dict[str, Any]) -> None:
        """Add all names to the JSON Schema of a field."""
        schema["enum"] = list(self.names())

    def plug_in(self, name: str) -> EntryPoint:
        """The entry point of a name that is not one of ours.

        Raises:
            NotFoundError: No package brings it.
        """
        found = self.plug_ins().get(name)
        if found is None:
            raise NotFoundError(
                f"{self.noun} {name!r}",
                expected=f"one of {', '.join(self.names())}",
                do=f"correct {self.key}, or install the package that contains it (entry point group {self.group})",
            )
        return found

    def load(self, name: str) -> Any:
        """The object that a plug-in's entry point names.

        Raises:
            NotFoundError: No package brings the name, or its module or declaration is broken.
        """
        entry = self.plug_in(name)
        try:
            # Code of another package: it may raise anything.
            return entry.load()
        except Exception as error:
            raise NotFoundError(
                f"{self.noun} {name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}",
                expected="a module that imports, and a declaration with every field that has no default",
                do="ask the author of the package that provides it, or remove the package",
            ) from error

    def declaration(self, name: str) -> Any:
        """What is declared under a name, of the class that `declares` names.

        Raises:
            NotFoundError: The name is unknown, or the plug-in declares nothing of that class.
        """
        if name in self.built_in:
            return self.built_in[name]
        loaded, kind = self.load(name), import_string(self.declares)
        found = loaded if isinstance(loaded, kind) else getattr(loaded, "rules", None)
        if isinstance(found, kind):
            return found
        raise NotFoundError(
            f"{self.noun} {name!r} ({self.plug_in(name).value}) has rules={found!r}",
            expected=f"an attribute `rules` of type {self.declares.replace(':', '.')}, or such an object itself",
            do="ask the author of the package that provides it",
        )

    def find(self, name: str) -> Any | None:
        """What is declared under a name; None where it is unknown or cannot be loaded."""
        with suppress(NotFoundError):
            return self.declaration(name)
        return None

    def declarations(self) -> dict[str, Any]:
        """All declarations by name, without plug-ins that cannot be loaded: those are refused where they are named."""
        found = dict(self.built_in)
        for name in self.plug_ins():
            with suppress(NotFoundError):
                found[name] = self.declaration(name)
        return found


PAGES: Final = Registry(
    kind="a page",
    group="luthier.pages",
    table="luthier.server.pages:PAGES",
    declares="luthier.platform.ui.render:Page",
    key="the address",
)
METRICS: Final = Registry(
    kind="a metric",
    group="luthier.metrics",
    table="luthier.ml.evaluation.metrics.registry:RECIPE_NAMES",
    declares="luthier.ml.evaluation.metrics.protocol:MetricDefinition",
    key="evaluation.metrics",
)
REWARD_METRICS: Final = Registry(
    kind="a metric of single answers",
    group="luthier.metrics",
    table="luthier.ml.evaluation.metrics.registry:REWARD_NAMES",
    declares="luthier.ml.evaluation.metrics.protocol:MetricDefinition",
    key="objective.rewards",
)
METHODS: Final = Registry(
    kind="a method",
    group="luthier.methods",
    table="luthier.ml.training.methods.rules:RULES",
    declares="luthier.ml.training.methods.rules:MethodRules",
    key="method.name",
)
OBJECTIVES: Final = Registry(
    kind="an objective",
    group="luthier.objectives",
    table="luthier.ml.training.objectives.rules:RULES",
    declares="luthier.ml.training.objectives.rules:ObjectiveRules",
    key="objective.name",
)
CHECKS: Final = Registry(
    kind="a check",
    group="luthier.checks",
    table="luthier.ml.data.audit.run:BUILT_IN",
    declares="luthier.ml.data.audit.base:Check",
    key="the id",
)
EXPORTERS: Final = Registry(
    kind="an export format",
    group="luthier.exporters",
    table="luthier.ml.export.exporters.registry:FORMATS",
    declares="luthier.ml.export.exporters.registry:Format",
    key="--to",
)
OPTIMIZERS: Final = Registry(
    kind="an optimizer",
    group="luthier.optimizers",
    table="luthier.ml.training.optimizers.rules:RULES",
    declares="luthier.ml.training.optimizers.rules:OptimizerRules",
    key="training.optimizer",
)
TRACKERS: Final = Registry(
    kind="a tracker",
    group="luthier.trackers",
    table="luthier.ml.tracking.registry:TRACKERS",
    declares="luthier.ml.tracking.protocol:TrackerRules",
    key="tracking",
)
