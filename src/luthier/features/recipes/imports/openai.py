"""OpenAI: a fine-tuning job as it is sent to `/v1/fine_tuning/jobs`, or as it is retrieved from there.

Keys are those of openai-python 3.57.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.core.graders import as_reward
from luthier.features.recipes.imports.trackers import PLACE, put_integrations
from luthier.features.recipes.imports.translation import Key, Translation, becomes, harmless, missing

VERSION: Final = "openai-python 3.57"
_OBJECTIVES: Final = {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}
_GRADERS: Final = ("string_check", "text_similarity", "score_model", "label_model", "python", "multi")
_METHODS: Final = ("supervised", "dpo", "reinforcement")
_RESULT: Final = "a result of the job, not a request"


def _hyperparameters() -> dict[str, Key]:
    found: dict[str, Key] = {}
    for section in ("hyperparameters", *(f"method.{name}.hyperparameters" for name in _METHODS)):
        found |= {
            f"{section}.n_epochs": becomes("training.epochs", note="auto: Luthier's own"),
            f"{section}.batch_size": becomes("training.global_batch_size", note="auto: Luthier's own"),
            f"{section}.learning_rate_multiplier": becomes(
                "training.learning_rate", note="auto: Luthier's own; a number needs --set, since its base is not public"
            ),
        }
    for name in ("eval_interval", "eval_samples", "compute_multiplier", "reasoning_effort"):
        found |= missing(
            "how reinforcement spends computation; see objective.num_generations",
            f"method.reinforcement.hyperparameters.{name}", off=("auto", "default"),
        )  # fmt: skip
    return found


KEYS: Final[dict[str, Key]] = {
    "model": becomes("base_model", note="needs --set, unless it is org/name or a folder"),
    "training_file": becomes("data.train", note="needs --set: save the rows of this id"),
    "validation_file": becomes("data.validation", note="needs --set: save the rows of this id"),
    "seed": becomes("training.seed"),
    "method.type": becomes("objective.name", note="supervised: sft; dpo; reinforcement: grpo"),
    "method.dpo.hyperparameters.beta": becomes("objective.beta", note="auto: 0.1"),
    "method.reinforcement.grader": becomes("objective.rewards", note="graders that a recipe has"),
    **_hyperparameters(),
    **harmless("the name of the result; see `luthier deploy`", "suffix"),
    **harmless("labels for people", "metadata"),
    **harmless(_RESULT, "id", "object", "created_at", "finished_at", "fine_tuned_model", "organization_id",
               "result_files", "status", "trained_tokens", "error", "estimated_finish", "usage_metrics",
               "shared_with_openai", "eval_id", "user_provided_suffix", "error.code", "error.message", "error.param"),
    "integrations": becomes(PLACE, note="one of the type wandb"),
    **missing("answers as JSON of a schema in training", "method.reinforcement.response_format", off=({},)),
}  # fmt: skip


def translate(t: Translation) -> None:
    """Translate a job."""
    model = str(t.take("model", ""))
    if "/" in model and not model.startswith("ft:"):
        t.put_model(model, "model")
    else:
        note = "a model that only OpenAI has: name the one to train, such as hub:org/name"
        t.refuse("model", note, set_by="base_model")
    for key, place in (("training_file", "data.train"), ("validation_file", "data.validation")):
        value = t.take(key)
        if value is None and key == "validation_file":
            continue
        if value is None or str(value).startswith("file-"):
            t.refuse(key, "an id of a file, which holds no rows: download it", set_by=place)
        else:
            t.put_rows(place, value, key)
    name = str(t.take("method.type", "supervised"))
    if name not in _OBJECTIVES:
        t.refuse("method.type", f"known here: {', '.join(_OBJECTIVES)}", set_by="objective.name")
        return
    t.put("objective.name", _OBJECTIVES[name], "method.type", default="supervised")
    # OpenAI does not publish its method: the adapter is Luthier's own default.
    t.notes.append("OpenAI does not publish how it trains: method, rank and rate are Luthier's defaults (luthier plan)")
    _put_hyperparameters(t, name)
    if name == "reinforcement":
        grader = t.take("method.reinforcement.grader")
        if isinstance(grader, dict) and grader.get("type") in _GRADERS:
            made = as_reward(grader)
            t.put("objective.rewards", [{"grader": made}], "method.reinforcement.grader")
            for judge in _judges_of(made):
                t.notes.append(f"the grader asks {judge}: replace it where it is no model of this machine")
            if _runs_code(made):
                t.notes.append("the grader is code: it runs where LUTHIER_PYTHON_GRADERS=true is set, locked down")
        else:
            note = f"known here: {', '.join(_GRADERS)}"
            t.refuse("method.reinforcement.grader", note, set_by="objective.rewards")
    beta = t.take("method.dpo.hyperparameters.beta", "auto")
    if name == "dpo":
        is_auto = beta == "auto"
        t.put("objective.beta", 0.1 if is_auto else float(beta), "method.dpo.hyperparameters.beta", default="auto")
    put_integrations(t)
    if (seed := t.take("seed")) is not None:
        t.put("training.seed", seed, "seed")


def _runs_code(grader: Mapping[str, Any]) -> bool:
    parts = grader.get("graders")
    own = (grader, *(parts.values() if isinstance(parts, Mapping) else ()))
    return any(isinstance(one, Mapping) and one.get("type") == "python" for one in own)


def _judges_of(grader: Mapping[str, Any]) -> list[str]:
    """The models that a grader asks."""
    parts = grader.get("graders")
    own = (grader, *(parts.values() if isinstance(parts, Mapping) else ()))
    names = (one.get("model") for one in own if isinstance(one, Mapping))
    return list(dict.fromkeys(str(name) for name in names if name))


def _put_hyperparameters(t: Translation, name: str) -> None:
    """Those of the method; an old job has them on top, a retrieved one in both places."""
    sections = (f"method.{name}.hyperparameters", "hyperparameters")
    for key, place in (("n_epochs", "training.epochs"), ("batch_size", "training.global_batch_size"),
                       ("learning_rate_multiplier", "training.learning_rate")):  # fmt: skip
        found = [f"{section}.{key}" for section in sections if t.take(f"{section}.{key}") is not None]
        for where in found[1:]:
            t.same(where, f"{found[0]} takes precedence")
        if not found:
            continue
        value: Any = t.take(found[0])
        if value == "auto":
            t.same(found[0], "auto: Luthier's own default")
        elif key == "learning_rate_multiplier":
            if value == 1:
                t.same(found[0], "1: the default rate")
            else:
                t.refuse(found[0], "it multiplies a rate that OpenAI does not publish", set_by=place)
        else:
            t.put(place, float(value) if key == "n_epochs" else value, found[0])
