"""What a workflow will take, as sentences beside the button that starts it; plans are made by a separate process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.access import Caller
from luthier.features.deployments.service import deployed_run
from luthier.features.files.references import plan_of
from luthier.features.planning.view import format_money
from luthier.features.workflows.forms import recipe_of
from luthier.ml.charts import figures
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models

_MAX_PLANNED: Final = 3
_STUDY_END: Final = 1.2  # the final run of a study has the validation rows, too


def estimate(context: Context, caller: Caller, name: str, values: Mapping[str, Any]) -> list[str]:
    """What a form that was filled in will take.

    Args:
        context: The home.
        caller: Whose files it names.
        name: Of the form.
        values: As `forms.read_form` gives them.

    Raises:
        LuthierError: The rows cannot be read, the recipe cannot be planned, or there is no such deployment.
    """
    if name == "tune":
        return _study(context, caller, values)
    if name == "distill":
        return _distillation(context, caller, values)
    if name == "retrain":
        return _retraining(context, caller, values)
    return _choice_of_models(context, caller, name, values)


def _study(context: Context, caller: Caller, values: Mapping[str, Any]) -> list[str]:
    predicted = _predicted(context, caller, recipe_of("tune", values))
    hours, budget = predicted["hours"], float(values["budget_hours"])
    needed, num = hours * (1 + _STUDY_END), max(0.0, budget / hours - _STUDY_END) if hours else 0.0
    lines = [f"One whole training takes {_span(predicted)}."]
    if budget < needed:
        lines.append(f"The budget of {_time(budget)} is too small: one trial and the final run take {_time(needed)}.")
    else:
        lines.append(
            f"The budget of {_time(budget)} has room for {num:,.0f} whole trainings and the final run. Most trials are "
            "stopped early, so more of them begin."
        )
    return [*lines, *_price(predicted, budget)]


def _choice_of_models(context: Context, caller: Caller, name: str, values: Mapping[str, Any]) -> list[str]:
    budget = float(values["budget_hours"])
    models: Sequence[str] = values.get("models") or list(base_models(context))
    lines: list[str] = []
    predicted: dict[str, Any] = {}
    for model in models[:_MAX_PLANNED]:
        data = {"train": values["data"]} | ({"map": values["mapping"]} if values.get("mapping") else {})
        predicted = _predicted(context, caller, {"base_model": model, "data": data})
        lines.append(f"{model}: one training on all rows takes {_span(predicted)}.")
    if len(models) > _MAX_PLANNED:
        lines.append(f"{len(models) - _MAX_PLANNED} more models were not planned here.")
    share = "A third of the budget chooses the model; the search has the rest." if name == "automl" else ""
    rows = f"As many rows are used as fit into {_time(budget)}; a few are measured first."
    return [*lines, *filter(None, (rows, share)), *_price(predicted, budget)]


def _distillation(context: Context, caller: Caller, values: Mapping[str, Any]) -> list[str]:
    rest = "The teacher's answers and the evaluation come on top; their time depends on the length of the answers."
    if "layers" in values or "student" not in values:
        return ["Two trainings of the student, with the teacher and without it.", rest]
    data = {"train": values["data"], "held_out": values.get("held_out", 0.2)}
    data |= {"map": values["mapping"]} if values.get("mapping") else {}
    predicted = _predicted(context, caller, {"base_model": values["student"], "data": data})
    return [f"Two trainings of the student, each {_span(predicted)}.", rest, *_price(predicted, 2 * predicted["hours"])]


def _retraining(context: Context, caller: Caller, values: Mapping[str, Any]) -> list[str]:
    deployment = context.deployments.get(caller.project_id, values["model"])
    run_id = deployed_run(context, caller, deployment.revision)
    result = context.runs.get(run_id).result
    accepted = len(context.review_items.ids(caller.project_id, model=values["model"], status="accepted"))
    waiting = len(context.review_items.ids(caller.project_id, model=values["model"], status="waiting"))
    lines = [f"{accepted:,} accepted answers of {values['model']}, {waiting:,} wait for review."]
    if result is not None:
        lines.append(f"The last training took {figures.duration(result.seconds)}; this one has more rows.")
    return lines


def _predicted(context: Context, caller: Caller, recipe: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plan_of(context, caller.project_id, recipe)["predicted"]
    return found


def _span(predicted: Mapping[str, Any]) -> str:
    return f"{_time(predicted['hours'])} ({_time(predicted['hours_low'])} to {_time(predicted['hours_high'])})"


def _time(hours: float) -> str:
    return figures.duration(hours * 3600)


def _price(predicted: Mapping[str, Any], hours: float) -> list[str]:
    price = predicted.get("usd_per_device_hour") or 0.0
    return [f"At the price of this machine {_time(hours)} cost {format_money(price * hours)}."] if price else []
