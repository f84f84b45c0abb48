"""Defaults of a recipe, each with its reason, and where each value of a plan comes from.

Methods, objectives and optimizers declare their own defaults. `Provenance` is filled while the plan is made.
"""

from __future__ import annotations

from typing import Final, TypeVar

from luthier.core.defaults import NEW_TOKENS, NUM_JUDGED, NUM_SHOTS
from luthier.core.evaluation_plan import MetricName
from luthier.core.plan import Source, ValueSource
from luthier.core.recipe import ScheduleName
from luthier.core.task_head import TaskHead

EPOCHS: Final = (2.0, "two passes; validation picks the best step of them")
GLOBAL_BATCH_SIZE: Final = (16, "steady gradients and still many steps on a few hundred rows")
SMALL_BATCH_SIZE: Final = (8, "16 would make fewer than 100 steps: 8 take the same time and end at a lower loss")
"""Of LoRA on a CPU; it divides the usual size. Measured in runs of 20 and 60 steps of 16 rows (docs/benchmarks.md)."""
FEW_STEPS: Final = 100
"""Steps of the usual size below which the small one is taken, and the learning rate of short runs."""
SHORT_RUN_FACTOR: Final = (1.5, "short runs end at a lower loss with half as much again")
"""Of the default learning rate of LoRA; Schulman et al. (2025, "LoRA Without Regret") found the same for some 100
steps. Measured on six tasks (docs/benchmarks.md)."""
OPTIMIZER: Final = ("adamw", "steady with every method; with an adapter its moments are a small part of the memory")
SCHEDULE: Final[tuple[ScheduleName, str]] = ("cosine", "falls slowly, then fast, then slowly: the last steps settle")
MIN_LR_RATIO: Final = (0.0, "the rate falls towards 0: the last steps settle")
WARMUP_FRACTION: Final = (0.03, "the first updates of Adam rest on few gradients and should be small")
WEIGHT_DECAY: Final = (0.0, "with an adapter, rank and dropout already limit the weights")
CLIP_GRADIENT_NORM: Final = (1.0, "one unusual batch cannot move the weights far")
NEFTUNE_ALPHA: Final = (0.0, "off: no noise on the embeddings; 5 to 15 is usual (docs/regularisation.md)")
AVERAGE_DECAY: Final = (0.999, 0.5, 10)
"""Most and least decay of an average of the weights, and what share of the steps (one in ten) it looks back over."""
AVERAGED_SHARE: Final = 0.25
"""The last share of the steps that a uniform average goes over (Izmailov et al., 2018, section 5)."""
REPLAY_FRACTION: Final = (0.1, "a few percent keep most of what was known (docs/regularisation.md)")
REPLAY_HELD_OUT: Final = (0.1, "general rows that are never trained on, to measure what is forgotten")
LONGEST_TEXT: Final = "the longest text that the base model reads, as its files say"
BLOCK_TOKENS: Final = (2048, "a block of texts fills a micro-batch of a CPU; longer ones show the model longer texts")
OVERLONG: Final = ("error", "rows are never cut or left out unless you say so")
SHARED_PREFIX: Final = (
    True,
    "a prefix that the examples of a micro-batch share is computed once: the same gradients, less work",
)
SHARDING: Final = (
    "auto",
    "of several devices each holds a copy (ddp), or a share (fsdp) where a copy would not fit",
)
ORDER: Final = ("by_length", "rows of like length share a step: little padding; order stays random between steps")
ORDER_COMPARED: Final = ("shuffled", "rows of a step are compared with one another: chance decides which ones meet")
ORDER_PACKED: Final = ("shuffled", "packed rows need no others of similar length next to them")
CHECKPOINT_EVERY_STEPS: Final = (50, "a crash costs at most this many steps")
KEEP_CHECKPOINTS: Final = (2, "the last and the one before, in case the last is damaged; the best is kept as well")
PATIENCE: Final = (3, "three validations in a row without a new best are no accident")
NUM_VALIDATIONS: Final = 10
SEED: Final = (0, "any number; the same seed gives the same run")
METRICS: Final = (("perplexity", "rouge", "bleu", "exact_match"), "likelihood, overlap and equality, side by side")
OTHER_SCRIPT_METRICS: Final[tuple[tuple[MetricName, ...], str]] = (
    ("perplexity", "chrf", "bleu", "exact_match"),
    "most letters of the answers are none of a-z, and ROUGE sees no others: chrF compares characters",
)
LIKELIHOOD_METRICS: Final = (
    ("perplexity", "bits_per_byte"),
    "not every held-out row has a prompt and an answer as text, only a likelihood",
)
PREFERENCE_METRICS: Final[tuple[tuple[MetricName, ...], str]] = (
    ("reward_accuracy", "preference_accuracy", "preference_margin", "perplexity"),
    "which side gained, which is more likely, and by how much; perplexity is that of the chosen side",
)
SEARCH_METRICS: Final[tuple[tuple[MetricName, ...], str]] = (
    ("ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr"),
    "documents are ranked, and no text is written",
)
LABEL_METRICS: Final[tuple[tuple[MetricName, ...], str]] = (
    ("exact_match",),
    "answers are one label each, given by a head: only an exact match counts",
)
NUMBER_METRICS: Final[tuple[tuple[MetricName, ...], str]] = (
    ("nmae", "exact_match"),
    "answers are one number each, given by a head: what counts is how far they are off",
)
FEW_SHOT: Final = (NUM_SHOTS, "the plain alternative to tuning: a few examples in the prompt")
PROMPT_VARIANTS: Final = (
    "few_shot_draws",
    "few_shot_nearest",
    "instruction",
    "instruction_with_examples",
    "optimised_prompt_tokens",
    "reflection_model",
    "reflection_parameters",
)
"""Fields of a plan's evaluation that say in which ways the base model is prompted."""
MAX_NEW_TOKENS: Final = (NEW_TOKENS, "longer answers are cut and counted as cut")
SAMPLE_PROMPTS: Final = (0, "off: answers at each checkpoint take time; 5 shows how the model changes")
MAX_SAMPLES: Final = (NUM_JUDGED, "keeps evaluation to minutes on a CPU; raise it to narrow the intervals")
MICRO_BATCH_TOKENS_CPU: Final = 2048
CUT_STEP_TOKENS: Final = (1024, 1536)
"""Tokens of a micro-batch of embeddings on a CPU in steps of more tokens than the second: with their padding, those do
not fit into one usual micro-batch, and a step in one is computed once."""
CUT_STEP_REASON: Final = "a step in parts computes each twice, however many they are; smaller ones take less memory"
MICRO_BATCH_TOKENS_GPU: Final = 16384


