"""Where the recommended action of an evaluation is done: links to the pages of a project, the main one first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

from luthier.core.access import Caller, Scope
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.ids import is_id
from luthier.core.plan import Plan
from luthier.core.results.recommendation import Action, Recommendation
from luthier.features.models.service import list_models
from luthier.features.runs.entries_store import DatasetName
from luthier.features.runs.state import datasets_of
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models, may_use_base


@dataclass(frozen=True, slots=True)
class NextStep:
    """A link to a page on which something is done. scope: what a visitor needs there."""

    label: str
    address: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class _Found:
    """What links are made from. plan: of the evaluated run; None without one."""

    context: Context
    caller: Caller
    evaluation: Evaluation
    recommendation: Recommendation
    plan: Plan | None

    @property
    def run_id(self) -> str | None:
        """The evaluated run; None where a model without one was evaluated."""
        return self.evaluation.run_id


def next_steps(
    context: Context, caller: Caller, evaluation: Evaluation, recommendation: Recommendation | None
) -> tuple[NextStep, ...]:
    """The links of a recommended action; none without an action. Only steps that the caller may do are returned."""
    if recommendation is None:
        return ()
    plan = None
    if evaluation.run_id is not None:
        try:
            plan = context.runs.plan(evaluation.run_id)
        except NotFoundError:  # deleted meanwhile
            return ()
    steps = _LINKS[recommendation.action](_Found(context, caller, evaluation, recommendation, plan))
    return tuple(one for one in steps if caller.may(one.scope))


def _use_model(found: _Found) -> list[NextStep]:
    if found.run_id is None:
        return [NextStep("Show the models", "/models", "read")]
    return [
        NextStep("Try it in the playground", f"/playground?model={found.run_id}", "infer"),
        NextStep("Deploy it", f"/models/{found.run_id}#deploy", "train"),
    ]


def _use_prompt(found: _Found) -> list[NextStep]:
    return [NextStep("Show the prompt", f"/evaluations/{found.evaluation.evaluation_id}/alternative", "read")]


def _use_simple_method(found: _Found) -> list[NextStep]:
    return [NextStep("Show how to use it", f"/evaluations/{found.evaluation.evaluation_id}/alternative", "read")]


def _use_other_model(found: _Found) -> list[NextStep]:
    name = found.recommendation.system or ""
    if is_id(name, "run"):
        return [NextStep("Try it in the playground", f"/playground?model={name}", "infer")]
    system = next((one for one in found.evaluation.systems if one.name == name), None)
    recipe_name = found.plan.base_model.name if found.plan is not None else system.model if system is not None else ""
    own = next((api for api, known in base_models(found.context).items() if known == recipe_name), None)
    if own is None:
        return [NextStep("Show the base models", "/models?show=base", "read")]
    return [NextStep("Try it in the playground", f"/playground?model={quote(own, safe='')}", "infer")]


def _add_rows(found: _Found) -> list[NextStep]:
    if found.plan is not None:
        known = datasets_of(found.context, found.caller, found.plan).get(found.plan.data.train.sha256)
        if known is not None:
            return [NextStep(f"Add rows to {known.name}", f"/datasets/new?dataset={known.dataset_id}", "train")]
    return [NextStep("Add rows", "/datasets/new", "train")]


def _larger_base(found: _Found) -> list[NextStep]:
    larger = None
    if found.plan is not None:
        larger = _next_larger(found.context, found.caller, found.plan.base_model.num_parameters)
    if larger is None:
        return [NextStep("Choose a larger base model", "/models?show=base", "read")]
    label, name = f"Train {larger}", quote(larger, safe="")
    same = f"/runs/new?from={found.run_id}&base_model={name}"
    assert found.plan is not None, "without a plan no larger model is known"
    names = datasets_of(found.context, found.caller, found.plan)
    known = names.get(found.plan.data.train.sha256)
    # The guided run chooses rows of datasets alone, and held-out rows only from the same split.
    if known is None or not _has_guided_held_out(found.context, found.plan, names):
        return [NextStep(label, same, "train"), NextStep("Show all base models", "/models?show=base", "read")]
    query = urlencode({"dataset": known.dataset_id, "version": known.version, "base_model": larger})
    return [
        NextStep(label, f"/start?{query}", "train"),
        NextStep("Same settings, larger model", same, "train"),
        NextStep("Show all base models", "/models?show=base", "read"),
    ]


def _has_guided_held_out(context: Context, plan: Plan, names: Mapping[str, DatasetName]) -> bool:
    """Whether a guided run with the training rows of a plan is evaluated on the held-out rows of that plan.

    Args:
        context: The home.
        plan: Of a run.
        names: The datasets that hold its files, by the digest of the file.
    """
    held_out = plan.data.held_out
    other = None if held_out is None else names.get(held_out.sha256)
    if other is None or isinstance(plan.recipe.data.held_out, float):  # a share is taken again
        return True
    found = [
        next((one.details for one in context.datasets.versions(name.dataset_id) if one.number == name.version), {})
        for name in (names[plan.data.train.sha256], other)
    ]
    train, judging = ((details.get("of"), details.get("split")) for details in found)
    return train[1] is not None and train == judging


def _next_larger(context: Context, caller: Caller, num_parameters: int) -> str | None:
    """The smallest base model on this machine with at least half as many parameters again, by its name in the API.

    Of those that the caller's project may use.
    """
    here = (view for view in list_models(context) if view.path is not None and view.num_parameters)
    views = {view.name: view for view in here if may_use_base(context, caller.project_id, view.name)}
    found = [(views[own].num_parameters or 0, name) for name, own in base_models(context).items() if own in views]
    return min((one for one in found if one[0] >= 1.5 * num_parameters), default=(0, None))[1]


def _evaluate_more(found: _Found) -> list[NextStep]:
    chosen = f"?model={found.run_id}" if found.run_id is not None else ""
    # The form has the dataset with the held-out rows of the run chosen, and without a number it takes all of them.
    takes_all = bool(found.recommendation.num_rows_left) and _has_held_out_dataset(found)
    label = "Evaluate all held-out rows" if takes_all else "Evaluate on more rows"
    return [NextStep(label, f"/evaluations/new{chosen}", "train")]


def _has_held_out_dataset(found: _Found) -> bool:
    plan = found.plan
    if plan is None or plan.data.held_out is None:
        return False
    return plan.data.held_out.sha256 in datasets_of(found.context, found.caller, plan)


_LINKS: Final[dict[Action, Callable[[_Found], list[NextStep]]]] = {
    "use_model": _use_model,
    "use_prompt": _use_prompt,
    "use_simple_method": _use_simple_method,
    "use_other_model": _use_other_model,
    "add_rows": _add_rows,
    "larger_base": _larger_base,
    "evaluate_more": _evaluate_more,
}
