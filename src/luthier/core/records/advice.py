"""Advice before a run: which method, why, and what each of the others would take."""

from __future__ import annotations

from typing import Any, Literal

from luthier.core.cost import Estimate
from luthier.core.frozen_model import FrozenModel


class AdvisedMethod(FrozenModel):
    """One method on the device that was asked about, and what speaks for or against it.

    Attributes:
        word: "recommended", "possible", "over the budget" or "does not fit".
        needs: what must change so that it fits.
    """

    method: Literal["full", "lora", "adalora", "qlora"]
    title: str
    word: Literal["recommended", "possible", "over the budget", "does not fit"]
    why: str
    needs: str
    hours: Estimate
    usd: Estimate | None
    energy_kwh: Estimate | None
    peak_memory_bytes: Estimate


class Advice(FrozenModel):
    """Which method to take, or None where none fits into device and budget.

    Attributes:
        rank: of the adapter; None for full fine-tuning.
        reasons: what the choice rests on, each a sentence.
        ask: what makes the recipe ask for it, as options of the command line; empty where it asks for it already or
            cannot.
    """

    method: Literal["full", "lora", "adalora", "qlora"] | None
    headline: str
    reasons: tuple[str, ...]
    rank: int | None
    ask: str
    methods: tuple[AdvisedMethod, ...]

    def as_json(self) -> dict[str, Any]:
        """`advice` of `luthier plan --advise --json`."""
        return self.model_dump(mode="json")
