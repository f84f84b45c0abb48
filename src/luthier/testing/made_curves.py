"""Made learning curves: a task whose loss after any share of any training is known, to try searches on by the hundred.

Not a model of a real task; its shapes are those that a search must cope with: the best learning rate lies anywhere in
the range, above it trainings diverge, a high rate looks bad until the schedule has brought it down (so that curves
cross), more epochs help until rows are learned by heart, most other settings hardly matter, and every measurement has
noise. Each seed is another task.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.digest import sha256_document
from luthier.core.workflows.study import ALPHA_OVER_RANK, Values

OWN: Final[Values] = {
    "training.learning_rate": 2e-4,
    "training.global_batch_size": 8,
    "training.epochs": 2,
    "training.schedule": "cosine",
    "training.warmup_fraction": 0.03,
    "training.weight_decay": 0.0,
    "method.name": "lora",
    "method.rank": 16,
    ALPHA_OVER_RANK: 2.0,
    "method.targets": "all-linear",
    "method.dropout": 0.05,
}
"""What the recipe as it came sets, on the plan of `testing.records`."""
START_LOSS: Final = 3.0


@dataclass(frozen=True, slots=True)
class MadeTask:
    """One task.

    Attributes:
        seed: decides the task.
        noise: standard deviation of a whole training's loss between seeds.
    """

    seed: int
    noise: float = 0.008

    def hours(self, values: Values) -> float:
        """What all steps of a training take, where the recipe's own takes 1."""
        own = OWN | values
        cost = float(own["training.epochs"]) / 2 * {"dora": 1.3}.get(str(own["method.name"]), 1.0)
        return cost * (0.95 if own["method.targets"] == "attention" else 1.0) * (1 + float(own["method.rank"]) / 640)

    def tokens(self, values: Values) -> float:
        """What it trains on, as a share of the recipe's own training."""
        return float((OWN | values)["training.epochs"]) / 2

    def curve(self, values: Values, shares: Sequence[float], *, repeat: int = 0) -> list[float]:
        """The validation loss after each share of this training. repeat: another seed of the same one."""
        # By the values themselves, so that one training has the same curve whichever search asks for it.
        noise = random.Random(sha256_document([self.seed, values, repeat]))  # noqa: S311
        level = noise.gauss(0, self.noise)
        return [self.truth(values, share) + level + noise.gauss(0, self.noise / 2) for share in shares]

    def truth(self, values: Values, share: float = 1.0) -> float:
        """The loss after a share of the training without noise."""
        own, drawn = OWN | values, _Drawn.of(self.seed)
        off = _rate(own) - drawn.best_rate  # in factors of ten
        epochs = float(own["training.epochs"]) * share
        # A higher rate learns faster, up to a little above the best one.
        speed = 10 ** (0.9 * min(off, 0.35))
        learned = 1 - (1 + 9 * drawn.pace * speed * epochs / 2) ** -0.9
        # Quadratic beside the optimum, then a steep wall: divergence.
        too_high = 0.5 * max(0.0, off - 0.15) ** 2 + (4.0 * (off - 0.8) if off > 0.8 else 0.0)
        # Noise of large steps, which goes as the schedule brings the rate down: curves of different rates cross.
        unrest = 0.10 * 10 ** (0.7 * min(off, 0.8)) * _rate_left(str(own["training.schedule"]), share)
        room = math.log2(drawn.needed_rank / float(own["method.rank"])) if own["method.rank"] else 0.0
        small = 0.02 * max(0.0, room) + drawn.narrow * (own["method.targets"] == "attention")
        against = 1 - 2.5 * float(own["method.dropout"]) - float(own["training.weight_decay"])
        # Overfitting sets in after a number of epochs, sooner at higher rates.
        by_heart = drawn.by_heart * max(0.0, epochs * speed - 1.6) ** 1.5 * max(0.2, against)
        slower = 0.12 * float(own["method.dropout"]) + 0.02 * (float(own["training.warmup_fraction"]) - 0.03) ** 2
        gain = (START_LOSS - drawn.floor) * learned
        small_things = small + slower + {"dora": -0.004}.get(str(own["method.name"]), 0.0)
        return float(START_LOSS - gain + (too_high + unrest + small_things) * min(1.0, 4 * share) + by_heart)


@dataclass(frozen=True, slots=True)
class _Drawn:
    best_rate: float
    pace: float
    floor: float
    needed_rank: float
    narrow: float
    by_heart: float

    @classmethod
    def of(cls, seed: int) -> _Drawn:
        draw = random.Random(seed)  # noqa: S311
        return cls(
            best_rate=math.log10(2e-4) + draw.uniform(-0.7, 0.8),
            pace=draw.uniform(0.5, 2.0),
            floor=draw.uniform(0.6, 1.4),
            needed_rank=2 ** draw.uniform(2, 6),
            narrow=draw.uniform(0.0, 0.06),
            by_heart=10 ** draw.uniform(-2.5, -0.7),
        )


def _rate(own: Values) -> float:
    """How far a step goes, as a power of ten: the rate, with what its scale and its batch do to it."""
    scale = (
        # rsLoRA scales by alpha / sqrt(rank): equal to a ratio of 2 at rank 16.
        2.0 * float(own["method.rank"]) ** 0.5 / 4 if own["method.name"] == "rslora" else float(own[ALPHA_OVER_RANK])
    )
    by_scale = 0.5 * math.log10(scale / 2.0)
    # The square-root rule: four times the batch allows twice the rate.
    by_batch = -0.5 * math.log10(float(own["training.global_batch_size"]) / 8)
    return math.log10(float(own["training.learning_rate"])) + by_scale + by_batch


def _rate_left(schedule: str, share: float) -> float:
    if schedule == "constant":
        return 1.0
    return 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
