"""Advice before a run: which method, why, and what each of the others would take."""

from __future__ import annotations

from typing import Any, Literal

from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel


class AdvisedMethod(FrozenModel):
    """One method on the requested device, with its advantages and disadvantages.

    Attributes:
        method: its name in a recipe.
        title: its name for people.
        word: "recommended", "possible", "over the budget" or "does not fit".
        why: one sentence.
        needs: what must change so that it fits.
        hours: of the run, changed as `needs` says.
        usd: cost of that run; None where no price is known.
        energy_kwh: energy of that run; None where no power is known.
        peak_memory_bytes: of one device.
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
        method: the method to take; None where none fits.
        headline: one sentence.
        reasons: what the choice rests on, each a sentence.
        rank: of the adapter; None for full fine-tuning.
        ask: what makes the recipe request it, as options of the command line; empty where it does already or
            cannot.
        methods: all methods that were considered.
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
