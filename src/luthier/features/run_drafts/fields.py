"""The fields of the form of a new run: what each is called, and what can be entered.

Kind and choices of a field follow from the type that `core/recipe.py` declares for its key. A setting of a method or an
objective that is not described here has a field all the same, named after its key. Keys without a field are in
`YAML_ONLY`, each with the reason.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from luthier.core.aliases import new_key, stored_key
from luthier.core.dataset import Shape
from luthier.core.recipe import Recipe
from luthier.core.registry import METHODS, OBJECTIVES, OPTIMIZERS
from luthier.features.recipes.file import inner_spec
from luthier.ml.training.objectives.rules import LOSS_TYPES

Kind = Literal["number", "choice", "list", "value", "line", "text", "file"]
DECIDED: Final = "decided for you"


@dataclass(frozen=True, slots=True)
class SelectOption:
    """One of several values.

    Attributes:
        name: In the recipe, as YAML writes it.
        title: What people call it.
        words: What it means to choose it.
    """

    name: str
    title: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a recipe.

    Attributes:
        name: Its dotted key.
        label: Before the field.
        hint: Text next to it.
        low: Where its slider begins; it has none where both ends are 0.
        high: Where its slider ends.
        scale: How far the slider moves a value.
        step: Of the slider; without meaning on a logarithmic scale.
        unit: Behind the value.
        kind: What is entered: a number, one of `options`, a list, a number or a word, a line, a text of several lines,
            or a file of the project.
        options: Of a choice: its values.
        unset: What an empty field means.
        is_usual: Whether it is shown directly, and not only among the further settings.
    """

    name: str
    label: str
    hint: str = ""
    low: float = 0.0
    high: float = 0.0
    scale: Literal["linear", "log2", "log10"] = "linear"
    step: float = 1.0
    unit: str = ""
    kind: Kind = "number"
    options: tuple[SelectOption, ...] = ()
    unset: str = DECIDED
    is_usual: bool = True

    @property
    def key(self) -> str:
        """Of its element in a page."""
        return self.name.replace(".", "-")

    def shown(self, value: Any) -> str:
        """A value of the recipe as its element holds it; empty for none."""
        if value is None:
            return ""
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value))
        # YAML writes true and false in small letters.
        return str(value).lower() if isinstance(value, bool) else str(value)


def leaf_types(name: str) -> tuple[Any, ...]:
    """The types that a recipe may hold at a dotted key, without None; empty for a section, whose keys are leaves."""
    kind: Any = Recipe
    annotation: Any = None
    for part in stored_key(name).split("."):
        annotation = kind.model_fields[part].annotation
        kind = inner_spec(annotation)
    return () if kind is not None else tuple(_parts(annotation))


def _parts(annotation: Any) -> Iterable[Any]:
    if get_origin(annotation) is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    elif annotation is not types.NoneType:
        yield annotation


def _field(name: str, label: str, hint: str = "", words: Mapping[str, str] | None = None, **_rest: Any) -> Field:
    """A field whose kind and choices follow from the type of its key. words: its choices, where they have titles."""
    found = leaf_types(name)
    values = [str(value) for part in found if get_origin(part) is Literal for value in get_args(part)]
    others = [part for part in found if get_origin(part) is not Literal]
    kind: Kind = "number"
    if others == [bool]:
        kind, values = "choice", [*values, "true", "false"]
    elif values:
        kind = "value" if others else "choice"
    elif any(get_origin(part) is tuple for part in others):
        kind = "list"
    elif str in others:
        kind = "line"
    titles = words or {value: _TITLES.get(value, value.replace("_", " ")) for value in values}
    options = tuple(SelectOption(*item) for item in titles.items()) if kind == "choice" else ()
    return replace(Field(name, label, hint, kind=kind, options=options), **_rest)


_TITLES: Final = {"true": "yes", "false": "no", "auto": "automatic"}
_NONE: Final = "none"

