"""The objective's part of a plan: its settings, checked and completed, and the loss of the routers.

The router loss of a mixture of experts is on or off, with a coefficient; it decides what is trained besides the
adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from luthier.core.aliases import new_key
from luthier.core.dataset import DatasetProfile, Shape
from luthier.core.errors import RecipeError
from luthier.core.evaluation_plan import EvaluationPlan, EvaluationRecipe
from luthier.core.plan import MethodPlan, ObjectivePlan, TeacherPlan
from luthier.core.recipe import MethodRecipe, ObjectiveRecipe, RouterAuxLoss
from luthier.core.task_head import SEARCH_KINDS, TaskHead
from luthier.ml.evaluation.metrics.registry import needs_of
from luthier.ml.planning.defaults import LABEL_METRICS, NEFTUNE_ALPHA, NUMBER_METRICS, SEARCH_METRICS, Provenance
from luthier.ml.training.methods.rules import rules_of as method_rules
from luthier.ml.training.objectives.rules import (
    BETA_OF_MEANS,
    LABEL_SMOOTHING,
    NO_SMOOTHING,
    TEACHER_SHARE,
    rules_of,
)  # fmt: skip

if TYPE_CHECKING:
    from luthier.ml.inference.models.structure import Structure

_EXAMPLES: Final = {"objective.rewards": "rewards: [{metric: token_f1, weight: 1.0}]"}
_INSTEAD: Final[Mapping[Shape, str]] = {
    "preference": "choose objective: {name: dpo} (or ipo, orpo, simpo, kto); to learn chosen answers alone, map the "
    "field: completion=chosen",
    "unpaired": "choose objective: {name: kto}; as plain pairs, bad answers would be learned too: if that is intended, "
    "map the field: completion=completion",
}


def check_shape(recipe: ObjectiveRecipe | None, shape: Shape) -> None:
    """Raise RecipeError for rows that the objective cannot learn from; what could is in the error."""
    name = recipe.name if recipe else "sft"
    if shape not in rules_of(name).shapes:
        from luthier.ml.data.rows.shapes import REQUIRED

        usual = "give it such rows, or choose another objective"
        if name == "rank":
            usual = (
                "add to each row a passage that does not answer its query (`rejected`), or choose objective: "
                "{name: embed}, for which the passages of other rows are the negatives"
            )
        if rules_of(name).packs:
            usual = "choose objective: {name: sft}, which learns the answers of such rows, or give rows with `text`"
            usual += "; the texts alone of rows with a label: data: {columns: {text: text}}"
        shapes = ", ".join(f"{one} ({' + '.join(REQUIRED[one])})" for one in rules_of(name).shapes)
        raise RecipeError(
            f"objective {name} with {shape} rows",
            expected=f"rows of shape {shapes}",
            do=_INSTEAD.get(shape, usual) if name == "sft" else usual,
        )


def resolve_objective(
    recipe: ObjectiveRecipe | None, shape: Shape, sources: Provenance, *, teacher: TeacherPlan | None = None
) -> ObjectivePlan:
    """The objective's part of a plan.

    Args:
        recipe: What is requested; None takes the default.
        shape: Of the training rows.
        sources: Takes where each value comes from.
        teacher: The one that the recipe names, found.

    Raises:
        RecipeError: Settings that the objective does not take, or rows that it cannot learn from.
    """
    asked = recipe or ObjectiveRecipe(name="sft")
    rules = rules_of(asked.name)
    sources.note("objective.name", "asked" if recipe else "default", rules.title)
    # None is what a recipe has where it says nothing; `off` and 0 are values.
    given = {k: v for k, v in asked.model_dump(exclude={"name", "options"}).items() if v is not None}
    if rules.needs_teacher:
        # The teacher is no setting with a default, so it is not checked against the rules' settings.
        named = given.pop("teacher", None)
        sources.note("objective.teacher", "asked", _teacher_in_words(asked.name, named, teacher))
    if unknown := sorted(set(given) - set(rules.settings)):
        # Plans keep the names of the first version; people read the new ones.
        settings = [new_key(f"objective.{name}").removeprefix("objective.") for name in rules.settings]
        raise RecipeError(
            f"objective {asked.name} with {', '.join(new_key(f'objective.{name}') for name in unknown)}",
            expected=f"settings of {asked.name}: {', '.join(settings) or 'none'}",
            do="remove them: they would be ignored",
        )
    check_shape(recipe, shape)
    if missing := [f"objective.{name}" for name in rules.required if name not in given]:
        raise RecipeError(
            f"objective {asked.name} without {', '.join(missing)}",
            expected="that it is named: there is no usual value",
            do=f"add it, such as {_EXAMPLES.get(missing[0], 'in docs/recipe.md')}",
        )
    if asked.rewards and all(reward.weight == 0 for reward in asked.rewards):
        raise RecipeError(
            "objective.rewards with the weight 0 alone, so that every answer is worth the same",
            expected="a weight other than 0 for one part at least",
            do="give the parts weights, or leave weight out, which is 1",
        )
    defaults = {**rules.settings, **(_of_loss_type(asked) if asked.loss_type is not None else {})}
    if "num_iterations" in defaults:
        defaults |= _of_several_updates(asked)
    values = {name: sources.pick(f"objective.{name}", given.get(name), default) for name, default in defaults.items()}
    if "loss_weighting" in values:
        _check_weighting(asked.name, values["loss_weighting"], values.get("label_smoothing") or 0.0)
    # With one update nothing is clipped.
    if values.get("num_iterations") == 1:
        for name in ("clip_ratio_low", "clip_ratio_high"):
            del values[name]
            sources.found.pop(f"objective.{name}", None)
    # Whether the model has routers is not known here: `router_loss` resolves it later, with the structure.
    if "router_aux_loss" in values:
        del values["router_aux_loss"]
        sources.found.pop("objective.router_aux_loss", None)
    # Only one divergence has a mixture, so its share is dropped for the others.
    if "teacher_share" in values:
        values["teacher_share"] = _teacher_share(values["divergence"], values["teacher_share"], sources)
    return ObjectivePlan(name=asked.name, options=asked.options or {}, teacher=teacher, **values)


def with_task_head(
    objective: ObjectivePlan, head: TaskHead | None, notes: tuple[str, ...], sources: Provenance
) -> ObjectivePlan:
    """The objective with what its model has in place of text, which the training rows say.

    Args:
        objective: as resolved so far.
        head: of the model; None for text.
        notes: on how the rows decide about it.
        sources: takes where the values come from.
    """
    if head is None:
        return objective
    sources.note("objective.task_head", "measured", "; ".join(("by the training rows", *notes)))
    values: dict[str, Any] = {"task_head": head, "task_head_notes": notes}
    if head.kind == "embed":
        # What the recipe leaves open is as the files of the base model say.
        own = {name: getattr(head, name) for name in ("pooling", "query_prompt", "document_prompt")}
        values |= {name: value for name, value in own.items() if value != getattr(objective, name)}
        for name in own.keys() & values.keys():
            sources.note(f"objective.{name}", "measured", "as the files of the base model say")
    return objective.model_copy(update=values)


def judged_by_head(
    evaluation: EvaluationPlan, asked: EvaluationRecipe, objective: ObjectivePlan, sources: Provenance
) -> EvaluationPlan:
    """The evaluation as the model's head needs it; unchanged for a model that writes.

    A model that searches is evaluated by the order of documents; one that gives a label by equality, and one that gives
    a number by its distance, unless the recipe names metrics.

    Args:
        evaluation: as resolved so far.
        asked: what the recipe has.
        objective: with its task head.
        sources: takes where the values come from.

    Raises:
        RecipeError: metrics or few-shot examples that the model has no use for, or that no other model has one for.
    """
    head = objective.task_head
    searches = head is not None and head.kind in SEARCH_KINDS
    if searches and asked.metrics is None:
        evaluation = evaluation.model_copy(update={"metrics": SEARCH_METRICS[0]})
        sources.note("evaluation.metrics", "derived", SEARCH_METRICS[1])
    if head is not None and head.has_one_answer and asked.metrics is None:
        metrics, why = NUMBER_METRICS if head.kind == "regress" else LABEL_METRICS
        evaluation = evaluation.model_copy(update={"metrics": metrics})
        sources.note("evaluation.metrics", "derived", why)
    ranks = {name: needs_of([name]) == {"ranking"} for name in evaluation.metrics}
    if wrong := [name for name, does in ranks.items() if does != searches]:
        raise RecipeError(
            f"evaluation.metrics {', '.join(wrong)} with objective {objective.name}",
            expected=f"some of {', '.join(SEARCH_METRICS[0])}" if searches else "metrics of answers or likelihoods",
            do="name no metrics to have the usual ones, or choose objective: {name: embed} or rank to train a search",
        )
    if not searches or not evaluation.few_shot:
        return evaluation
    if asked.few_shot:
        raise RecipeError(
            f"evaluation.few_shot {asked.few_shot} with objective {objective.name}",
            expected="0: nothing is written, so there is nothing to show examples of",
            do="remove evaluation.few_shot",
        )
    sources.note("evaluation.few_shot", "derived", "nothing is written, so there is nothing to show examples of")
    return evaluation.model_copy(update={"few_shot": 0})


def check_negatives(objective: ObjectivePlan, train: DatasetProfile, batch_size: int) -> None:
    """Raise RecipeError where vectors are learned of pairs alone, and a step has one pair: there are no negatives."""
    if objective.name == "embed" and train.shape != "preference" and min(batch_size, train.num_examples) < 2:
        what = "training.global_batch_size 1" if batch_size < 2 else "1 training row"
        raise RecipeError(
            f"objective embed with {what} and no rejected documents",
            expected="at least two pairs a step: a query is compared with the documents of the others",
            do="raise training.global_batch_size (32 to 1,024 is usual), or give rows with rejected documents",
        )


def _check_weighting(objective: str, weighting: str, smoothing: float) -> None:
    """Raise RecipeError for a weighting that the objective does not have, or that cannot be smoothed."""
    if objective == "sft" and weighting == "fixed":
        raise RecipeError(
            "objective sft with objective.loss_weighting fixed",
            expected="token (every learned token counts the same), sample (every row does) or dft (each token by its "
            "own probability)",
            do="choose one of them: a fixed divisor is for drawn answers (grpo)",
        )
    if objective != "sft" and weighting == "dft":
        raise RecipeError(
            f"objective {objective} with objective.loss_weighting dft",
            expected="token, sample or fixed: dft weighs the tokens of the rows' own answers",
            do="choose one of them, or objective.name: sft",
        )
    if weighting in ("sample", "dft") and smoothing:
        why = "row by row" if weighting == "sample" else "weighted by probability"
        raise RecipeError(
            f"objective.loss_weighting {weighting} with objective.label_smoothing {smoothing:g}",
            expected=f"one of the two: the smoothed loss is summed over tokens, not {why}",
            do="remove one of them",
        )


def _of_loss_type(asked: ObjectiveRecipe) -> dict[str, tuple[Any, str]]:
    """The defaults that depend on the loss of dpo.

    Raises:
        RecipeError: label smoothing with a loss that has none, or none with a loss that needs it.
    """
    kind, smoothing = str(asked.loss_type), asked.label_smoothing
    if kind not in LABEL_SMOOTHING and smoothing:
        raise RecipeError(
            f"objective.loss_type {kind} with objective.label_smoothing {smoothing:g}",
            expected=f"no smoothing: only {', '.join(LABEL_SMOOTHING)} have it",
            do="remove one of them",
        )
    if kind in ("robust", "exo_pair") and smoothing == 0:
        raise RecipeError(
            f"objective.loss_type {kind} with objective.label_smoothing 0",
            expected="a share above 0: without one robust is sigmoid, and exo_pair infinite",
            do="remove objective.label_smoothing to have the default, or objective.loss_type to have sigmoid",
        )
    found: dict[str, tuple[Any, str]] = {"label_smoothing": LABEL_SMOOTHING.get(kind, NO_SMOOTHING)}
    return found | ({"beta": BETA_OF_MEANS} if kind == "sigmoid_norm" else {})


def _of_several_updates(asked: ObjectiveRecipe) -> dict[str, tuple[Any, str]]:
    """The defaults of clipping that depend on the recipe.

    Raises:
        RecipeError: clipping with a single update for each sample.
    """
    names = [name for name in ("clip_ratio_low", "clip_ratio_high") if getattr(asked, name) is not None]
    if names and (asked.num_iterations or 1) == 1:
        raise RecipeError(
            f"objective.{names[0]} {getattr(asked, names[0]):g} with objective.num_iterations 1",
            expected="no clipping: with one update for each sample the ratio that is clipped is 1",
            do="remove it, or set objective.num_iterations above 1",
        )
    return {"clip_ratio_high": (asked.clip_ratio_low, "as clip_ratio_low")} if names == ["clip_ratio_low"] else {}


def fitted_method(recipe: MethodRecipe | None, asked: ObjectiveRecipe | None) -> MethodRecipe | None:
    """The method as the objective can use it: without dropout where answers are drawn, which are drawn without any.

    Raises:
        RecipeError: dropout is requested, or full fine-tuning where trained weights must be separate.
    """
    rules = rules_of(asked.name if asked else "sft")
    method = recipe or MethodRecipe(name="lora")
    needed = None if asked is None or rules.needs_adapter_for is None else getattr(asked, rules.needs_adapter_for)
    if method.name == "full" and needed:
        setting = new_key(f"objective.{rules.needs_adapter_for}")
        raise RecipeError(
            f"{setting} {needed:g} with method full",
            expected="an adapter, which can be set back to its start; of a whole model a second one would be needed",
            do=f"choose another method, or set {setting}: 0",
        )
    # The recipe itself, not `method`: None must stay None, so that the source is still "default".
    if rules.takes_dropout or "dropout" not in method_rules(method.name).settings:
        return recipe
    if method.dropout:
        raise RecipeError(
            f"objective {asked.name if asked else 'sft'} with method.dropout {method.dropout:g}",
            expected="0: answers are drawn without dropout, and must be learned by the model that wrote them",
            do="remove method.dropout",
        )
    return method.model_copy(update={"dropout": 0.0})


def noise_on_embeddings(asked: float | None, objective: ObjectivePlan, sources: Provenance) -> float:
    """The scale of the noise on embeddings: none where answers are drawn, which are drawn without any.

    Args:
        asked: What the recipe has; None takes the default.
        objective: As resolved so far.
        sources: Takes where the value comes from.

    Raises:
        RecipeError: Noise is requested with an objective that draws answers.
    """
    if asked and not rules_of(objective.name).takes_dropout:
        raise RecipeError(
            f"objective {objective.name} with training.neftune_alpha {asked:g}",
            expected="0: answers are drawn without noise, and must be learned by the model that wrote them",
            do="remove training.neftune_alpha",
        )
    return sources.pick("training.neftune_alpha", asked, NEFTUNE_ALPHA)


def _teacher_in_words(objective: str, named: str | None, teacher: TeacherPlan | None) -> str:
    if named is None or teacher is None:
        raise RecipeError(
            f"objective {objective} without a teacher",
            expected="objective.teacher: a base model, a folder, or a run that has succeeded",
            do="add it, for example: objective: {name: distillation, teacher: qwen2.5-1.5b-instruct}",
        )
    # One hidden state is kept for each learned token, in the precision of the teacher.
    learned_mb = teacher.hidden_size * (2 if teacher.precision == "bfloat16" else 4) / 1e6 * 1000
    return (
        f"{named}: {teacher.num_parameters:,} parameters in {teacher.precision}, asked once before training; "
        f"{learned_mb:.2g} MB are kept for every 1,000 learned tokens"
    )


def _teacher_share(divergence: str, share: float | None, sources: Provenance) -> float | None:
    if divergence == "jensen_shannon":
        return sources.pick("objective.teacher_share", share, TEACHER_SHARE)
    if share is not None:
        raise RecipeError(
            f"objective.teacher_share {share:g} with divergence {divergence}",
            expected="divergence: jensen_shannon, the only one with a mixture",
            do="remove objective.teacher_share, or set objective.divergence: jensen_shannon",
        )
    sources.found.pop("objective.teacher_share", None)
    return None


NAME: Final = "objective.router_aux_loss"
_OFF: Final = "remove objective.router_aux_loss, or set it to off"


def with_router_loss(
    objective: ObjectivePlan,
    recipe: ObjectiveRecipe | None,
    method: MethodPlan,
    structure: Structure,
    model_path: str,
    sources: Provenance,
) -> ObjectivePlan:
    """The objective with the coefficient of the loss of the routers, where it is requested.

    The plan states it in either case for a model with experts, and never for one without.

    Args:
        objective: as resolved so far.
        recipe: what was asked for; None for the default.
        method: as resolved.
        structure: of the model.
        model_path: its folder, whose config names the coefficient.
        sources: takes where the values come from.

    Raises:
        RecipeError: it is requested and the model has no experts, its config names no coefficient, or the method puts
            its own prompt before each row.
    """
    asked = recipe.router_aux_loss if recipe is not None else None
    if asked in (None, "off"):
        if structure.num_experts:
            why = "off, the default of transformers; routers choose as in the base"
            sources.note(NAME, "asked" if asked else "default", why)
        return objective
    if not structure.num_experts:
        raise RecipeError(
            f"{NAME}: {asked} with a model that has no experts",
            expected="a mixture of experts, whose routers share tokens out",
            do=_OFF,
        )
    if method.num_virtual_tokens:
        raise RecipeError(
            f"{NAME}: {asked} with method {method.name}, whose trained prompt is routed, too",
            expected="a method that puts nothing before the rows",
            do=f"{_OFF}; or choose method.name: lora",
        )
    coefficient = _coefficient(asked, model_path)
    from_config = "router_aux_loss_coef of the model's config; " if asked == "model" else ""
    sources.note(NAME, "asked", f"{from_config}{_what_trains(method, structure)}; the mean over micro-batches")
    return objective.model_copy(update={"router_aux_loss": coefficient})


def _coefficient(asked: RouterAuxLoss | None, model_path: str) -> float:
    if isinstance(asked, float | int):
        return float(asked)
    from luthier.ml.inference.models.architecture import load_config, text_config

    # transformers' name of the coefficient, the same for Mixtral, Qwen and others.
    found = getattr(text_config(load_config(model_path)), "router_aux_loss_coef", None)
    # 0 in a config is no coefficient to take over.
    if isinstance(found, float | int) and not isinstance(found, bool) and found > 0:
        return float(found)
    raise RecipeError(
        f"{NAME}: model, and the config of the base has router_aux_loss_coef {found}",
        expected="a number above 0 there, or one in the recipe",
        do=f"set {NAME}: 0.001, or another coefficient; or off",
    )


def _what_trains(method: MethodPlan, structure: Structure) -> str:
    """Whether the routers train, which is what such a loss is usually for."""
    if method.name == "full":
        return "the routers train, and so does all before them"
    named = [x for x in structure.linear_layers if x.role == "router" and {x.name, x.kind} & set(method.targets)]
    if named:
        return f"{len(named)} routers carry an adapter and train"
    return "the routers are frozen, so it only shapes the adapters on what they read"
