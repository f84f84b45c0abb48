"""Where the sides of a run come from: the split that made them, and its proof, as a plan carries it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.frozen_model import FrozenModel

if TYPE_CHECKING:
    from luthier.core.plan import DataPlan

Judging = Literal["validation", "held_out"]
"""The sides that judge: one while a run trains, one at its end."""
_NO_PROOF_DO: Final = "to have that proved, split the rows first and train with the sides of the split"


class SplitProvenance(FrozenModel):
    """A proved split whose training side a run learns from.

    Attributes:
        covers: The judging sides of the run that are sides of the same split, by their digests.
        rows_sha256: SHA-256 of the file that was split.
        num_rows: Rows that were read back for the proof.
        seed: Of the split.
        near_threshold: Jaccard similarity from which rows are near-duplicates; None where they were not searched for.
        grouped_by: The field whose values stay on one side; None where rows have no groups.
        exact, near_duplicate, same_group: Texts, clusters and groups on more than one side; None where not searched.
        same_prompt: Rows of the judging sides whose prompt the training side answers otherwise.
    """

    covers: tuple[Judging, ...]
    rows_sha256: str
    num_rows: int
    seed: int
    near_threshold: float | None = None
    grouped_by: str | None = None
    exact: int = 0
    near_duplicate: int | None = None
    same_group: int | None = None
    same_prompt: int = 0

    @property
    def summary(self) -> str:
        """What is on two sides of the split, as text."""
        parts = [f"{self.exact} texts"]
        if self.near_duplicate is not None:
            parts.append(f"{self.near_duplicate} near-duplicates (Jaccard {self.near_threshold:g} and up)")
        if self.same_group is not None:
            parts.append(f"{self.same_group} groups")
        unsearched = "" if self.near_duplicate is not None else "; near-duplicates were not searched for"
        return f"{', '.join(parts)} stand on two sides of its {self.num_rows:,} rows{unsearched}"


def provenance_from(document: dict[str, Any], train_sha256: str, judging: dict[Judging, str]) -> SplitProvenance | None:
    """The provenance of files by the document of a split (`split.json`); None where the split did not make them.

    Args:
        document: The contents of split.json.
        train_sha256: Digest of the training file.
        judging: Digest of each file that judges.

    Raises:
        KeyError, TypeError, ValueError: the document is no split.json.
    """
    # By content: sides may have been renamed or moved since the split.
    made = {side["sha256"]: name for name, side in document["sides"].items()}
    # A judging file that equals the training file is no side of its own.
    covers = tuple(name for name, digest in judging.items() if digest in made and digest != train_sha256)
    if train_sha256 not in made or not covers:
        return None
    proof = document["proof"]
    return SplitProvenance(
        covers=covers,
        rows_sha256=document["sha256"],
        num_rows=proof["num_rows"],
        seed=document["seed"],
        near_threshold=document["near_threshold"],
        grouped_by=document["grouped_by"],
        exact=proof["exact"],
        near_duplicate=proof["near_duplicate"],
        same_group=proof["same_group"],
        same_prompt=proof["same_prompt"],
    )


def coverage(data: DataPlan) -> str:
    """Whether the proof of a split covers the held-out rows of a run, in a sentence; empty where it has none."""
    if data.held_out is None:
        return ""
    if is_proved(data):
        assert data.split is not None
        return f"the held-out rows are a side of a proved split: {data.split.summary}"
    if data.held_out.sha256 == data.train.sha256:
        return (
            "no proof of a split covers the held-out rows: they are a share of the training rows, of which equal rows "
            f"stay together and near-duplicates do not; {_NO_PROOF_DO}"
        )
    return (
        "no proof of a split covers the held-out rows: rows that are also in the training file are searched for, "
        f"near-duplicates of these are not; {_NO_PROOF_DO}"
    )


def is_proved(data: DataPlan) -> bool:
    """Whether the proof of a split covers the held-out rows."""
    return data.split is not None and "held_out" in data.split.covers
