"""From a client's request to a recipe, and back from the plan to its hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from luthier.core.errors import RequestError, UnsupportedError
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.records.base_model import LocalModel
from luthier.core.records.fine_tuning import FineTuningRequest

_OBJECTIVES: Final = {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}
_VALIDATIONS_A_RUN: Final = 10


def check_request(request: FineTuningRequest) -> None:
    """Raise UnsupportedError for values that no recipe can have, while the client still waits for its answer."""
    if request.method is not None and request.method_name == "reinforcement":
        _check_reinforcement(request)
    from luthier.ml.planning.learning_rates import NARROWEST

    # The model is not pulled yet, so its width is unknown: the narrowest has the largest default rate, the worst case.
    multiplier, most = request.asked.learning_rate_multiplier, default_rate(request, NARROWEST)
    if multiplier != "auto" and multiplier * most >= 1:
        raise UnsupportedError(
            f"learning_rate_multiplier {multiplier:g} makes a learning rate of up to {multiplier * most:g}",
            expected=f"a rate below 1: the multiplier counts times up to {most:g}, by the width of the model",
            do="lower learning_rate_multiplier",
            code="invalid_value",
            param="hyperparameters.learning_rate_multiplier",
        )


def recipe_of(
    request: FineTuningRequest,
    base: LocalModel,
    train: Path,
    validation: Path | None = None,
    validate_every_steps: int | None = None,
) -> Recipe:
    """The recipe of a job: our defaults wherever the client says `auto`.

    All epochs are trained, as on the hosted service; where there are validation rows, the best step of them is kept.
    """
    asked, name = request.asked, _OBJECTIVES[request.method_name]
    # Patience 0 turns early stopping off.
    training: dict[str, Any] = {"seed": request.seed, "early_stopping_patience": 0}
    if asked.n_epochs != "auto":
        training["epochs"] = float(asked.n_epochs)
    if asked.batch_size != "auto":
        training["global_batch_size"] = asked.batch_size
    if asked.learning_rate_multiplier != "auto":
        training["learning_rate"] = asked.learning_rate_multiplier * default_rate(request, _width(base.path))
    if validate_every_steps is not None:
        training["validate_every_steps"] = validate_every_steps
    objective: dict[str, Any] = {"name": name}
    if (beta := getattr(asked, "beta", "auto")) != "auto":
        objective["beta"] = beta
    if name == "grpo":
        objective["rewards"] = [{"grader": _grader(request)}]
    data = {"train": str(train)} | ({} if validation is None else {"validation": str(validation)})
    return Recipe.model_validate({"base_model": base.name, "data": data, "objective": objective, "training": training})


def default_rate(request: FineTuningRequest, hidden_size: int) -> float:
    """The learning rate that a multiplier counts from: what a plan takes for this method where a recipe is silent.

    hidden_size: of the base model.
    """
    from luthier.ml.planning import learning_rates

    # [0]: the rate; the second value is the sentence that explains it.
    return learning_rates.default_rate("lora", _OBJECTIVES[request.method_name], hidden_size)[0]


def plan_found(request: FineTuningRequest, plan: Plan) -> dict[str, Any]:
    """What is kept with the job of its plan: the hyperparameters as OpenAI names them, and how often it validates."""
    training = plan.training
    # Inverse of `recipe_of`: the wire has a multiplier, the plan a rate.
    rate = training.learning_rate / default_rate(request, _width(plan.base_model.path))
    epochs = training.epochs
    resolved: dict[str, Any] = {
        "n_epochs": int(epochs) if epochs == int(epochs) else epochs,
        "batch_size": training.global_batch_size,
        # Six digits: the division would give 1.9999999999999998 for a request of 2.
        "learning_rate_multiplier": float(f"{rate:.6g}"),
    }
    if plan.objective.name == "dpo":
        resolved["beta"] = plan.objective.beta
    return {
        "hyperparameters": resolved,
        "num_steps": training.num_steps,
        "validate_every_steps": _validation_steps(plan) if plan.data.validation else None,
    }


def _validation_steps(plan: Plan) -> int:
    """About ten validations a run, one of them at the end of each epoch: so that its checkpoint can be judged."""
    per_epoch = plan.training.num_steps_per_epoch
    # Ceiling division.
    least = -(-plan.training.num_steps // _VALIDATIONS_A_RUN)
    # The smallest divisor of an epoch that is large enough: only a divisor puts a validation on each epoch's end.
    return next(steps for steps in range(1, per_epoch + 1) if per_epoch % steps == 0 and steps >= min(least, per_epoch))


def _width(model_path: str) -> int:
    from luthier.ml.inference.models.structure import read_structure

    return read_structure(model_path).hidden_size


def _check_reinforcement(request: FineTuningRequest) -> None:
    """Only graders that run here without another model or foreign code can be learned from."""
    from pydantic import ValidationError

    from luthier.core.graders import Reward
    from luthier.ml.evaluation.graders.grade import make_grader

    try:
        reward = Reward.model_validate({"grader": _grader(request)})
        assert reward.grader is not None
        make_grader(reward.grader)
    except (ValidationError, RequestError) as error:
        reason = error.came if isinstance(error, RequestError) else str(error.errors()[0]["msg"])
        raise UnsupportedError(
            f"method reinforcement with this grader: {reason}",
            expected="a string_check, a text_similarity, or a multi grader of these",
            do="grade with such a grader; score_model, label_model and python graders are not learned from here",
            code="unsupported_method",
            param="method.reinforcement.grader",
        ) from error


def _grader(request: FineTuningRequest) -> dict[str, Any]:
    if request.method is None or request.method.reinforcement is None:
        raise RequestError("no grader", expected="method.reinforcement.grader", do="add it to the request")
    grader = dict(request.method.reinforcement.grader)
    if isinstance(grader.get("graders"), list):
        # Clients send the graders of a multi grader as a list or as a mapping by name; ours is the mapping.
        grader["graders"] = {str(one.get("name")): one for one in grader["graders"]}
    return grader
