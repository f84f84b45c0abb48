"""All that the documents of a bundle are made from; what is None or empty is not known, and they say so."""

from __future__ import annotations

from pydantic import Field

from luthier.core.dataset import Split
from luthier.core.evaluation import Evaluation
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import Plan
from luthier.core.run import TrainResult


class BaseFacts(FrozenModel):
    """The base model; what is None or empty is not known.

    Attributes:
        name: a short name, the hub's, or the last part of a path.
        sha256: over its weight files.
        hub: `org/name`, where it has one.
        revision: of the hub's repository.
        licence, licence_url: as its makers state them.
        architecture: class of transformers.
        num_parameters: embeddings included.
        context_length_tokens: the longest text.
        note: what a user of it must know.
        licence_texts: of the files that came with it, by their names.
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
    """One file of rows, and what of it the run has used.

    Attributes:
        split: what it was used for.
        name: of the file, without its folder.
        sha256: of the file.
        shape: form of its rows.
        num_rows: rows of the file.
        num_examples: examples that were made of them.
        num_tokens: tokens of these.
        num_trained_tokens: tokens that were learned.
    """

    split: Split
    name: str
    sha256: str
    shape: str
    num_rows: int
    num_examples: int
    num_tokens: int
    num_trained_tokens: int


class RunFacts(FrozenModel):
    """The run that trained what was exported.

    Attributes:
        run_id: of the run.
        created_at, ended_at: UTC, ISO 8601.
        plan: without the reasons of its values, and with the names of files and folders in place of their paths.
        plan_hash: of the plan as it was run, which these changes leave as it is.
        datasets: its files of rows.
        result: without the place of its outcome.
    """

    run_id: str
    created_at: str
    ended_at: str
    plan: Plan
    plan_hash: str
    datasets: tuple[DatasetFacts, ...]
    result: TrainResult


class PackageFacts(FrozenModel):
    """A Python package that took part.

    Attributes:
        name, version: as installed.
        licence: as its metadata state it, an SPDX expression where they have one.
    """

    name: str
    version: str
    licence: str | None = None


class BundleFacts(FrozenModel):
    """What is known of an export when its bundle is made.

    Attributes:
        title: of the card.
        made_at: UTC, ISO 8601.
        base: the base model.
        run: None for a base model that no run has changed.
        evaluation: on held-out rows, before the export; None where there was none.
        safety: findings of a safety evaluation, a sentence each; empty where there was none.
        packages: that took part.
        command: the one that exports this again.
    """

    title: str
    made_at: str
    base: BaseFacts
    run: RunFacts | None = None
    evaluation: Evaluation | None = None
    safety: tuple[str, ...] = ()
    packages: tuple[PackageFacts, ...] = ()
    command: str
