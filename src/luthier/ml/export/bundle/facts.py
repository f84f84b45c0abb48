"""The facts behind the documents of a bundle. None or empty means unknown, and the documents state that."""

from __future__ import annotations

from pydantic import Field

from luthier.core.dataset import Split
from luthier.core.evaluation import Evaluation
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import Plan
from luthier.core.run import TrainResult


class BaseFacts(FrozenModel):
    """The base model. None or empty means unknown.

    Attributes:
        name: a short name, the hub name, or the last part of a path.
        sha256: digest over its weight files.
        hub: `org/name`, if it has one.
        revision: revision of the hub repository.
        licence, licence_url: as the authors state them.
        architecture: the transformers class.
        num_parameters: number of parameters, including embeddings.
        context_length_tokens: the longest text, in tokens.
        note: what users must know about it.
        licence_texts: texts of the licence files that came with it, by file name.
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
    """One file of rows, and what the run used of it.

    Attributes:
        split: what the file was used for.
        name: name of the file, without its folder.
        sha256: digest of the file.
        shape: format of its rows.
        num_rows: rows in the file.
        num_examples: examples made from the rows.
        num_tokens: tokens of the examples.
        num_trained_tokens: tokens with loss weight.
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
    """The run that trained the exported model.

    Attributes:
        run_id: id of the run.
        created_at, ended_at: UTC, ISO 8601.
        plan: the plan without the reasons for its values, and with names of files and folders in place of their paths.
        plan_hash: hash of the executed plan, which these changes do not alter.
        datasets: the files of rows.
        result: the result without the path of its outcome.
    """

    run_id: str
    created_at: str
    ended_at: str
    plan: Plan
    plan_hash: str
    datasets: tuple[DatasetFacts, ...]
    result: TrainResult


class PackageFacts(FrozenModel):
    """A Python package that was used.

    Attributes:
        name, version: as installed.
        licence: as its metadata states it, an SPDX expression if there is one.
    """

    name: str
    version: str
    licence: str | None = None


class BundleFacts(FrozenModel):
    """What is known about an export when its bundle is made.

    Attributes:
        title: title of the card.
        made_at: time of the export, UTC, ISO 8601.
        base: the base model.
        run: the run; None for an unchanged base model.
        evaluation: the evaluation on held-out rows before the export; None without one.
        safety: findings of a safety evaluation, one sentence each; empty without one.
        packages: the packages used.
        command: the command that repeats this export.
    """

    title: str
    made_at: str
    base: BaseFacts
    run: RunFacts | None = None
    evaluation: Evaluation | None = None
    safety: tuple[str, ...] = ()
    packages: tuple[PackageFacts, ...] = ()
    command: str