EPOCHS: Final = _field("training.epochs", "Epochs", "passes over the training rows", low=0.5, high=10, step=0.5)
LEARNING_RATE: Final = _field(
    "training.learning_rate", "Learning rate", "how far a step moves the weights", low=1e-6, high=1e-2, scale="log10"
)
BATCH: Final = _field("training.global_batch_size", "Batch size", "examples a step", low=1, high=256, scale="log2")
LENGTH: Final = _field(
    "training.max_length_tokens", "Longest row", "in tokens; longer ones are refused", low=64, high=32768,
    scale="log2",
)  # fmt: skip
MAIN: Final = (EPOCHS, LEARNING_RATE, BATCH, LENGTH)
MORE: Final = (
    _field("training.max_steps", "Steps", "at most", unset="by epochs"),
    _field(
        "training.lr_schedule",
        "Learning rate schedule",
        words={
            "cosine": "falls slowly, fast, slowly (cosine)",
            "linear": "falls evenly (linear)",
            "constant": "constant",
        },
    ),
    _field("training.warmup_fraction", "Warm-up", "share of the steps", high=0.3, step=0.01),
    _field("training.weight_decay", "Weight decay", "pulls weights towards 0", high=0.3, step=0.01),
    _field("training.max_grad_norm", "Maximum gradient norm", "larger ones are clipped", high=10, step=0.1),
    _field("training.early_stopping_patience", "Patience", "validations without a gain; 0: never stop early", high=10),
    _field("training.neftune_alpha", "NEFTune noise", "on the embeddings; 0: none", high=15),
    _field(
        "training.average.kind",
        "Average of the weights",
        "instead of the last ones",
        {"ema": "exponential moving average", "uniform": "mean of the last quarter of the steps"},
        unset=_NONE,
    ),
    _field(
        "training.on_overlong",
        "Rows that are too long",
        words={"error": "refuse them", "drop": "leave them out", "truncate": "cut them"},
    ),
    _field(
        "training.batch_order",
        "Order of the rows",
        words={"by_length": "by length: little padding", "shuffled": "shuffled", "as_given": "as they are given"},
    ),
    _field("training.seed", "Seed", "the same seed gives the same run"),
)
MACHINE: Final = (
    _field("training.precision", "Precision", "number format of matrix products"),
    _field("training.micro_batch_tokens", "Tokens per micro-batch", "changes only memory and speed"),
    _field("training.micro_batch_workers", "Workers", "on a CPU: parallel processes; a number, or auto"),
    _field("training.gradient_checkpointing", "Recompute activations", "less memory, more time"),
    _field("training.packing", "Packing", "rows end to end, without padding"),
    _field("training.compile", "Compile", "of the layers by torch, before the first step"),
    _field("training.numba_kernels", "Compiled loops", "on a CPU: elementwise work in loops compiled by Numba"),
    _field("training.shared_prefix", "Shared prefixes", "computed once for the rows that share them"),
    _field(
        "training.sharding",
        "Several devices",
        words={"auto": "automatic", "ddp": "a copy of the weights each (DDP)", "fsdp": "a share of them each (FSDP)"},
    ),
    _field("training.num_threads", "Threads", "of the processor"),
    _field("training.validate_every_steps", "Validate every", unit="steps"),
    _field("training.checkpoint_every_steps", "Checkpoint every", unit="steps"),
    _field("training.keep_checkpoints", "Checkpoints kept", "in addition to the best"),
)
ROWS: Final = (
    _field(
        "data.group_by", "Groups", "a column, such as the customer: equal values stay on one side",
        unset="equal rows stay on one side",
    ),
    _field("data.split_seed", "Seed of the split", unset="as the run's"),
    _field(
        "data.template",
        "Chat template",
        words={"auto": "chat where the model has one", "chat": "chat", "plain": "texts in order"},
    ),
    _field(
        "data.learn_reasoning",
        "Thoughts",
        "before answers",
        {"true": "learn them, empty ones too", "false": "do not learn them"},
        unset="learn those of the rows",
    ),
    _field(
        "data.reasoning",
        "Thoughts without a place in the template",
        words={"as_text": "write them before the answer", "drop": "leave them out"},
        unset="refuse such rows",
    ),
    _field(
        "data.system",
        "System texts without a place in the template",
        words={"fold": "put them before the first message of the user"},
        unset="refuse such rows",
    ),
    _field(
        "data.tools",
        "Tools without a place in the template",
        words={"as_text": "write tools, calls and results as text"},
        unset="refuse such rows",
    ),
    _field(
        "data.reset_template",
        "Templates that rewrite earlier turns",
        words={"training": "train on all answers in one sequence"},
        unset="one sequence an answer",
    ),
    _field(
        "data.allow_leakage", "Held-out rows among the training rows",
        words={"true": "continue; the verdict notes it", "false": "refuse"}, unset="refuse",
    ),
    _field("data.replay.file", "General rows", "trained with yours, against forgetting", kind="file", unset=_NONE),
    _field("data.replay.fraction", "Share of general rows", "of each step", high=0.5, step=0.01),
    _field(
        "data.streaming",
        "Rows larger than the disk",
        words={"true": "read them while the run trains", "false": "read all of them before"},
        unset="read all of them before",
    ),
    _field("data.shuffle_buffer", "Rows shuffled at a time", "of rows read while the run trains", unset="10,000"),
    _field("data.canaries.num", "Planted secrets", "to measure what is memorised", unset=_NONE),
    _field("data.canaries.seed", "Seed of the secrets", unset="0"),
)  # fmt: skip
JUDGING: Final = (
    _field("evaluation.good_enough.value", "Good enough", "the figure to reach, such as 0.9", unset="not required"),
    _field("evaluation.good_enough.metric", "Its metric", "such as label_accuracy", unset="that of the verdict"),
    _field(
        "evaluation.good_enough.agreement", "Or as often as two people agree",
        "the column with a second person's answers", unset="not required",
    ),
    _field(
        "evaluation.metrics", "Metrics",
        "such as rouge, exact_match; the rows decide which one the verdict is about",
    ),
    _field("evaluation.max_samples", "Rows evaluated", "at most"),
    _field("evaluation.max_new_tokens", "Longest answer", "in tokens"),
    _field("evaluation.max_thinking_tokens", "Longest thought", "in tokens"),
    _field("evaluation.few_shot", "Examples", "in the prompt of the base model; 0: not evaluated", high=16),
    _field("evaluation.few_shot_draws", "Draws of examples", "their mean counts", low=1, high=16),
    _field("evaluation.few_shot_nearest", "Nearest rows as examples", "for the base model"),
    _field("evaluation.instruction", "Derived instruction", "for the base model"),
    _field(
        "evaluation.optimised_prompt.budget_tokens", "Search for its best prompt",
        "tokens at most; 0: no search",
    ),
    _field(
        "evaluation.optimised_prompt.reflection_model", "Model that writes instructions",
        "a base model or a run", unset=_NONE,
    ),
    _field("evaluation.reference_run", "Earlier run", "its id: evaluated with the new one", unset=_NONE),
    _field("evaluation.sample_prompts", "Sample prompts", "answered at each checkpoint; 0: none", low=0, high=20),
)  # fmt: skip
BUDGET: Final = (
    _field("budget.hours", "Hours", "at most", unit="h", unset="no cap"),
    _field("budget.usd", "Money", "at most", unit="USD", unset="no cap"),
    _field("budget.energy_kwh", "Energy", "at most", unit="kWh", unset="no cap"),
    _field("budget.tokens", "Tokens", "trained at most", unset="no cap"),
)

