"""What an adapter was trained over, and how: on other weights, or with other prompts, it gives other answers.

Nothing fails then, so whoever loads an adapter compares the digest of its base, and reads the base as training did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from luthier.core.conversation import OptedTurns
from luthier.core.errors import ConflictError, RequestError
from luthier.core.plan import DataPlan, Quantisation
from luthier.core.records.base_model import LocalModel

_PLAN: Final = "plan.json"


class _Section(BaseModel):
    # Bundles of other versions may have more in their plans.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class _ModelSection(_Section):
    sha256: str
    template: Literal["auto", "chat", "plain"] = "auto"


class _TrainingSection(_Section):
    precision: Literal["float32", "bfloat16"]


class _MethodSection(_Section):
    quantisation: Quantisation | None = None
    num_virtual_tokens: int | None = None


class AdapterPlan(_Section):
    """What the plan in the bundle of an adapter says of how it is loaded.

    Attributes:
        base_model: the digest of the weights, and how conversations are written.
        training: the type of the weights in computation.
        method: how the base is packed, and positions that a trained prompt takes.
        data: how conversations are written.
    """

    base_model: _ModelSection
    training: _TrainingSection
    method: _MethodSection
    data: DataPlan

    @property
    def opted_turns(self) -> OptedTurns:
        """What of conversations is rewritten."""
        return OptedTurns.of(self.data)


def adapter_plan(folder: Path) -> AdapterPlan | None:
    """The plan in the folder of an adapter; None where it came without one.

    Raises:
        RequestError: a plan that cannot be read.
    """
    file = folder / _PLAN
    if not file.is_file():
        return None
    try:
        return AdapterPlan.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{folder} has a {_PLAN} that is not a plan",
            expected="the folder of an adapter as `luthier export` has written it",
            do="export the adapter again",
        ) from error


def refuse_other_base(sha256: str, base: LocalModel) -> None:
    """Refuse a base model with other weights than those that an adapter was trained over.

    Args:
        sha256: the digest of the base that it was trained over.
        base: the model of its name on this machine.

    Raises:
        ConflictError: it has another digest.
    """
    if base.sha256 != sha256:
        raise ConflictError(
            f"the base model {base.name} on this machine is another one (digest {base.sha256[:12]})",
            expected=f"digest {sha256[:12]}, over which the adapter was trained",
            do="put the earlier model back, or train again over this one",
        )
