"""The interface of a training method, a base class with its defaults, and how a method is loaded.

The class of a built-in method is named in `rules`, that of a plug-in is its entry point.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor, nn

from luthier.core.import_string import import_string
from luthier.core.plan import MethodPlan
from luthier.core.registry import METHODS
from luthier.ml.training.body import last_hidden_states
from luthier.ml.training.methods.rules import RULES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.ml.training.attention import PackedRow
    from luthier.ml.training.prefix_attention import PrefixLayout

    RowLayout = PrefixLayout | PackedRow


class Method(Protocol):
    """One way to train: prepares a loaded base model, and writes the outcome as files others can load.

    Weights and gradients are handed over as the optimizer holds them: fp32 (or wider), by parameter name. What is
    changed in them in place is what the next step reads.
    """

    folder_name: ClassVar[str]
    """Folder name of what it saves: "adapter", or "model" where the outcome needs no base model."""
    can_share_prefix: ClassVar[bool]
    """Whether a prefix that rows share may be computed once for all of them, and rows may be packed end to end."""

    def __init__(self, plan: MethodPlan) -> None: ...

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Freeze what stays, add what is trained; returns the module whose parameters the optimizer takes."""
        ...

    def hidden(self, body: nn.Module, input_ids: Tensor, positions: Tensor, layout: RowLayout | None = None) -> Tensor:
        """Last hidden states [batch, T, width] of the ids [batch, T] by the body of the prepared model.

        Args:
            layout: of rows packed into one behind a shared prefix; only where `can_share_prefix`.
        """
        ...

    def logit_parts(self, rows: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [N, w] and matrix [vocabulary, w] whose product are the logits, from hidden states and the base's head.

        Dropout draws a new mask for each call.
        """
        ...

    def virtual_prompt(self) -> Tensor | None:
        """What `hidden` puts before each text: embedded [num, width]; None where it puts nothing there."""
        ...

    def rate_factor(self, name: str) -> float:
        """What the learning rate is multiplied by for a parameter."""
        ...

    def before_step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Add to the gradients of a whole step, before they are measured and clipped."""
        ...

    def after_step(self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Change weights after update number `step` (from 1), seeing the gradients that it was made from."""
        ...

    def may_be_outcome(self, step: int) -> bool:
        """Whether the weights after that step may be what the run ends with."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs of the method beside the weights."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `state` returned."""
        ...

    def ranks(self) -> dict[str, int]:
        """The rank of each matrix in the outcome, by module name; empty where the method has no ranks of its own."""
        ...

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write the trained outcome into `folder` (which exists, empty); returns the digest of the weights."""
        ...


class PlainMethod:
    """A method whose step is the optimizer's alone: the base of most, and of those in other packages."""

    folder_name: ClassVar[str] = "adapter"
    can_share_prefix: ClassVar[bool] = True

    def __init__(self, plan: MethodPlan) -> None:
        self.plan = plan

    def hidden(self, body: nn.Module, input_ids: Tensor, positions: Tensor, layout: RowLayout | None = None) -> Tensor:
        """The body, run on the ids."""
        return last_hidden_states(body, positions, layout, input_ids=input_ids)

    def logit_parts(self, rows: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and head as they are."""
        return rows, head

    def virtual_prompt(self) -> Tensor | None:
        """Nothing."""
        return None

    def rate_factor(self, name: str) -> float:  # noqa: ARG002
        """The same rate for all."""
        return 1.0

    def before_step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Nothing is added."""

    def after_step(self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Nothing is changed."""

    def may_be_outcome(self, step: int) -> bool:  # noqa: ARG002
        """Any step may."""
        return True

    def state(self) -> dict[str, Tensor]:
        """There is none."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """There is none."""

    def ranks(self) -> dict[str, int]:
        """There are none."""
        return {}


def load_method(plan: MethodPlan) -> Method:
    """The method that a plan names.

    Raises:
        NotFoundError: No table knows the name.
    """
    if plan.name in RULES:
        method: Method = import_string(RULES[plan.name].implementation)(plan)
    else:
        method = METHODS.load(plan.name)(plan)
    return method
