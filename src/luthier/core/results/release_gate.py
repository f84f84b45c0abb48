"""A gate: what a model's figures have to be before it may be deployed, as `gate.yaml` says it, and its result."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_document
from luthier.core.results.suite import GateOutcome

CANDIDATE: Final = "candidate"
BASE: Final = "base"
MIN_REASON_CHARACTERS: Final = 20
MAX_REASON_CHARACTERS: Final = 1_000
Bound = Literal["low", "high", "value"]


class GateRule(FrozenModel):
    """One figure and its required range. Exactly one of `at_least` and `at_most`.

    Attributes:
        metric: `TASK.METRIC` of a suite, `safety.PROBE.METRIC`, or `METRIC` of the evaluation on held-out rows.
        system: whose figure; `candidate` is what is to be deployed.
        against: hold the difference to this system in place of the figure itself; `base` is the model that the
            candidate was tuned from.
        at_least: the lower limit; None where there is an upper one.
        at_most: the upper limit; None where there is a lower one.
        bound: which end of the 95% interval is compared with the limit; by default the cautious one: `low` for
            at_least, `high` for at_most.
        required: whether it fails where there is no such figure.
    """

    metric: Annotated[str, Field(pattern=r"^[^\s.]+(\.[^\s.]+)*$", max_length=200)]
    system: Annotated[str, Field(min_length=1, max_length=300)] = CANDIDATE
    against: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    at_least: float | None = None
    at_most: float | None = None
    bound: Bound | None = None
    required: bool = True

    @model_validator(mode="after")
    def _has_one_limit(self) -> GateRule:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("exactly one of at_least and at_most")
        if self.against is not None and self.against == self.system:
            raise ValueError("against: another system than the rule's own")
        return self

    @property
    def end(self) -> Bound:
        """The end of the interval that counts."""
        # The cautious end: a figure must be good enough even at the worse end of its interval.
        return self.bound or ("low" if self.at_least is not None else "high")

    @property
    def limit(self) -> float:
        """What it is compared with."""
        limit = self.at_least if self.at_least is not None else self.at_most
        assert limit is not None
        return limit

    @property
    def title(self) -> str:
        """The rule in short: `sql.execution less base at least -0.02`."""
        whose = "" if self.system == CANDIDATE else f" of {self.system}"
        less = "" if self.against is None else f" less {self.against}"
        words = "at least" if self.at_least is not None else "at most"
        return f"{self.metric}{whose}{less} {words} {self.limit:g}"


class Gate(FrozenModel):
    """Rules that must all be met.

    Attributes:
        rules: what must be met.
        suite: the name of the suite whose results count; without it, of any.
        fingerprints: of suites and safety checks, by their first digits (12 at least); where some are given, no others
            count: a task of the same name in another suite cannot replace the intended one.
    """

    rules: Annotated[tuple[GateRule, ...], Field(min_length=1, max_length=200)]
    suite: str | None = None
    fingerprints: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")], ...] = ()

    def counts(self, fingerprint: str) -> bool:
        """Whether results with this fingerprint count."""
        return not self.fingerprints or any(fingerprint.startswith(one) for one in self.fingerprints)


class CheckedTarget(FrozenModel):
    """The result of a gate for one model that is to answer.

    Attributes:
        target: the model.
        file: the name of the gate's file, without its folder.
        outcome: whether the rules were met.
    """

    target: str
    file: str
    outcome: GateOutcome


class GatePassage(FrozenModel):
    """How a revision of a deployment came past its gates.

    Attributes:
        checked: each new target with the gate's outcome.
        override: the reason of who had it deployed all the same.
    """

    checked: Annotated[tuple[CheckedTarget, ...], Field(min_length=1)]
    override: str | None = None

    @property
    def passed(self) -> bool:
        """Whether all rules of all gates were met."""
        return all(one.outcome.passed for one in self.checked)

    @property
    def failed(self) -> tuple[str, ...]:
        """A sentence for each rule that was not met."""
        return tuple(rule.sentence for one in self.checked for rule in one.outcome.outcomes if not rule.passed)

    def sha256(self) -> str:
        """The digest of all outcomes: what the audit log keeps of them."""
        document: list[Any] = [one.model_dump(mode="json") for one in self.checked]
        return sha256_document(document)
