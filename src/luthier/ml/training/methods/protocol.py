"""The interface of a training method, a base class with defaults, and the loader.

`rules` names the class of a built-in method; for a plug-in it is the entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor, nn

from luthier.core.import_string import import_string
from luthier.core.plan import MethodPlan
from luthier.core.registry import METHODS
from luthier.ml.training.body import last_hidden_states
from luthier.ml.training.methods.rules import RULES
from luthier.ml.training.plug_in_classes import with_defaults

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.ml.training.attention import PackedRow
    from luthier.ml.training.model import MicroBatch
    from luthier.ml.training.prefix_attention import PrefixLayout

    RowLayout = PrefixLayout | PackedRow


class Method(Protocol):
    """A training method: prepares a loaded base model and writes the result as files that other tools can load.

    Weights and gradients are passed as the optimizer holds them: fp32 (or wider), by parameter name. In-place changes
    are seen by the next step.
    """

    folder_name: ClassVar[str]
    """Name of the saved folder: "adapter", or "model" if the result needs no base model."""
    can_share_prefix: ClassVar[bool]
    """Whether a shared prefix may be computed once for all its rows, and rows may be packed end to end."""
    numba_kernels: bool
    """Whether loops compiled by Numba may do its elementwise work (`fused_operations`); set before `prepare`."""

    def __init__(self, plan: MethodPlan) -> None: ...

    def prepare(self, model: PreTrainedModel, seed: int) -> nn.Module:
        """Freeze the base, add the trained parameters, and return the module whose parameters the optimizer takes."""
        ...

    def hidden(self, body: nn.Module, input_ids: Tensor, positions: Tensor, layout: RowLayout | None = None) -> Tensor:
        """Last hidden states [batch, T, width] of ids [batch, T], computed by the body of the prepared model.

        Args:
            body: the transformer of the prepared model.
            input_ids: [batch, T] int64.
            positions: [batch or 1, T] int64.
            layout: of rows packed into one behind shared prefixes; only if `can_share_prefix`.
        """
        ...

    def logit_parts(self, rows: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [N, w] and matrix [vocabulary, w] whose product is the logits, from hidden states and the base's head.

        Dropout draws a new mask for each call.
        """
        ...

    def virtual_prompt(self) -> Tensor | None:
        """The embeddings [num, width] that `hidden` prepends to each text; None if there are none."""
        ...

    def rate_factor(self, name: str) -> float:
        """Learning rate factor of a parameter."""
        ...

    def decays(self, name: str) -> bool:
        """Whether weight decay may act on a parameter that is stored as a matrix; never on one of fewer dimensions."""
        ...

    def first_weights(
        self, module: nn.Module, batches: Iterable[MicroBatch], forward: Callable[[MicroBatch], Tensor]
    ) -> dict[str, Tensor]:
        """Trained weights to begin with in place of those that `prepare` made, by parameter name.

        Called once, before the first step of a run; never when it resumes.

        Args:
            module: that `prepare` returned, in evaluation mode.
            batches: micro-batches of the first training rows, made as they are taken; those of the first step at least.
            forward: computes the hidden states of one.
        """
        ...

    def before_step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Add to the gradients of a step, before their norm is computed and they are clipped."""
        ...

    def after_step(self, step: int, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Change weights after update number `step` (from 1), given the gradients of that update.

        Args:
            step: number of the update, from 1.
            weights: after it.
            gradients: of that update.
        """
        ...

    def may_be_outcome(self, step: int) -> bool:
        """Whether the weights after that step may be the final weights of the run."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The state that a resume needs of the method in addition to the weights."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that `state` returned."""
        ...

    def ranks(self) -> dict[str, int]:
        """The rank of each matrix in the result, by module name; empty if the method does not choose ranks."""
        ...

    def save(self, model: nn.Module, base_path: Path, folder: Path) -> str:
        """Write the training result into `folder` (existing and empty) and return the digest of the weights.

        Args:
            model: the module that `prepare` returned.
            base_path: folder of the base model, named in the adapter's config.
            folder: an existing, empty folder.
        """
        ...


class PlainMethod:
    """A method that adds nothing to the optimizer step: the base class of most methods, including plug-ins."""

    folder_name: ClassVar[str] = "adapter"
    can_share_prefix: ClassVar[bool] = True
    numba_kernels: bool = False

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

    def decays(self, name: str) -> bool:  # noqa: ARG002
        """All do."""
        return True

    def first_weights(
        self,
        module: nn.Module,  # noqa: ARG002
        batches: Iterable[MicroBatch],  # noqa: ARG002
        forward: Callable[[MicroBatch], Tensor],  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Those of `prepare`."""
        return {}

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
        method = with_defaults(METHODS.load(plan.name), PlainMethod)(plan)
    return method