_OF_METHODS: Final = (
    _field("method.rank", "Rank", "capacity of the adapter", low=1, high=256, scale="log2"),
    _field("method.target_rank", "Average rank at the end", "capacity of the adapter", low=1, high=256, scale="log2"),
    _field("method.alpha", "Alpha", "scale of the adapter", low=1, high=512, scale="log2"),
    _field("method.dropout", "Dropout", "share of the adapter's inputs", high=0.5, step=0.01),
    _field("method.learning_rate_ratio", "Learning rate ratio", "B over A", low=1, high=64, scale="log2"),
    _field("method.num_virtual_tokens", "Virtual tokens", "length of the prompt", low=1, high=128, scale="log2"),
    _field(
        "method.quantisation",
        "Frozen base",
        words={"auto": "automatic", "nf4": "in 4 bits (nf4)", "int8": "in 8 bits (int8)", "bfloat16": "in bfloat16"},
    ),
    _field("method.targets", "Matrices", "names, groups or patterns", is_usual=False),
    _field("method.layers.first", "First layers", "how many", unset="every layer", is_usual=False),
    _field("method.layers.last", "Last layers", "how many", unset="every layer", is_usual=False),
    _field("method.modules_to_save", "Fully trained", "names of embeddings and head", unset="none", is_usual=False),
)
_NLL_OVER: Final = {"all": "prompt and answer", "answer": "the answer alone"}
_BY_SAMPLE: Final = {"token": "each token of the answers", "sample": "each conversation, however long"}
_OF_OBJECTIVES: Final = (
    _field("objective.beta", "Beta", "how strongly the model is kept near its start", low=0.01, high=5, scale="log10"),
    _field("objective.loss_type", "Loss of a pair", words=LOSS_TYPES),
    _field("objective.gamma", "Margin", "half of beta is usual", high=5, step=0.1),
    _field("objective.label_smoothing", "Label smoothing", "0: labels count as given", high=0.4, step=0.01),
    _field("objective.nll_over", "Learned with the preference", words=_NLL_OVER),
    _field("objective.nll_weight", "Weight of the chosen answer", "beside the preference", high=2, step=0.1),
    _field(
        "objective.desirable_weight", "Weight of desired answers", "raise that of the rarer kind", high=4, step=0.1
    ),
    _field("objective.undesirable_weight", "Weight of unwanted answers", high=4, step=0.1),
    _field("objective.alpha", "Share of the teacher", "1: only the teacher", high=1, step=0.05),
    _field(
        "objective.divergence",
        "Divergence from the teacher",
        words={
            "forward_kl": "forward KL: covers all that the teacher may say",
            "reverse_kl": "reverse KL: follows the teacher's most likely tokens",
            "jensen_shannon": "Jensen-Shannon: between both",
        },
    ),
    _field("objective.teacher_share", "Teacher in the mixture", "Jensen-Shannon only", low=0.1, high=0.9, step=0.05),
    _field("objective.num_generations", "Answers per prompt", "graded as a group", low=2, high=64, scale="log2"),
    _field(
        "objective.max_new_tokens", "Longest answer", "in tokens; longer ones are cut", low=8, high=2048,
        scale="log2",
    ),
    _field("objective.num_iterations", "Updates per step", "with the same answers", low=1, high=16, is_usual=False),
    _field("objective.temperature", "Temperature", "of sampling", low=0.1, high=2, step=0.1),
    _field("objective.kl_coef", "KL coefficient", "how strongly the model is kept near its start", high=1, step=0.01),
    _field(
        "objective.normalize_advantages", "Normalise advantages",
        words={"true": "yes: easy and hard prompts have equal weight", "false": "no"},
    ),
    _field("objective.mask_truncated", "Truncated answers", words={"false": "learned", "true": "not learned"}),
    _field("objective.multi_label", "Labels of a row", words={"false": "one", "true": "several: answers are lists"}),
    _field("objective.class_weights", "Equal weight for", words={"none": "every row", "balanced": "every class"}),
    _field("objective.center_rewards_coefficient", "Scores around 0", "0: only differences count", high=0.1, step=0.01),
    _field(
        "objective.pooling", "Vector of a text",
        words={"mean": "mean of the states of all tokens", "last": "state of the last token"},
    ),
    _field("objective.dimensions", "Dimensions", "shorter lengths to train as well, such as 256, 64"),
    _field("objective.query_prompt", "Query prompt", "put before each query", kind="text"),
    _field("objective.document_prompt", "Document prompt", "put before each document", kind="text"),
    _field(
        "objective.router_aux_loss", "Router loss", "mixtures of experts: off, model, or a number",
        is_usual=False,
    ),
)  # fmt: skip
_OF_SFT: Final = (
    _field("objective.loss_weighting", "Equal weight for", words=_BY_SAMPLE | {"dft": "each by its probability"}),
)
_OF_GRPO: Final = (
    _field(
        "objective.loss_weighting",
        "Equal weight for",
        words={"token": "each token", "sample": "each answer", "fixed": "each token, over a fixed length"},
    ),
)
_OF_TEACHER: Final = (
    _field("objective.temperature", "Temperature", "2 to 4 shows more of the teacher", low=0.5, high=5, step=0.1),
)
_OF_VECTORS: Final = (
    _field("objective.temperature", "Temperature", "similarities are divided by it", low=0.01, high=1, scale="log10"),
)
_BY_NAME: Final = {field.name: field for field in (*_OF_METHODS, *_OF_OBJECTIVES)}

