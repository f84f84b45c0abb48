"""The request of an evaluation by the server: its id, what is judged, and on what."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

OrderKind = Literal["rows", "safety", "suite"]
MAX_AGAINST: Final = 7


class EvaluationOrder(FrozenModel):
    """What a job of the kind `evaluation` is to judge, and by what.

    Attributes:
        kind: On rows, by a suite, or for safety.
        result_id: The id that the result will have.
        candidate: The judged run or base model.
        against: What it is compared with.
        file_id: The held-out rows or the suite, a file of the project.
        suite_file: A suite of the operator, by its path; None for uploaded ones.
        label: What pages call the rows, suite or probes.
        probes: The set of safety probes.
        most_rows: How many rows are judged at most; None for all.
        allow_leakage: Judge although rows were trained on.
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
