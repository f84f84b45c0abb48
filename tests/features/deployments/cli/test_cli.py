"""`luthier deploy`, `promote`, `rollback`, `deployments` and `usage`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from luthier.core.errors import RequestError
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.core.system import gpu_device
from luthier.features.deployments.cli import parse_split
from luthier.features.deployments.format import show_change
from luthier.platform.auth.store import Use
from luthier.platform.cli.console import stdout_console
from luthier.platform.home.context import Context
from luthier.testing.records import add_run, make_evaluation


@pytest.fixture
def runs(home: Path) -> list[str]:
    """Two runs that were evaluated."""
    with Context.open(home) as context:
        found = [add_run(context, letter) for letter in "ab"]
        for run_id, letter in zip(found, "ab", strict=True):
            context.evaluations.save(make_evaluation(f"eval-20261125-093000-{6 * letter}", run_id=run_id))
        return found


def test_the_way_of_a_deployment(luthier, home: Path, runs: list[str]) -> None:  # type: ignore[no-untyped-def]
    a, b = runs
    assert "luthier deploy RUN --as NAME" in luthier("deployments").out
    first = luthier("deploy", a, "--as", "support")
    assert "support is at revision 1 (deployed)" in first.out
    assert "100% of users" in first.out
    tried = luthier("deploy", b, "--as", "support", "--canary", 0.1)
    assert "luthier promote support, or luthier rollback support" in tried.out
    assert "10% of users (canary)" in tried.out
    document = luthier("promote", "support", "--json").document
    assert (document["revision"]["number"], document["revision"]["shares"][0]["target"]) == (3, b)
    assert luthier("rollback", "support", "--expect", 3).code == 0
    stale = luthier("rollback", "support", "--expect", 3, "--json")
    assert (stale.code, stale.document["error"]["type"]) == (2, "ConflictError")
    with Context.open(home) as context:
        use = {"project_id": "default", "key_id": "", "model": "support", "num_prompt_tokens": 7, "num_new_tokens": 2}
        context.usage.add(Use(**use, target=a))
    listed = luthier("deployments", "--json").document
    assert [(one["name"], one["requests"]) for one in listed] == [("support", {a: 1})]
    assert "90%" in luthier("deployments").out
    shown = luthier("deployments", "support").out
    assert "rolled back" in shown
    assert "1 request" in shown
    assert [one["number"] for one in luthier("deployments", "support", "--json").document["history"]] == [4, 3, 2, 1]
    assert "support" in luthier("usage").out
    assert luthier("usage", "--json").document[0]["num_prompt_tokens"] == 7
    assert "requests by this name" in luthier("deployments", "support", "--remove").out
    assert luthier("deployments", "--json").document == []


def test_what_nobody_has_judged_answers_everybody_only_when_that_is_said(luthier, home: Path, runs: list[str]) -> None:  # type: ignore[no-untyped-def]
    with Context.open(home) as context:
        unknown = add_run(context, "c")
    refused = luthier("deploy", unknown, "--as", "support", "--json")
    assert (refused.code, refused.document["error"]["type"]) == (2, "ConflictError")
    assert (
        f"no evaluation of {unknown}, and it would answer all users of 'support'" in refused.document["error"]["came"]
    )
    assert f"luthier eval {unknown}" in refused.document["error"]["do"]
    assert "--unjudged" in refused.document["error"]["do"]
    assert luthier("deployments", "--json").document == []
    assert luthier("deploy", runs[0], "--as", "support", "--json").document["revision"]["unjudged"] == []
    assert "--canary 0.1" in luthier("deploy", unknown, "--as", "support", "--json").document["error"]["do"]
    tried = luthier("deploy", unknown, "--as", "support", "--canary", 0.1)
    assert f"warning: There is no evaluation of {unknown}." in tried.out
    assert luthier("promote", "support").code == 2, (
        "a canary that nobody judged does not take over without a word either"
    )
    made = luthier("promote", "support", "--unjudged")
    assert (made.code, "warning: There is no evaluation of" in made.out) == (0, True)
    assert luthier("deployments", "support", "--json").document["revision"]["unjudged"] == [unknown]
    with Context.open(home) as context:
        entries = context.audit_log.about("default", "support", limit=10)
        assert json.loads(entries[0].document)["unjudged"] == [unknown]


def test_a_split(luthier, runs: list[str]) -> None:  # type: ignore[no-untyped-def]
    a, b = runs
    made = luthier("deploy", "--as", "ab", "--split", f"{a}=0.5,{b}=0.5", "--json").document
    assert [share["fraction"] for share in made["revision"]["shares"]] == [0.5, 0.5]
    assert luthier("promote", "ab", b, "--json").document["revision"]["shares"][0]["target"] == b


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--as", "n"], "neither a RUN nor --split"),
        (["run-20261125-093000-000000", "--as", "n"], "no run"),
        (["gone", "--as", "n"], "does not exist"),
        (["x", "--as", "n", "--split", "a=1"], "contradict"),
        (["--as", "n", "--split", "a"], "--split run-a=0.5,run-b=0.5"),
        (["--as", "n", "--split", "a=0.5,a=0.5"], "twice"),
        (["x", "--as", "n", "--project", "none"], "luthier projects create"),
    ],
)
def test_what_is_wrong_is_explained(luthier, options: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    done = luthier("deploy", *options)
    assert done.code == 2
    assert words in done.err
    assert luthier("deployments", "--remove").code == 2
    assert luthier("usage").out.startswith("no requests")


def test_a_target_may_have_an_equals_sign() -> None:
    assert parse_split("/a=b/c=0.25, d=0.75") == {"/a=b/c": 0.25, "d": 0.75}
    with pytest.raises(RequestError):
        parse_split("=1")


def test_a_gate_refuses_and_is_overridden_with_a_reason(luthier, home: Path, runs: list[str], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules:\n  - {metric: sql.execution_accuracy, at_least: 0.8}\n", encoding="utf-8")
    refused = luthier("deploy", runs[0], "--as", "support", "--gate", gate, "--json")
    assert (refused.code, refused.document["error"]["type"]) == (2, "ConflictError")
    assert "was not evaluated" in refused.document["error"]["came"]
    short = luthier("deploy", runs[0], "--as", "support", "--gate", gate, "--override", "because", "--json")
    assert (short.code, short.document["error"]["type"]) == (2, "RequestError")
    reason = "The old one insults customers; refusals are mended next week."
    made = luthier("deploy", runs[0], "--as", "support", "--gate", gate, "--override", reason)
    assert "gate: overridden, 1 of 1 rules not met" in made.out
    assert f"reason: {reason}" in made.out
    document = luthier("deployments", "support", "--json").document
    assert document["revision"]["gate"]["override"] == reason
    assert luthier("deploy", runs[1], "--as", "support", "--override", reason, "--json").code == 2, "no gate holds"


def test_the_report_of_a_run_needs_one_that_is_there(luthier, runs: list[str]) -> None:  # type: ignore[no-untyped-def]
    missing = luthier("report", runs[0], "--json")
    assert (missing.code, missing.document["error"]["type"]) == (2, "NotFoundError")


def test_a_copy_is_made_where_it_is_asked_for(
    luthier, home: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    from luthier.features.serving import engine_choice

    asked = []

    def run_child(function: str, document: dict[str, object], **_: object) -> dict[str, object]:
        asked.append(function.partition(":")[2])
        return {"why_not": "llama.cpp does not hold it"}

    monkeypatch.setattr(engine_choice, "run_child", run_child)
    monkeypatch.setattr(gpu_device, "NVIDIA", tmp_path / "none")
    monkeypatch.setattr(engine_choice, "_check_room", lambda *_: None)
    assert "engines" not in luthier("deploy", runs[0], "--as", "support", "--json").document
    assert asked == []
    made = luthier("deploy", runs[1], "--as", "support", "--gguf-copy", "--json").document
    assert made["engines"] == {runs[1]: {"engine": "transformers", "reason": "llama.cpp does not hold it"}}
    assert asked == ["make_base"]
    shown = luthier("deploy", runs[1], "--as", "other", "--gguf-copy").out
    assert f"engine of {runs[1]}: transformers (llama.cpp does not hold it)" in shown
    # What answers is shown afterwards, too.
    assert f"engine of {runs[1]}: transformers" in luthier("deployments", "other").out
    (engine,) = luthier("deployments", "other", "--json").document["engines"][runs[1]]
    assert (engine["engine"], engine["speed"]) == ("transformers", None)
    assert "is_loaded" not in engine


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("canary", "Next: luthier promote faq --project 'the shop', or luthier rollback faq --project 'the shop'"),
        ("promote", "Back: luthier rollback faq --project 'the shop'"),
    ],
)
def test_the_commands_for_what_comes_next_are_about_its_project(
    kind: Literal["canary", "promote"], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the default project they would change another deployment of this name."""
    shares = (Share(target="run-1", fraction=0.9), Share(target="run-2", fraction=0.1))
    canary = "run-2" if kind == "canary" else None
    revision = Revision(number=2, kind=kind, shares=shares, canary=canary, before=1)
    made = Deployment(deployment_id="d-faq", project_id="proj-1", name="faq", revision=revision)
    show_change(stdout_console(), made, "the shop", {})
    assert said in capsys.readouterr().out.splitlines()
