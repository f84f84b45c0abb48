"""How the weights change. A table of "module:Class" strings is the door: built-ins and plug-ins use the same one.

Entry points in the group `luthier.methods` add to it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from luthier.core.errors import NotFoundError
from luthier.core.plan import MethodPlan

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

BUILT_IN = {"full": "luthier.train.methods.full:Full", "lora": "luthier.train.methods.lora:Lora"}


class Method(Protocol):
    """One way to train: prepares a loaded base model, and writes the outcome as files others can load."""

    outcome_name: ClassVar[str]
    """Folder name of what it saves: "adapter", or "model" where the outcome stands without its base."""

    def __init__(self, plan: MethodPlan) -> None: ...

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Freeze what stays, add what is trained; returns the module that is run."""
        ...

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write the trained outcome into `folder` (which exists, empty); returns the digest of the weights."""
        ...


def load_method(plan: MethodPlan) -> Method:
    """The method that a plan names. Raises NotFoundError for a name that no table knows."""
    known = BUILT_IN | {e.name: e.value for e in entry_points(group="luthier.methods")}
    if plan.name not in known:
        raise NotFoundError(
            f"method {plan.name!r}", expected=f"one of {sorted(known)}", do="correct method.name in the recipe"
        )
    module, _, name = known[plan.name].partition(":")
    method: Method = getattr(import_module(module), name)(plan)
    return method
