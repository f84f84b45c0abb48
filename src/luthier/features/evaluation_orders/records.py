"""What a server is asked to judge: by whom it is told apart, who is judged, and on what."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

OrderKind = Literal["rows", "safety", "suite"]
MAX_AGAINST: Final = 7


class EvaluationOrder(FrozenModel):
    """One evaluation that a job carries out. result_id: what its result is called, whichever attempt writes it.

    candidate, against: runs and base models by the names that commands know them by. file_id: the held-out rows, or the
    suite. suite_file: a suite of the operator's own, absolute, instead of one that was uploaded. label: what that is
    called. probes: which set of safety probes. most_rows: judge only so many.
    """

    kind: OrderKind
    result_id: str
    candidate: str
    against: Annotated[tuple[str, ...], Field(max_length=MAX_AGAINST)] = ()
    file_id: str | None = None
    suite_file: str | None = None
    label: str = ""
    probes: Literal["default", "full"] = "default"
    most_rows: Annotated[int, Field(ge=1)] | None = None
    allow_leakage: bool = False
