"""Where other tools report a run to, as the `tracking` of a recipe.

Only what a file says is translated: where it names none, a recipe has no `tracking`, and the environment decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.tracking import without_credentials
from luthier.features.recipes.imports.translation import Key, Translation, becomes

PLACE: Final = "tracking"
KNOWN: Final = ("tensorboard", "mlflow", "wandb", "trackio")
"""Trackers that have the same name here."""
_ENVIRONMENT: Final = "no tracker is named in this file: the environment names them (docs/trackers.md)"
_OFF: Final = "its tracker is off in this file"

HF_KEYS: Final[dict[str, Key]] = {
    "report_to": becomes(PLACE, note=f"{', '.join(KNOWN)}; none: []; all: those of the environment; others have no "
                                     "counterpart"),
    "run_name": becomes(PLACE, note="the name of the run in each tracker"),
    "project": becomes(PLACE, note="the project of trackio"),
    "logging_dir": becomes(PLACE, note="the folder of tensorboard"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Switch:
    """A tracker of axolotl: its switch, the key that turns it on, too, and its settings by our names."""

    name: str
    switch: str
    first: str
    fields: Mapping[str, str]


_AXOLOTL: Final = (
    _Switch("wandb", "use_wandb", "wandb_project", {
        "project": "wandb_project", "entity": "wandb_entity", "run_name": "wandb_name", "artifacts": "wandb_log_model",
    }),
    _Switch("mlflow", "use_mlflow", "mlflow_experiment_name", {
        "project": "mlflow_experiment_name", "run_name": "mlflow_run_name", "location": "mlflow_tracking_uri",
        "artifacts": "hf_mlflow_log_artifacts",
    }),
    _Switch("trackio", "use_trackio", "trackio_project_name", {
        "project": "trackio_project_name", "run_name": "trackio_run_name",
    }),
    _Switch("tensorboard", "use_tensorboard", "use_tensorboard", {}),
)  # fmt: skip
AXOLOTL_KEYS: Final[dict[str, Key]] = {
    **{one.switch: becomes(PLACE, note=f"true: {one.name}") for one in _AXOLOTL},
    **{
        key: becomes(PLACE, note=f"{field} of {one.name}" + (", which it turns on" if key == one.first else ""))
        for one in _AXOLOTL
        for field, key in one.fields.items()
    },
    "wandb_mode": becomes(PLACE, note="disabled: no wandb; offline: set WANDB_MODE=offline"),
}


def put_reports(t: Translation, prefix: str = "") -> None:
    """Translate `report_to` and what belongs to it.

    Args:
        t: The translation, with the keys of the file.
        prefix: Of the section that holds the arguments.
    """
    key = f"{prefix}report_to"
    asked = t.take(key)
    values = {name: t.take(f"{prefix}{name}") for name in ("run_name", "project", "logging_dir")}
    names = [str(one).lower() for one in (asked if isinstance(asked, list) else [asked])] if asked is not None else []
    found = [name for name in KNOWN if name in names]
    others = [name for name in names if name not in KNOWN and name != "none"]
    if "all" in names or (others and not found):
        t.same(key, "all: the trackers that the environment names" if "all" in names else _no_counterpart(others))
        asked = None
    used = {"run_name": bool(found), "project": "trackio" in found, "logging_dir": "tensorboard" in found}
    for name, is_used in used.items():
        if asked is None or not is_used:
            t.same(f"{prefix}{name}", _ENVIRONMENT if asked is None else _OFF)
    if asked is None:
        return
    tracking = [
        _plain(
            name,
            run_name=values["run_name"],
            project=values["project"] if name == "trackio" else None,
            location=values["logging_dir"] if name == "tensorboard" else None,
        )
        for name in found
    ]
    keys = [f"{prefix}{name}" for name, is_used in used.items() if is_used and values[name] is not None]
    t.put(PLACE, tracking, key, *keys, note=_no_counterpart(others) if others else "")


def put_axolotl(t: Translation) -> None:
    """Translate the trackers of axolotl."""
    mode = str(t.take("wandb_mode") or "").lower()
    tracking, keys = [], []
    for one in _AXOLOTL:
        values = {field: t.take(key) for field, key in one.fields.items()}
        is_on = bool(t.take(one.switch)) or bool(t.take(one.first))
        own = [one.switch, *one.fields.values()]
        if not is_on or (one.name == "wandb" and mode == "disabled"):
            _same(t, own, _OFF)
            continue
        if "artifacts" in values:
            values["artifacts"] = _is_uploaded(values["artifacts"])
        if isinstance(values.get("location"), str):
            values["location"] = without_credentials(values["location"])
        tracking.append(_plain(one.name, **values))
        keys += [key for key in own if t.has(key)]
    if tracking:
        t.put(PLACE, tracking, *keys, note="credentials are read from the environment")
    is_offline = mode in ("offline", "dryrun")
    _same(t, ["wandb_mode"], "set WANDB_MODE=offline where the run is trained" if is_offline else "online, or off")


def put_integrations(t: Translation) -> None:
    """Translate the `integrations` of a job of OpenAI: one project of Weights & Biases."""
    asked = t.take("integrations")
    if not asked:
        t.same("integrations", "off")
        return
    settings = asked[0].get("wandb") if len(asked) == 1 and asked[0].get("type") == "wandb" else None
    if not isinstance(settings, dict):
        t.refuse("integrations", "one of the type wandb has a counterpart", set_by=PLACE)
        return
    values = {field: settings.get(name) for field, name in (
        ("project", "project"), ("entity", "entity"), ("run_name", "name"), ("tags", "tags"),
    )}  # fmt: skip
    t.put(PLACE, [_plain("wandb", **values)], "integrations", note="the key is read from the environment")


def _plain(name: str, /, **values: Any) -> Any:
    """A tracker as people write it in a recipe: its name alone where there is no more to say."""
    given = {field: value for field, value in values.items() if value not in (None, "", [])}
    return {"name": name, **given} if given else name


def _is_uploaded(value: Any) -> bool | None:
    """Whether the weights go to the tracker; None where the file does not say."""
    if value in (None, ""):
        return None
    return value is True or str(value).lower() in ("checkpoint", "end", "true")


def _same(t: Translation, keys: Iterable[str], note: str) -> None:
    for key in keys:
        t.same(key, note)


def _no_counterpart(names: Iterable[str]) -> str:
    return f"no counterpart of {', '.join(names)}: trackers here are {', '.join(KNOWN)}"
