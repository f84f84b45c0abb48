"""What is used where the recipe is silent, each with its reason."""

from __future__ import annotations

from typing import Final

from luthier.core.recipe import MetricName
from luthier.ml.inference.models.answer_lengths import USUAL_TOKENS

LORA_RANK: Final = (16, "enough for style, format and narrow tasks; 8 to 64 is usual")
LORA_DROPOUT: Final = (0.1, "guards small data sets against learning by heart; 0 to 0.3 is usual")
LORA_TARGETS: Final = ("all-linear", "adapters on every matrix learn more at the same rank than on attention alone")
RSLORA_ALPHA: Final = (8.0, "with the square root of rank 16 it makes LoRA's usual scale of 2")
LEARNING_RATE_RATIO: Final = (16.0, "B learns best well above A's rate (Hayou et al., 2024, arXiv:2402.12354)")
NUM_SVD_ITERATIONS: Final = (16, "a randomised SVD, exact to a few digits in a fraction of the time; 0: the exact one")
ADALORA_TARGET_RANK: Final = (16, "the average rank at the end: as many ranks as LoRA has by default")
ORTHOGONALITY_WEIGHT: Final = (0.5, "keeps the ranks of a matrix apart; 0.1 to 0.5 is usual")
IMPORTANCE_SMOOTHING: Final = (0.85, "importance of one step alone is noise (Zhang et al., 2023, section 3.2)")
NUM_VIRTUAL_TOKENS: Final = (20, "longer prompts hardly help beyond 20 (Lester et al., 2021, section 3.2)")
NUM_SAMPLES: Final = (8, "fewer make the group's mean a poor measure; 16 and more cost as many times the drawing")
TEMPERATURE: Final = (1.0, "answers are drawn as the model gives them: the gradient is that of what it really writes")
DRAWN_TOKENS: Final = (128, "longer answers are cut, learned from as they are, and counted as cut")
KL_WEIGHT: Final = (
    0.0,
    "rewards are rules, hard to deceive: nothing holds the model near where it began (arXiv:2503.14476, section 2.3)",
)
DIVIDE_BY_SPREAD: Final = (True, "GRPO as published: easy and hard prompts teach alike (arXiv:2402.03300)")
ANSWER_WEIGHTING: Final = ("token", "every learned token counts the same; sample: every row does, however long it is")
LOSS_WEIGHTING: Final = ("token", "every token counts the same, in long answers too (arXiv:2503.14476, section 3.3)")
EPOCHS: Final = (2.0, "two passes; validation picks the best step of them")
GLOBAL_BATCH_SIZE: Final = (16, "steady gradients and still many steps on a few hundred rows")
LORA_LEARNING_RATE: Final = (5e-4, "the usual rate for adapters")
LORAPLUS_LEARNING_RATE: Final = (1.25e-4, "of A; B moves faster by method.learning_rate_ratio")
ADALORA_LEARNING_RATE: Final = (2.5e-3, "singular values start at zero and learn slower than LoRA's B")
FROM_BASE_LEARNING_RATE: Final = (2e-4, "the largest directions of the base move at once, which wants smaller steps")
IA3_LEARNING_RATE: Final = (3e-3, "few parameters, each a factor near 1 (Liu et al., 2022, arXiv:2205.05638)")
PROMPT_LEARNING_RATE: Final = (1e-2, "nothing but the prompt moves")
FULL_LEARNING_RATE: Final = (5e-5, "the usual rate when every weight moves: a tenth of an adapter's")
OPTIMIZER: Final = ("adamw", "steady with every method; with an adapter its moments are a small part of the memory")
SCHEDULE: Final = ("cosine", "falls slowly, then fast, then slowly: the last steps settle")
WARMUP_FRACTION: Final = (0.03, "the first updates of Adam rest on few gradients and should be small")
WEIGHT_DECAY: Final = (0.0, "with an adapter, rank and dropout already hold the weights back")
CLIP_GRADIENT_NORM: Final = (1.0, "one strange batch cannot throw the weights far")
LABEL_SMOOTHING: Final = (0.0, "off: the answers count as given; 0.05 to 0.2 is usual (docs/regularisation.md)")
NEFTUNE_ALPHA: Final = (0.0, "off: no noise on the embeddings; 5 to 15 is usual (docs/regularisation.md)")
AVERAGE_DECAY: Final = (0.999, 0.5, 10)
"""Most and least decay of an average of the weights, and what share of the steps (one in ten) it looks back over."""
AVERAGED_SHARE: Final = 0.25
"""The last share of the steps that a uniform average goes over (Izmailov et al., 2018, section 5)."""
REPLAY_FRACTION: Final = (0.1, "a few percent keep most of what was known (docs/regularisation.md)")
REPLAY_HELD_OUT: Final = (0.1, "general rows that are never trained on, to measure what is forgotten")
BLOCK_TOKENS: Final = (2048, "a block of texts fills a micro-batch of a CPU; longer ones show the model longer texts")
OVERLONG: Final = ("error", "rows are never cut or left out unless you say so")
SHARED_PREFIX: Final = (
    True,
    "a beginning that the examples of a micro-batch share is computed once: the same gradients, less work",
)
SHARDING: Final = (
    "auto",
    "of several devices each holds a copy (ddp), or a share (fsdp) where a copy would not fit",
)
ORDER: Final = ("by_length", "rows of like length share a step: little padding; order stays random between steps")
ORDER_PACKED: Final = ("shuffled", "rows that lie end to end need no others of like length beside them")
CHECKPOINT_EVERY_STEPS: Final = (50, "a kill costs at most this many steps")
KEEP_CHECKPOINTS: Final = (2, "the last and the one before, in case the last is damaged; the best is kept besides")
PATIENCE: Final = (3, "three validations in a row without a new best are no accident")
NUM_VALIDATIONS: Final = 10
SEED: Final = (0, "any number; the same seed gives the same run")
METRICS: Final = (("perplexity", "rouge", "bleu", "exact_match"), "likelihood, overlap and equality, side by side")
LIKELIHOOD_METRICS: Final = (
    ("perplexity", "bits_per_byte"),
    "not every held-out row has a prompt and an answer in words, only a likelihood",
)
PREFERENCE_METRICS: Final[tuple[tuple[MetricName, ...], str]] = (
    ("reward_accuracy", "preference_accuracy", "preference_margin", "perplexity"),
    "which side has gained, which is likelier, and by how much; perplexity is of the chosen side",
)
FEW_SHOT: Final = (4, "the plain alternative to tuning: a few examples in the prompt")
MAX_NEW_TOKENS: Final = (USUAL_TOKENS, "longer answers are cut and counted as cut")
MAX_SAMPLES: Final = (200, "keeps judging to minutes on a CPU; raise it to narrow the intervals")
MICRO_BATCH_TOKENS_CPU: Final = 2048
MICRO_BATCH_TOKENS_GPU: Final = 16384
