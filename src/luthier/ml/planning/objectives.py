"""What each objective takes, what it uses where the recipe is silent, and which rows it can learn from.

The training code of an objective is in `train/objectives/`; here is what a plan must know before anything is loaded. An
objective that another package brings (entry point group `luthier.objectives`) says the same in an attribute `rules` of
its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.aliases import new_key
from luthier.core.dataset import Shape
from luthier.core.entry_points import entry_points
from luthier.core.errors import NotFoundError, RecipeError
from luthier.core.plan import ObjectivePlan, TeacherPlan
from luthier.core.recipe import OBJECTIVE_ENTRY_POINTS, OBJECTIVES, MethodRecipe, ObjectiveRecipe
from luthier.ml.planning import defaults
from luthier.ml.planning.methods import rules_of as method_rules
from luthier.ml.planning.sources import Sources

Setting = tuple[Any, str]


@dataclass(frozen=True, slots=True)
class ObjectiveRules:
    """What an objective is in words, and the settings that it takes, each with its default and the reason for it.

    shapes: the shapes of row that it can learn from. rows_per_unit: rows that stand side by side in a micro-batch.
    learning_rate_factor: what the method's default of training.learning_rate is multiplied by, with the reason; None
    where it is right as it is. reference_passes: passes forward over each row before the first step, for the model at
    the start. step_passes: passes forward over each row of a step beside those that the loss itself takes.
    required: settings that the recipe must name. takes_dropout: whether it can learn while an adapter drops inputs.
    needs_adapter_for: a setting that, above 0, needs what is trained to lie beside the base model.
    needs_teacher: whether objective.teacher must be given; it is no setting with a default. packs: whether its units
    are blocks, into which texts of any length are cut and filled.
    """

    title: str
    settings: Mapping[str, Setting]
    shapes: tuple[Shape, ...]
    rows_per_unit: int = 1
    learning_rate_factor: Setting | None = None
    reference_passes: int = 0
    step_passes: int = 0
    required: tuple[str, ...] = ()
    takes_dropout: bool = True
    needs_adapter_for: str | None = None
    needs_teacher: bool = False
    packs: bool = False


_EXAMPLES: Final = {"objective.rewards": "rewards: [{metric: token_f1, weight: 1.0}]"}
_TEACHER_SHARE: Final = (0.5, "teacher and student count alike in the mixture (Agarwal et al., 2023, section 2)")

_ROUTERS: Final[Mapping[str, Setting]] = {"router_aux_loss": (None, "off")}
"""Resolved once method and structure are known (`router_loss.py`)."""

_ANSWERS: Final[tuple[Shape, ...]] = ("chat", "prompt_completion", "alpaca", "sharegpt", "text")

_PAIRS: Final[tuple[Shape, ...]] = ("preference",)
_BETA: Final = (0.1, "how fast leaving the start is punished; 0.01 to 0.5 is usual (Rafailov et al., 2023, section 6)")
_SMOOTHING: Final = (0.0, "labels are taken as they are; 0.1 says that one in ten is the wrong way round")
_SLOW: Final = (0.1, "preferences move a model that can answer already: a tenth of the rate at which it learns answers")
_EACH: Final = (1.0, "both kinds count alike; weigh the rarer kind more where one is much rarer (KTO, section 4.1)")

RULES: Final[Mapping[str, ObjectiveRules]] = {
    "sft": ObjectiveRules(
        "supervised fine-tuning on the answers",
        {"label_smoothing": defaults.LABEL_SMOOTHING, "loss_weighting": defaults.ANSWER_WEIGHTING, **_ROUTERS},
        _ANSWERS,
    ),
    "pretraining": ObjectiveRules(
        "continued pre-training on plain text, in blocks", {**_ROUTERS}, ("text",), packs=True
    ),
    "distillation": ObjectiveRules(
        "the answers, and at each of their tokens what the teacher would have said",
        {
            "alpha": (0.5, "as much of the teacher as of the answers; 1 learns from the teacher alone"),
            "temperature": (
                1.0,
                "probabilities as they are; 2 to 4 shows more of what the teacher thinks unlikely",
            ),
            "divergence": (
                "forward_kl",
                "the student covers all that the teacher thinks possible (Hinton et al.)",
            ),
            "teacher_share": (None, "only for jensen_shannon"),
            **_ROUTERS,
        },
        _ANSWERS,
        needs_teacher=True,
    ),
    "dpo": ObjectiveRules(
        "direct preference optimisation, against the model at the start",
        {"beta": _BETA, "label_smoothing": _SMOOTHING},
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=_SLOW,
        reference_passes=1,
    ),
    "ipo": ObjectiveRules(
        "identity preference optimisation: a margin a token to reach and not to pass",
        {"beta": (0.1, "the margin to reach is 1 / (2 beta), in nats a token (Azar et al., 2023, equation 17)")},
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=_SLOW,
        reference_passes=1,
    ),
    "orpo": ObjectiveRules(
        "odds-ratio preference optimisation: answers and preferences learned together",
        {
            "beta": (0.1, "weight of the odds ratio beside the cross-entropy (lambda of Hong et al., 2024)"),
            "nll_over": ("all", "cross-entropy of prompt and answer, as the authors' code has it; or answer alone"),
        },
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=(0.25, "it learns answers, too, so it goes faster than DPO (Hong et al., 2024: 8e-6)"),
    ),
    "kto": ObjectiveRules(
        "Kahneman-Tversky optimisation: single answers, each wanted or not",
        {"beta": _BETA, "desirable_weight": _EACH, "undesirable_weight": _EACH},
        ("unpaired", "preference"),
        learning_rate_factor=_SLOW,
        reference_passes=2,
        step_passes=1,
    ),
    "simpo": ObjectiveRules(
        "simple preference optimisation: likelihood a token, without a reference",
        {
            "beta": (2.0, "2.0 to 2.5 is usual, since rewards are means a token (Meng et al., 2024, section 3)"),
            "gamma": (1.0, "the margin to reach: a half of beta is usual (Meng et al., 2024, section 3)"),
            "label_smoothing": _SMOOTHING,
        },
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=(0.05, "nothing holds it near the start, so it goes slower than DPO"),
    ),
    "grpo": ObjectiveRules(
        "reinforcement: the model's own answers, graded against each other",
        {
            "rewards": (None, "what an answer is worth"),
            "num_samples": defaults.NUM_SAMPLES,
            "temperature": defaults.TEMPERATURE,
            "max_new_tokens": defaults.DRAWN_TOKENS,
            "kl_weight": defaults.KL_WEIGHT,
            "divide_by_spread": defaults.DIVIDE_BY_SPREAD,
            "loss_weighting": defaults.LOSS_WEIGHTING,
        },
        ("chat", "prompt_completion", "alpaca", "sharegpt"),
        learning_rate_factor=(0.2, "gradients of a few drawn answers are noisy: a fifth of the rate of given ones"),
        required=("rewards",),
        takes_dropout=False,
        needs_adapter_for="kl_weight",
    ),
}


_INSTEAD: Final[Mapping[Shape, str]] = {
    "preference": "choose objective: {name: dpo} (or ipo, orpo, simpo, kto); to learn chosen answers alone, map the "
    "field: completion=chosen",
    "unpaired": "choose objective: {name: kto}; as plain pairs, bad answers would be learned too: if that is meant, "
    "map the field: completion=completion",
}


def rules_of(name: str) -> ObjectiveRules:
    """The rules of an objective. Raises NotFoundError for a name that no table knows, or a plug-in without rules."""
    if name in RULES:
        return RULES[name]
    for entry in entry_points(group=OBJECTIVE_ENTRY_POINTS):
        if entry.name == name:
            rules = getattr(entry.load(), "rules", None)
            if isinstance(rules, ObjectiveRules):
                return rules
            raise NotFoundError(
                f"objective {name!r} ({entry.value}) has rules={rules!r}",
                expected="an attribute `rules` of type luthier.ml.planning.objectives.ObjectiveRules",
                do="ask the author of the package that brings it",
            )
    raise NotFoundError(f"objective {name!r}", expected=f"one of {', '.join(OBJECTIVES)}", do="correct objective.name")


def learning_rate(name: str, of_method: tuple[float, str]) -> tuple[float, str]:
    """The default rate under an objective and why, from that of the method."""
    factor = rules_of(name).learning_rate_factor
    if factor is None:
        return of_method
    return float(f"{of_method[0] * factor[0]:.6g}"), factor[1]


def check_shape(recipe: ObjectiveRecipe | None, shape: Shape) -> None:
    """Raise RecipeError for rows that the objective cannot learn from; what could is in the error."""
    name = recipe.name if recipe else "sft"
    if shape not in rules_of(name).shapes:
        usual = "give it such rows, or choose another objective"
        if rules_of(name).packs:
            usual = "choose objective: {name: sft}, which learns the answers of such rows, or give rows with `text`"
            usual += "; the texts alone of rows with a label: data: {columns: {text: text}}"
        raise RecipeError(
            f"objective {name} with {shape} rows",
            expected=f"rows of shape {', '.join(rules_of(name).shapes)}",
            do=_INSTEAD.get(shape, usual) if name == "sft" else usual,
        )


def resolve_objective(
    recipe: ObjectiveRecipe | None, shape: Shape, sources: Sources, *, teacher: TeacherPlan | None = None
) -> ObjectivePlan:
    """The objective's part of a plan. shape: of the training rows. teacher: the one that the recipe names, found.

    Raises RecipeError for settings that the objective does not take, and for rows that it cannot learn from.
    """
    asked = recipe or ObjectiveRecipe(name="sft")
    rules = rules_of(asked.name)
    sources.note("objective.name", "asked" if recipe else "default", rules.title)
    given = {k: v for k, v in asked.model_dump(exclude={"name", "options"}).items() if v is not None}
    if rules.needs_teacher:
        named = given.pop("teacher", None)
        sources.note("objective.teacher", "asked", _teacher_in_words(asked.name, named, teacher))
    if unknown := sorted(set(given) - set(rules.settings)):
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
    values = {
        name: sources.pick(f"objective.{name}", given.get(name), default) for name, default in rules.settings.items()
    }
    if asked.name == "sft":
        _check_weighting(values["loss_weighting"], values["label_smoothing"])
    if "router_aux_loss" in values:
        del values["router_aux_loss"]
        sources.found.pop("objective.router_aux_loss", None)
    if "teacher_share" in values:
        values["teacher_share"] = _teacher_share(values["divergence"], values["teacher_share"], sources)
    return ObjectivePlan(name=asked.name, options=asked.options or {}, teacher=teacher, **values)


def _check_weighting(weighting: str, smoothing: float) -> None:
    """Raise RecipeError for a weighting that answers of rows do not have, or that cannot be smoothed."""
    if weighting == "fixed":
        raise RecipeError(
            "objective sft with objective.loss_weighting fixed",
            expected="token (every learned token counts the same) or sample (every row does)",
            do="choose one of them: a fixed divisor is for drawn answers (grpo)",
        )
    if weighting == "sample" and smoothing:
        raise RecipeError(
            f"objective.loss_weighting sample with objective.label_smoothing {smoothing:g}",
            expected="one of the two: the smoothed loss is summed over tokens, not row by row",
            do="remove one of them",
        )


def fitted_method(recipe: MethodRecipe | None, asked: ObjectiveRecipe | None) -> MethodRecipe | None:
    """The method as the objective can use it: without dropout where answers are drawn, which are drawn without any.

    Raises RecipeError where dropout is asked for, and for full fine-tuning where what is trained must lie beside.
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
    if rules.takes_dropout or "dropout" not in method_rules(method.name).settings:
        return recipe
    if method.dropout:
        raise RecipeError(
            f"objective {asked.name if asked else 'sft'} with method.dropout {method.dropout:g}",
            expected="0: answers are drawn without dropout, and must be learned by the model that wrote them",
            do="remove method.dropout",
        )
    return method.model_copy(update={"dropout": 0.0})


def _teacher_in_words(objective: str, named: str | None, teacher: TeacherPlan | None) -> str:
    if named is None or teacher is None:
        raise RecipeError(
            f"objective {objective} without a teacher",
            expected="objective.teacher: a base model, a folder, or a run that has succeeded",
            do="add it, for example: objective: {name: distillation, teacher: qwen2.5-1.5b-instruct}",
        )
    learned_mb = teacher.hidden_size * (2 if teacher.precision == "bfloat16" else 4) / 1e6 * 1000
    return (
        f"{named}: {teacher.num_parameters:,} parameters in {teacher.precision}, asked once before training; "
        f"{learned_mb:.2g} MB are kept for every 1,000 learned tokens"
    )


def _teacher_share(divergence: str, share: float | None, sources: Sources) -> float | None:
    if divergence == "jensen_shannon":
        return sources.pick("objective.teacher_share", share, _TEACHER_SHARE)
    if share is not None:
        raise RecipeError(
            f"objective.teacher_share {share:g} with divergence {divergence}",
            expected="divergence: jensen_shannon, the only one with a mixture",
            do="remove objective.teacher_share, or set objective.divergence: jensen_shannon",
        )
    sources.found.pop("objective.teacher_share", None)
    return None