YAML_ONLY: Final[Mapping[str, str]] = {
    **dict.fromkeys(("data.columns", "data.replay.columns"), "a mapping; usual names of columns are recognised"),
    "data.subset": "two numbers, for learning curves",
    "data.template_options": "a mapping, whose names depend on the model's chat template",
    "method.options": "a mapping, for methods of other packages",
    "objective.classes": "a list of labels, which may have blanks and commas in them",
    "objective.options": "a mapping, for objectives of other packages",
    "objective.rewards": "a list of metrics, graders and lengths with their weights",
    **{f"objective.clip_ratio_{end}": "only for several updates a step" for end in ("low", "high")},
    "training.min_lr_ratio": "for schedules that do not end at 0",
    "training.global_batch_tokens": "a number of tokens a step in place of the batch size",
    "training.warmup_steps": "a number of steps in place of the share",
    **{f"training.average.{name}": "for only one kind of average" for name in ("decay", "from_step", "every_steps")},
    **{
        f"training.optimizer.{name}": "each optimizer has its own settings"
        for name in ("beta1", "beta2", "epsilon", "momentum", "num_iterations", "adamw_rate_factor")
    },
    "training.optimizer.options": "a mapping, for optimizers of other packages",
    "tracking": "a list; without it, the server's environment decides where runs are reported to",
}
"""Keys that the form has no field for, and why; they are written in the recipe's text."""
SPLITS: Final = ("data.validation", "data.held_out", "data.replay.held_out")
"""Keys that take a file, or a share of the training rows (of the general rows, for those of the replay)."""
CHOSEN: Final = (
    "base_model", "data.train", "method.name", "objective.name", "objective.teacher", "training.optimizer.name",
)  # fmt: skip
"""Keys whose choices depend on the project or on installed packages."""
SECTIONS: Final[Mapping[str, Sequence[Field]]] = {
    "rows": ROWS,
    "main": MAIN,
    "more": MORE,
    "machine": MACHINE,
    "judging": JUDGING,
    "budget": BUDGET,
}
"""The fields that every run has."""
_FIRST_METHODS: Final = ("lora", "qlora", "full")


