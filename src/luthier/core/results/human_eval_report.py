"""The state of a panel: each rater's diligence, how far people agree, and what they say of the systems."""

from __future__ import annotations

from typing import Literal

from luthier.core.estimate import Estimate
from luthier.core.evaluation import VerdictWord
from luthier.core.frozen_model import FrozenModel
from luthier.core.results.human_eval import RatingPanel
from luthier.core.results.suite import Criterion

AgreementMeasure = Literal["krippendorff_alpha", "fleiss_kappa", "cohen_kappa"]


class Drift(FrozenModel):
    """How a rater changes over time compared with the others.

    For scores: by how much they are above the others'. For preferences: how often they agree with the others.

    Attributes:
        slope: what one more rating adds.
        p_value: of no change.
    """

    slope: float
    p_value: float


class RaterReport(FrozenModel):
    """One rater.

    Attributes:
        rater_id: its id.
        name: what the panel calls them.
        has_link: whether there is a link that lets them in.
        num_rated: items that they have rated.
        num_items: items of the panel.
        num_checks: attention checks that they have rated.
        num_failed: attention checks of these that they failed.
        median_seconds: for an item; None where it is unknown.
        agreement: Krippendorff's alpha (interval) between what they say and the mean of the others, who are not caught.
        most_said: their most frequent answer as shown on the page.
        most_said_share: how often they gave it, 0 to 1.
        drift: how they change over time; None with too few ratings.
        caught: why they seem not to read; empty for all is well.
        notes: what is worth a look.
    """

    rater_id: str
    name: str
    has_link: bool
    num_rated: int
    num_items: int
    num_checks: int
    num_failed: int
    median_seconds: float | None = None
    agreement: Estimate | None = None
    most_said: str = ""
    most_said_share: float | None = None
    drift: Drift | None = None
    caught: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether every item is rated."""
        return self.num_rated >= self.num_items


class Agreement(FrozenModel):
    """How far raters agree, beyond chance.

    Attributes:
        measure: the coefficient.
        criterion: None for preferences.
        estimate: the coefficient with its interval; 1 is full agreement, 0 what chance gives.
        raw: share of pairs of ratings of one item that say the same.
        num_items: those that at least two have rated.
        num_raters: raters whose ratings are in it.
        caution: what the figure does not show.
    """

    measure: AgreementMeasure
    criterion: Criterion | None
    estimate: Estimate
    raw: float
    num_items: int
    num_raters: int
    caution: str = ""


class WinRate(FrozenModel):
    """How often `system` is preferred to `against`, ties counting half; the interval draws rows, not ratings.

    Attributes:
        system: the name of the one system.
        against: the name of the other.
        num_rows: rows with ratings of both.
        num_wins: ratings that prefer `system`.
        num_losses: ratings that prefer the other.
        num_ties: ratings that prefer neither.
        rate: wins with half of the ties, as a fraction.
        p_value: of both being equally good; adjusted where a panel compares several times (Holm).
        word: of system against the other.
        rows_needed: as in `core.evaluation.Comparison`.
    """

    system: str
    against: str
    num_rows: int
    num_wins: int
    num_losses: int
    num_ties: int
    rate: Estimate
    p_value: float
    word: VerdictWord
    rows_needed: int | None = None


class SystemStrength(FrozenModel):
    """A system's place among all: the logarithm of its strength by Bradley and Terry, 0 on average of all systems.

    Attributes:
        system: the name of the system.
        value: the logarithm of its strength.
        low, high: ends of the 95% interval; None where it is open, since the system has lost, or won, without
            exception.
    """

    system: str
    value: float
    low: float | None
    high: float | None


class MeanScore(FrozenModel):
    """The mean of all scores that a system's answers were given for a criterion.

    Attributes:
        system: the name of the system.
        criterion: what was scored.
        num_ratings: scores in the mean.
        mean: the mean with its interval.
    """

    system: str
    criterion: Criterion
    num_ratings: int
    mean: Estimate


class ScoreDifference(FrozenModel):
    """Mean score of one system minus that of another, on the same rows.

    Attributes:
        system: the name of the one system.
        against: the name of the other.
        criterion: what was scored.
        difference: with its interval.
        p_value: of no difference; adjusted where a panel compares several times (Holm).
        word: the verdict of the interval.
        rows_needed: as in `core.evaluation.Comparison`.
    """

    system: str
    against: str
    criterion: Criterion
    difference: Estimate
    p_value: float
    word: VerdictWord
    rows_needed: int | None = None


class PanelFigures(FrozenModel):
    """What follows from ratings: of a pairwise panel rates and standing, of scores their means and differences.

    Attributes:
        num_raters: raters with at least one rating.
        num_ratings: ratings that the figures are made of.
        agreements: how far raters agree.
        win_rates: of each pair of systems, where answers were compared.
        standings: the ranking, where answers were compared.
        ranking_caution: what the ranking does not show, or why there is none.
        scores: means, where answers were scored.
        differences: differences of means on the same rows, where answers were scored.
    """

    num_raters: int
    num_ratings: int
    agreements: tuple[Agreement, ...] = ()
    win_rates: tuple[WinRate, ...] = ()
    standings: tuple[SystemStrength, ...] = ()
    ranking_caution: str = ""
    scores: tuple[MeanScore, ...] = ()
    differences: tuple[ScoreDifference, ...] = ()


class PanelReport(FrozenModel):
    """All of it.

    Attributes:
        panel: the panel.
        raters: each rater.
        everyone: figures of all ratings.
        without_caught: the same without raters who were caught, where there are any.
        cautions: what the figures do not show.
    """

    panel: RatingPanel
    raters: tuple[RaterReport, ...]
    everyone: PanelFigures
    without_caught: PanelFigures | None = None
    cautions: tuple[str, ...] = ()

    @property
    def caught(self) -> tuple[str, ...]:
        """The names of raters who were caught."""
        return tuple(rater.name for rater in self.raters if rater.caught)
