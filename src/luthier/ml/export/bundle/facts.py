"""All that the documents of a bundle are made from; what is None or empty is not known, and they say so."""

from __future__ import annotations

from pydantic import Field

from luthier.core.dataset import Split
from luthier.core.evaluation import Evaluation
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import Plan
from luthier.core.run import TrainResult


class BaseFacts(FrozenModel):
    """The base model. name: a short name, the hub's, or the last part of a path. hub: `org/name`, where it has one.

    sha256: over its weight files. licence_texts: of the files that came with it, by their names. note: what a user of
    it must know.
    """

    name: str
    sha256: str
    hub: str | None = None
    revision: str | None = None
    licence: str | None = None
    licence_url: str | None = None
    architecture: str | None = None
    num_parameters: int | None = None
    context_length_tokens: int | None = None
    note: str = ""
    licence_texts: dict[str, str] = Field(default_factory=dict)


class DatasetFacts(FrozenModel):
    """One file of rows, by its name without a folder, and what of it the run has used."""

    split: Split
    name: str
    sha256: str
    shape: str
    num_rows: int
    num_examples: int
    num_tokens: int
    num_trained_tokens: int


class RunFacts(FrozenModel):
    """The run that trained what was exported. Times are UTC, ISO 8601.

    plan: without the reasons of its values, and with the names of files and folders where their paths stood.
    plan_hash: its own, which none of that changes. result: without the place of its outcome.
    """

    run_id: str
    created_at: str
    ended_at: str
    plan: Plan
    plan_hash: str
    datasets: tuple[DatasetFacts, ...]
    result: TrainResult


class PackageFacts(FrozenModel):
    """A Python package that took part. licence: as its metadata state it, an SPDX expression where they have one."""

    name: str
    version: str
    licence: str | None = None


class BundleFacts(FrozenModel):
    """What is known of an export when its bundle is made.

    title: what the card is called. made_at: UTC, ISO 8601. run: None for a base model that no run has changed.
    safety: what a safety evaluation has found, a sentence each; empty where there was none. command: the one that
    exports this again.
    """

    title: str
    made_at: str
    base: BaseFacts
    run: RunFacts | None = None
    evaluation: Evaluation | None = None
    safety: tuple[str, ...] = ()
    packages: tuple[PackageFacts, ...] = ()
    command: str
