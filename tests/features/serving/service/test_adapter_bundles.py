"""Adapters over the base that they were trained over, read as training read it; another base is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from luthier.core.access import Caller
from luthier.core.conversation import OptedTurns
from luthier.core.errors import ConflictError, RequestError
from luthier.core.plan import Plan
from luthier.core.ports import SilentProgress
from luthier.core.records.base_model import LocalModel
from luthier.features.generation.engines import identity_of
from luthier.features.models.names import base_of_adapter
from luthier.features.models.resolve import find_base, find_candidate
from luthier.features.serving.targets import served_export, served_target
from luthier.ml.inference.models import catalog, sources
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_record, make_result
from luthier.testing.tiny import make_tiny_model

_RUN = "run-20261125-093000-cccccc"


@pytest.fixture
def base(context: Context, tiny_model: Path) -> LocalModel:
    return sources.pull(str(tiny_model), context.home, SilentProgress())


def _plan(base: LocalModel, sha256: str | None = None) -> Plan:
    """A plan in which everything differs that changes what an adapter answers."""
    plan = make_plan(model_sha256=base.sha256 if sha256 is None else sha256)
    given = {"template_options": {"enable_thinking": False}, "system": "fold"}
    return plan.model_copy(
        update={
            "base_model": plan.base_model.model_copy(update={"name": base.name, "template": "plain"}),
            "method": plan.method.model_copy(update={"quantisation": "int8"}),
            "data": plan.data.model_copy(update=given),
            "training": plan.training.model_copy(update={"precision": "bfloat16"}),
        }
    )


def _bundle(folder: Path, named: str, plan: Plan | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(plan.model_dump(mode="json")), encoding="utf-8")
    return folder


def test_an_exported_adapter_is_served_and_evaluated_as_its_run(
    context: Context, base: LocalModel, tmp_path: Path
) -> None:
    bundle = _bundle(tmp_path / "bundle", Path(base.name).name, _plan(base))
    for found in (served_export(context, bundle), find_candidate(context, str(bundle))):
        assert (found.template, found.precision, found.quantisation) == ("plain", "bfloat16", "int8")
        assert dict(found.template_options) == {"enable_thinking": False}
        assert found.opted_turns == OptedTurns(folds_system=True)
        assert found.adapter_path == str(bundle)
    assert served_export(context, bundle).path == base.path
    # What was stored of its answers before has other prompts.
    known = identity_of(context, str(bundle), find_candidate(context, str(bundle)))
    (bundle / "plan.json").unlink()
    assert known != identity_of(context, str(bundle), find_candidate(context, str(bundle)))


def test_without_a_plan_an_adapter_is_put_on_the_base_as_it_is(
    context: Context, base: LocalModel, tmp_path: Path
) -> None:
    bundle = _bundle(tmp_path / "bundle", base.name, None)
    served = served_export(context, bundle)
    assert (served.path, served.template, served.precision, served.quantisation) == (base.path, "auto", None, None)
    (bundle / "plan.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RequestError, match=r"has a plan\.json that is not a plan"):
        served_export(context, bundle)


def test_of_two_bases_of_one_name_the_one_with_the_digest_is_taken(context: Context, tmp_path: Path) -> None:
    folders = [make_tiny_model(tmp_path / place / "model", seed=seed) for seed, place in enumerate("ab")]
    bases = [sources.pull(str(folder), context.home, SilentProgress()) for folder in folders]
    assert bases[0].sha256 != bases[1].sha256
    for number, one in enumerate(bases):
        bundle = _bundle(tmp_path / f"bundle-{number}", "model", _plan(one))
        assert served_export(context, bundle).path == one.path
        assert find_candidate(context, str(bundle)).model_path == one.path


def test_an_adapter_over_another_base_is_refused(context: Context, base: LocalModel, tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", base.name, _plan(base, "5" * 64))
    for load in (lambda: served_export(context, bundle), lambda: find_candidate(context, str(bundle))):
        with pytest.raises(ConflictError, match="is another one") as caught:
            load()
        assert caught.value.expected == f"digest {'5' * 12}, over which the adapter was trained"


def _run(context: Context, folder: Path, plan: Plan) -> None:
    result = make_result().model_copy(update={"status": "succeeded", "adapter_path": str(folder)})
    context.runs.create(make_record(_RUN, status="succeeded", result=result), plan)


def test_a_run_whose_base_was_replaced_is_neither_served_nor_evaluated(
    context: Context, tmp_path: Path, tiny_model: Path
) -> None:
    own = Path(shutil.copytree(tiny_model, tmp_path / "own"))
    before = sources.pull(str(own), context.home, SilentProgress())
    _run(context, _bundle(context.settings.run_folder(_RUN) / "adapter", before.name, None), _plan(before))
    assert served_target(context, Caller(), _RUN).path == find_candidate(context, _RUN).model_path == before.path
    # Another model is put into the folder, and pulled.
    shutil.rmtree(own)
    make_tiny_model(own, seed=7)
    after = sources.pull(str(own), context.home, SilentProgress())
    assert (after.name, after.sha256 != before.sha256) == (before.name, True)
    for refused in (
        lambda: served_target(context, Caller(), _RUN),
        lambda: find_candidate(context, _RUN),
        lambda: find_base(context, _RUN),
    ):
        with pytest.raises(ConflictError, match=f"is another one \\(digest {after.sha256[:12]}\\)"):
            refused()


def test_a_whole_model_needs_nothing_of_its_base(context: Context, base: LocalModel) -> None:
    folder = context.settings.run_folder(_RUN) / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    _run(context, folder, _plan(base, "5" * 64))
    assert served_target(context, Caller(), _RUN).path == find_candidate(context, _RUN).model_path == str(folder)


def test_a_base_of_the_catalogue_is_known_by_its_repository(
    context: Context, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = sources.pull(str(tiny_model), context.home, SilentProgress())
    entry = next(one for one in catalog.built_in() if one.hub is not None)
    monkeypatch.setattr(catalog, "entries", lambda: {base.name: entry.model_copy(update={"hub": "maker/tiny@0123abc"})})
    bundle = _bundle(tmp_path / "bundle", "maker/tiny", None)
    written, found = base_of_adapter(context, bundle)
    assert written == "maker/tiny"
    assert found is not None
    assert found.path == base.path


def test_an_adapter_over_packed_weights_is_refused_by_name(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    packed = shutil.copytree(tiny_model, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (packed / "config.json").write_text(json.dumps(config | {"quantization_config": gptq}), encoding="utf-8")
    with pytest.raises(RequestError, match=r"weights are packed \(GPTQ, 4 bits in groups of 128\)") as caught:
        served_export(context, _bundle(tmp_path / "bundle", str(packed), None))
    assert "in 16 bits as base_model_name_or_path" in caught.value.do


def test_an_adapter_over_a_base_that_was_packed_since_is_refused(
    context: Context, base: LocalModel, tmp_path: Path
) -> None:
    file = Path(base.path) / "config.json"
    kept = file.read_text(encoding="utf-8")
    try:
        file.write_text(json.dumps(json.loads(kept) | {"quantization_config": {"quant_method": "awq", "bits": 4}}))
        with pytest.raises(RequestError, match="packed"):
            served_export(context, _bundle(tmp_path / "bundle", base.name, None))
    finally:
        file.write_text(kept, encoding="utf-8")
