"""The walk of one family through everything that a model meets here, each stage held against plain transformers.

    outcomes = walk("gpt_oss", work_folder)

A stage works, is refused before the plan says yes, is refused late, is silently wrong, or ends in an exception that is
none of ours; one that does not end is killed, and the stages after it are not run.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import torch
from tests.zoo.families import make_family
from tests.zoo.rows import ROWS

from luthier.core.errors import LuthierError, ModelSourceError, RequestError
from luthier.features.planning.service import Prepared
from luthier.features.training.service import TrainOutcome
from luthier.platform.home.context import Context

Status = Literal["works", "refused", "refused late", "wrong", "raw exception", "killed", "not run"]


class WrongError(AssertionError):
    """Luthier gave another result than plain transformers and PEFT."""


@dataclass(slots=True)
class Outcome:
    """How a stage of a family ended. path: by which way it works; reason: why it does not."""

    stage: str
    status: Status
    path: str = ""
    reason: str = ""
    seconds: float = 0.0
    measures: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The outcome as a plain document."""
        return asdict(self)


@dataclass(slots=True)
class Stage:
    """A stage under way: whether the plan has said yes, and what is found."""

    outcome: Outcome
    is_planned: bool = False

    def planned(self) -> None:
        """The plan has said yes: what is refused from here on is refused late."""
        self.is_planned = True

    def wrong(self, why: str) -> NoReturn:
        """What Luthier gave is not what it should be. Raises WrongError."""
        raise WrongError(why)

    def measured(self, name: str, value: float, most: float) -> None:
        """Keep a difference; raise WrongError where it is above the most that it may be."""
        self.outcome.measures[name] = max(value, self.outcome.measures.get(name, 0.0))
        if not value <= most:
            raise WrongError(f"{name} {value:.3g}, at most {most:.0e} may be")


class Walk:
    """One family's folder, home and outcomes. stages: those to take; None for all. runs: those that ended, by stage.

    plans: what was made of recipes, or why not, by method and rows. written: what transformers writes with the stirred
    adapter, by the tokens of the prompt.
    """

    def __init__(self, name: str, work: Path, stages: Sequence[str] | None = None) -> None:
        self.name, self.work, self.wanted = name, work, stages
        self.outcomes: list[Outcome] = []
        self.folder = work / "model"
        self.runs: dict[str, TrainOutcome] = {}
        self.plans: dict[str, Prepared | LuthierError] = {}
        self.written: dict[tuple[int, ...], list[int]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Take a stage, and write down how it ended. Errors of the stage do not go further."""
        stage = Stage(Outcome(name, "works"))
        self.outcomes.append(stage.outcome)
        with self.held(stage):
            yield stage

    @contextmanager
    def held(self, stage: Stage) -> Iterator[None]:
        """Go on with a stage."""
        began, outcome = time.perf_counter(), stage.outcome
        try:
            yield
        except WrongError as error:
            outcome.status, outcome.reason = "wrong", str(error)
        except LuthierError as error:
            is_early = not stage.is_planned and isinstance(error, RequestError | ModelSourceError)
            outcome.status = "refused" if is_early else "refused late"
            outcome.reason = f"{type(error).__name__}: {error.came} | {error.do}"
        except Exception as error:  # noqa: BLE001 - that it is none of ours is what is found
            outcome.status = "raw exception"
            where = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "/luthier/" in f.filename]
            outcome.reason = (
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]} at {' < '.join(own[::-1][:3])}"
            )
        outcome.seconds = round(outcome.seconds + time.perf_counter() - began, 3)

    def takes(self, name: str) -> bool:
        """Whether the stage is wanted."""
        return self.wanted is None or name in self.wanted


def walk(
    name: str,
    work: Path,
    stages: Sequence[str] | None = None,
    *,
    before_stage: Callable[[Sequence[Outcome], str], None] = lambda _found, _next: None,
) -> list[Outcome]:
    """Take a family through all stages, or some, in the folder `work`.

    before_stage: given what there is so far, and the name of the stage that begins.
    """
    from tests.zoo import stages as taken
    from tests.zoo.check_stage import check

    torch.set_num_threads(1)
    going = Walk(name, work, stages)
    work.mkdir(parents=True, exist_ok=True)
    make_family(name, going.folder)
    with Context.open(work / "home") as context:
        for stage in filter(going.takes, STAGES):
            before_stage(going.outcomes, stage)
            if stage.startswith("row_"):
                taken.row(going, stage.removeprefix("row_"))
            elif stage == "check":
                check(going)
            else:
                getattr(taken, stage)(going, context)
    return going.outcomes


STAGES: Final = (
    *(f"row_{kind}" for kind in ROWS),
    *("plan", "reach", "loss", "full_loss", "lora", "full", "adalora", "qlora", "dpo", "resume"),
    *("generate", "stream", "score", "merge", "adapter", "check", "gguf"),
)
"""All stages, in their order: rows, and functions of `stages`."""
