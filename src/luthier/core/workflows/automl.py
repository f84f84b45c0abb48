"""From a file and a goal to a judged model by itself: what was asked, and how its one budget is shared out."""

from __future__ import annotations

from typing import Final

from luthier.core.defaults import NEW_TOKENS, NUM_JUDGED, NUM_SHOTS
from luthier.core.frozen_model import FrozenModel

STAGES: Final = ("ingest", "audit", "repair", "split", "showdown", "tune", "judge", "report")


class AutomlSpec(FrozenModel):
    """What was asked, and what `features.workflows.automl.request.completed` made of it before anything was done.

    Attributes:
        data: a file of rows, or a folder of documents, which are read into rows of text first.
        is_folder: whether `data` is a folder of documents; found out by `completed`.
        goal: what the model is to do, as text: models that are not tuned get it as an instruction.
        models: names of base models, the contenders; of none `completed` takes those of the catalogue that are on this
            machine, or the one of the quickstart.
        hours: for everything.
        showdown_hours: of these for choosing the model, computed by `completed`; what is left then is for the search
            and for judging.
        map: field of the shape to field of the file; None where names fit.
        group_by: the field whose values stay on one side of the split.
        metric: the metric that decides; None takes the default.
        few_shot: examples in prompts of models that are not tuned.
        max_new_tokens: most tokens of an answer.
        most_judged: held-out rows that are judged at most.
        most_trials: trials of the search at most.
        seed: of all draws.
        always_tunes: search for the best recipe also where prompting was found to be enough.
        is_probed: as in a showdown.
    """

    data: str
    is_folder: bool = False
    goal: str
    models: tuple[str, ...] = ()
    hours: float
    showdown_hours: float = 0.0
    map: dict[str, str] | None = None
    group_by: str | None = None
    metric: str | None = None
    few_shot: int = NUM_SHOTS
    max_new_tokens: int = NEW_TOKENS
    most_judged: int = NUM_JUDGED
    most_trials: int = 40
    seed: int = 0
    always_tunes: bool = False
    is_probed: bool = True

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages in their order; only documents have to be read in first."""
        return STAGES if self.is_folder else STAGES[1:]