T = TypeVar("T")


class Provenance:
    """Collects the source of each value while the plan is made."""

    def __init__(self) -> None:
        self.found: dict[str, ValueSource] = {}

    def note(self, name: str, source: Source, why: str) -> None:
        """Write down where the value of that dotted name comes from."""
        self.found[name] = ValueSource(source=source, why=why)

    def pick(self, name: str, asked: T | None, default: tuple[T, str]) -> T:
        """The asked value where there is one, else the default; noted either way."""
        if asked is not None:
            self.note(name, "asked", "in the recipe")
            return asked
        self.note(name, "default", default[1])
        return default[0]

    def in_order(self, sections: tuple[str, ...]) -> dict[str, ValueSource]:
        """All that was noted, section by section, each in the order it was noted in."""
        # The sort is stable: within a section the order of noting stays.
        return dict(sorted(self.found.items(), key=lambda item: sections.index(item[0].partition(".")[0])))


def why_length(head: TaskHead | None, *, is_packed: bool) -> str:
    """Why rows have at most the length that they have where the recipe names none.

    Args:
        head: of the model; None for text.
        is_packed: whether texts fill blocks.
    """
    if is_packed:
        return BLOCK_TOKENS[1]
    return "the context length of the base model" if head is None or head.max_tokens is None else LONGEST_TEXT
