"""What a person should know of the rows of a run before its first step."""

from __future__ import annotations

from luthier.core.dataset import sequence_notes
from luthier.core.events import WarningRaised
from luthier.core.plan import Plan
from luthier.core.ports import EventSink


def warn_of_the_data(plan: Plan, emit: EventSink) -> None:
    """What a person should know of the rows before the first step; the report shows it, too."""
    data, found = plan.data, []
    general = (data.replay.rows, data.replay.held_out) if data.replay else ()
    for profile in filter(None, (data.train, data.validation, data.held_out, *general)):
        if profile.num_dropped:
            found.append((f"dropped_{profile.split}", f"{profile.num_dropped:,} {profile.split} rows were dropped"))
        if profile.num_truncated:
            cut = (
                f"{profile.num_truncated:,} {profile.split} rows were cut at {plan.training.max_length_tokens:,} tokens"
            )
            found.append((f"truncated_{profile.split}", cut))
    for profile in filter(None, (data.train, *general[:1])):
        found += [(f"{code}_{profile.split}", message) for code, message in sequence_notes(profile)]
    if data.num_leaked:
        found.append(("leakage", f"{data.num_leaked:,} held-out rows also stand in the training rows"))
    if data.num_same_prompt:
        message = f"{data.num_same_prompt:,} held-out rows have the prompt of a training row, with another answer"
        found.append(("same_prompt", message))
    if data.num_validation_leaked:
        message = (
            f"{data.num_validation_leaked:,} validation rows also stand in the training rows: early stopping is blind"
        )
        found.append(("validation_leakage", message))
    if data.replay and data.replay.num_leaked:
        message = f"{data.replay.num_leaked:,} held-out general rows are also trained on: forgetting looks too small"
        found.append(("replay_leakage", message))
    if data.replay and data.replay.num_also_in_train:
        num = data.replay.num_also_in_train
        found.append(("replay_in_train", f"{num:,} replayed rows also stand in the training rows of the task"))
    if data.canaries:
        num = data.canaries.num
        found.append(("canaries", f"{num:,} canaries (made-up secrets) are planted among the training rows"))
    for code, message in found:
        emit(WarningRaised(step=0, code=code, message=message))
