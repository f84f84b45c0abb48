"""Bundles of a real run: what the card says of it, and where nothing is known."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.export import Export, ExportSource
from luthier.core.plan import Plan
from luthier.deploy.bundle import add_bundle_files, verify
from luthier.service.bundles import facts_for, push, sign_bundle, verify_bundle
from luthier.service.context import Context
from luthier.service.models import pull_model
from luthier.service.recipes import load_recipe
from luthier.service.training import TrainOutcome, train

MakeRecipe = Callable[..., Path]


def adapter_export(outcome: TrainOutcome, folder: Path) -> Export:
    """What an export of the run's adapter is before its bundle."""
    record, plan = outcome.record, outcome.plan
    assert record.result is not None
    assert record.result.adapter_path is not None
    shutil.copytree(record.result.adapter_path, folder)
    source = ExportSource(
        name=record.run_id,
        run_id=record.run_id,
        base_name=plan.base_model.name,
        base_path=plan.base_model.path,
        base_sha256=plan.base_model.sha256,
        adapter_path=record.result.adapter_path,
        adapter_sha256=record.result.adapter_sha256,
        method=plan.method.name,
        precision=plan.training.precision,
    )
    return Export(
        source=source,
        format="adapter",
        precision="float32",
        folder=str(folder),
        num_bytes=0,
        files={},
        parity=None,
        seconds=1.0,
    )


def base_export(context: Context, model: Path, folder: Path) -> Export:
    """What an export of a base model is that no run has changed."""
    view = pull_model(context, str(model))
    shutil.copytree(model, folder)
    source = ExportSource(
        name=view.name,
        run_id=None,
        base_name=view.name,
        base_path=str(view.path),
        base_sha256=str(view.sha256),
        precision="float32",
    )
    return Export(
        source=source,
        format="merged",
        precision="float32",
        folder=str(folder),
        num_bytes=0,
        files={},
        parity=None,
        seconds=1.0,
    )


def test_a_run_as_its_bundle_tells_it(context: Context, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
    folder = tmp_path / "bundle"
    export = adapter_export(outcome, folder)
    facts = facts_for(context, export)
    made = add_bundle_files(folder, export, facts)
    report = verify(folder)
    assert report.is_whole, report.faults
    assert report.bundle_sha256 == made.bundle_sha256
    card = (folder / "README.md").read_text(encoding="utf-8")
    print(card)
    print((folder / "sbom.cdx.json").read_text()[:6000])