def methods() -> list[SelectOption]:
    """The methods to choose from, plug-ins last: the usual ones first, then in the order of their table."""
    found = [SelectOption(name, rules.title, rules.summary) for name, rules in METHODS.declarations().items()]
    # The sort is stable, so the others keep the order of their table.
    first = {name: place for place, name in enumerate(_FIRST_METHODS)}
    return sorted(found, key=lambda choice: first.get(choice.name, len(first)))


def objectives() -> list[SelectOption]:
    """The objectives to choose from, plug-ins last."""
    found = OBJECTIVES.declarations().items()
    return [SelectOption(name, rules.name or name, rules.summary or rules.title) for name, rules in found]


def optimizers() -> list[SelectOption]:
    """The optimizers to choose from, plug-ins last."""
    return [SelectOption(name, rules.title, rules.summary) for name, rules in OPTIMIZERS.declarations().items()]


def fitting(shape: Shape | None) -> set[str]:
    """The objectives that learn from rows of a shape; all where it is not known."""
    return {name for name, rules in OBJECTIVES.declarations().items() if shape is None or shape in rules.shapes}


def method_fields() -> dict[str, tuple[Field, ...]]:
    """The fields that each method takes."""
    return {name: _fields("method", rules.settings) for name, rules in METHODS.declarations().items()}


def objective_fields() -> dict[str, tuple[Field, ...]]:
    """The fields that each objective takes."""
    found = {}
    for name, rules in OBJECTIVES.declarations().items():
        own: tuple[Field, ...] = _OF_GRPO if "num_samples" in rules.settings else _OF_SFT
        # The temperature of drawing answers has another range than those of a teacher and of similarities.
        own += _OF_TEACHER if rules.needs_teacher else _OF_VECTORS if rules.task_head == "embed" else ()
        found[name] = _fields("objective", rules.settings, own)
    return found


def method_of(name: str | None) -> tuple[Field, ...]:
    """The fields that a method takes; those of LoRA where none is named, as the planner takes it then."""
    return method_fields().get(name or "lora", ())


def objective_of(name: str | None) -> tuple[Field, ...]:
    """The fields that an objective takes; those of SFT where none is named."""
    return objective_fields().get(name or "sft", ())


def all_fields() -> dict[str, Field]:
    """Every field that the form can show, by its key."""
    own = (*method_fields().values(), *objective_fields().values())
    return {field.name: field for section in (*SECTIONS.values(), *own) for field in section}


def _fields(section: str, settings: Iterable[str], own: Iterable[Field] = ()) -> tuple[Field, ...]:
    """The fields of settings, in their order; those of `own` win."""
    known = _BY_NAME | {field.name: field for field in own}
    keys = [key for name in settings for key in leaf_keys(f"{section}.{name}") if key not in YAML_ONLY]
    return tuple(known[key] if key in known else _unnamed(key) for key in keys)


def _unnamed(key: str) -> Field:
    """The field of a setting without a description: it is named after its key, and the plan explains it."""
    label = key.rpartition(".")[2].removeprefix("num_").replace("_", " ")
    return _field(key, label[:1].upper() + label[1:], is_usual=False)


def leaf_keys(name: str = "") -> list[str]:
    """The dotted keys of the values below a key of the recipe; empty for a setting that no key is named after."""
    return list(_leaf_keys(name))


@cache
def _leaf_keys(name: str) -> tuple[str, ...]:
    kind: Any = Recipe
    for part in stored_key(name).split(".") if name else ():
        if kind is None or part not in kind.model_fields:
            return ()
        kind = inner_spec(kind.model_fields[part].annotation)
    if kind is None:
        return (new_key(name),)
    inner = (new_key(f"{stored_key(name)}.{part}" if name else part) for part in kind.model_fields)
    return tuple(key for one in inner for key in _leaf_keys(one))
