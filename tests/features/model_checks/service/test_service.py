"""A check of a base model ends with a table, whatever the model does to the process that tries it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import NotFoundError, RequestError, StoppedError, TemplateError
from luthier.core.records.base_model import LocalModel
from luthier.features.model_checks import service
from luthier.features.model_checks.service import CHECKS, check_model
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context


def test_a_check_says_by_which_path_each_part_works(context: Context, tiny_model: Path) -> None:
    found = check_model(context, str(tiny_model))
    statuses = {check.name: check.status for check in found.checks}
    assert [statuses[part] for part in CHECKS if part != "rows"] == ["works"] * (len(CHECKS) - 1)
    assert (found.architecture, found.layers) == ("LlamaForCausalLM", "all")
    assert all(nonempty(check.path for check in found.checks if check.status == "works"))
    refused = [check for check in found.checks if check.status == "refused"]
    assert [check for check in refused if not (check.reason and check.remedy)] == []


def test_time_is_bounded(context: Context, tiny_model: Path) -> None:
    found = check_model(context, str(tiny_model), max_seconds=1e-6)
    assert [check.status for check in found.checks] == ["fault"] + ["not_run"] * (len(CHECKS) - 1)
    assert "0 s" in found.checks[0].reason
    assert not found.works


def test_a_check_ends_within_a_part_where_it_is_cancelled(
    context: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources.pull(str(tiny_model), context.home, context.progress)
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(StoppedError, match="cancelled"):
        check_model(context, str(tiny_model), stop_requested=lambda: "cancelled")


def test_a_process_that_dies_is_a_fault_of_its_part(
    context: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nkill -9 $$\n", encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    found = check_model(context, str(tiny_model))
    assert (found.checks[0].name, found.checks[0].status) == ("template", "fault")
    assert "signal 9" in found.checks[0].reason
    assert {check.status for check in found.checks[1:]} == {"not_run"}


def test_a_template_without_an_end_is_refused(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "endless"))
    endless = "{% set t = namespace(x='a') %}{% for n in range(60) %}{% set t.x = t.x ~ t.x %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(endless, encoding="utf-8")
    with pytest.raises(TemplateError, match="the chat template takes more"):  # it is not even pulled
        check_model(context, str(folder))


def test_wrong_questions_are_refused(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="max_seconds"):
        check_model(context, str(tiny_model), max_seconds=0)
    with pytest.raises(NotFoundError, match="no such file"):
        check_model(context, str(tiny_model), rows=tmp_path / "none.jsonl")


def test_what_is_too_large_for_the_memory_is_not_loaded(
    context: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def run(function: str, document: dict[str, Any], **_: Any) -> None:
        asked.append({"function": function, **document})

    monkeypatch.setattr(service, "run_child", run)
    monkeypatch.setattr(service, "_MAX_SHARE", 0.0)
    monkeypatch.setattr(sources, "pull", _without_layers(sources.pull))
    found = check_model(context, str(tiny_model))
    assert [one["computes"] for one in asked] == [False]
    assert found.layers == "none"
    assert {check.status for check in nonempty(found.checks)} == {"not_run"}
    assert "too large for the memory in float32" in found.checks[0].reason


def _without_layers(pull: Callable[..., LocalModel]) -> Callable[..., LocalModel]:
    def pulled(name: str, *arguments: Any, **more: Any) -> LocalModel:
        if name.startswith("layers:"):
            raise RequestError("no such layers", expected="others", do="take others")
        return pull(name, *arguments, **more)

    return pulled
