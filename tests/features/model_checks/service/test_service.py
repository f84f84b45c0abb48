"""A check of a base model ends with a table, whatever the model does to the process that tries it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import NotFoundError, RequestError, TemplateError
from luthier.features.model_checks.service import CHECKS, check_model
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
    found = check_model(context, str(tiny_model), max_seconds=0.01)
    assert [check.status for check in found.checks] == ["fault"] + ["not_run"] * (len(CHECKS) - 1)
    assert "0 s" in found.checks[0].reason
    assert not found.works


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
