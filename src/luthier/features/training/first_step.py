"""The first step of a run, kept with its result so that it can be compared with that of another program."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.events import ROUTER_LOSS, TASK_LOSS, Event, StepDone, comparable_loss
from luthier.core.run import FirstStep
from luthier.features.planning.service import Prepared

if TYPE_CHECKING:
    from luthier.ml.training.objective_protocol import Unit


def first_step_of(prepared: Prepared, events: Iterable[Event]) -> FirstStep | None:
    """The measures of the first step before its update, and its examples.

    None if there was no step.

    Args:
        prepared: The run.
        events: The measures of step 1.
    """
    first = next((event for event in events if isinstance(event, StepDone) and event.step == 1), None)
    if first is None:
        return None
    from luthier.features.planning import batch_schedules as schedules
    from luthier.ml.training.objectives.rules import rules_of

    units: list[Unit] = []
    is_streamed = prepared.train.stream is not None  # the rows would have to be read, and fetched, once more
    if not is_streamed:
        # the examples of a step do not depend on its split into micro-batches
        batches = schedules.of_training(prepared, shares_prefix=False).step(0)
        units = [prepared.trained_units[index] for index in sorted(index for batch in batches for index in batch)]
    # The task loss excludes replayed rows, so the examples must exclude them as well.
    if TASK_LOSS in first.measures:
        units = [unit for unit in units if not unit[0].is_replayed]
    training, objective = prepared.plan.training, prepared.plan.objective
    num_learned = sum(row.num_trained_tokens for unit in units for row in unit)
    noise = ["training.neftune_alpha"] if training.neftune_alpha else []
    if not rules_of(objective.name).dropout_is_noise:
        noise += own_dropout(Path(prepared.plan.base_model.path))
    return FirstStep(
        loss=comparable_loss(first),
        unit=objective.loss_unit,
        # with dft the comparable loss is the plain one, in which every token counts the same
        weighting=(
            "token"
            if objective.loss_weighting == "dft"
            else objective.loss_weighting or ("token" if objective.loss_unit else None)
        ),
        # sampled answers are known only after sampling
        num_trained_tokens=first.num_trained_tokens if objective.draws or is_streamed else num_learned,
        precision=training.precision,
        example_ids=tuple(dict.fromkeys(row.id for unit in units for row in unit)),
        router_loss=first.measures.get(ROUTER_LOSS),
        noise=tuple(noise),
    )


def own_dropout(folder: Path) -> list[str]:
    """The dropout settings of a base model's config that are above 0, such as `config.attention_dropout`."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Multimodal models keep the language model's settings in a nested config.
    nested = config.get("text_config")
    found = _positive(config) | (_positive(nested) if isinstance(nested, dict) else set())
    return [f"config.{name}" for name in sorted(found)]


def _positive(config: Mapping[str, Any]) -> set[str]:
    names = [name for name in config if "dropout" in name or name.endswith("pdrop")]
    return {name for name in names if isinstance(config[name], int | float) and config[name] > 0}
