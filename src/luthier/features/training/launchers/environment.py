"""Settings of this environment that a run on other machines needs, and those that stay here."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from luthier.core.recipe import Recipe

PYTHON_GRADERS: Final = "LUTHIER_PYTHON_GRADERS"
_CHECKPOINT_KEY: Final = "LUTHIER_CHECKPOINT_KEY"
# No secrets, and true wherever the run is. Sizes of memory and caches, folders and addresses are those of a machine.
_PASSED: Final = (
    PYTHON_GRADERS,
    "LUTHIER_COLLECTIVE_TIMEOUT_SECONDS",
    "LUTHIER_TRACKER_WAIT_SECONDS",
    "LUTHIER_CHECKPOINT_ALLOW_UNSIGNED",
)

ACCESS_SECRETS: Final = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "COMET_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
)
"""For gated models and data of the hub, and for trackers."""
STORE_SECRETS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""For checkpoints and data in an object store."""


def passed_settings() -> dict[str, str]:
    """The settings that are set here and decide what a run does: its processes elsewhere get the same."""
    return {name: os.environ[name] for name in _PASSED if os.environ.get(name)}


def left_here(recipe: Recipe, *, uploads: bool, secrets: Collection[str]) -> tuple[str, ...]:
    """Notes on what the recipe needs and the other machines do not get.

    Args:
        recipe: What is trained.
        uploads: Whether checkpoints are uploaded.
        secrets: Names of the variables that are passed as secrets.
    """
    notes = []
    rewards = (recipe.objective.rewards if recipe.objective else None) or ()
    if any(reward.code for reward in rewards) and not os.environ.get(PYTHON_GRADERS):
        notes.append(
            f"objective.rewards has graders in Python, which run only where {PYTHON_GRADERS}=true is set: set it here, "
            "so that it is passed on, and start again; or set it on the nodes"
        )
    if uploads and os.environ.get(_CHECKPOINT_KEY) and _CHECKPOINT_KEY not in secrets:
        notes.append(
            f"{_CHECKPOINT_KEY} is set here and not on the nodes, which sign and verify no checkpoints without it: add "
            f"--secret {_CHECKPOINT_KEY}"
        )
    return tuple(notes)


def credentials_left_here(known: Sequence[str], secrets: Sequence[str]) -> tuple[str, ...]:
    """A note where this machine reaches a store, the hub or a tracker by variables that the nodes do not get.

    Args:
        known: Names of such variables.
        secrets: Names of the variables that are passed as secrets.
    """
    names = [name for name in known if os.environ.get(name) and name not in secrets]
    if not names:
        return ()
    options = " ".join(f"--secret {name}" for name in names)
    return (
        f"{', '.join(names)}: set here and not on the nodes; where they have no access of their own, add {options}",
    )
