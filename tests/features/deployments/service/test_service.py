"""Deployments by the use cases: what may be deployed, what a change does, who answers an ask."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.run import RunStatus
from luthier.core.stream import TextRequest
from luthier.features.deployments import service as deployments
from luthier.features.models.store import TunedModel
from luthier.features.runs.service import remove_run
from luthier.features.serving import models as served_models
from luthier.features.serving.checkpoint_permissions import permit
from luthier.ml.export.bundle.manifest import MANIFEST, make_manifest
from luthier.ml.export.bundle.verify import VerifyReport
from luthier.platform.audit_log.service import newest_entries
from luthier.platform.db.database import Database
from luthier.platform.home.context import Context
from luthier.testing.records import add_run, make_evaluation

ME, STRANGER = Caller(), Caller(project_id="proj-other")
REMOTE = Caller(key_id="key-1", scopes=("train",))
USERS = [f"user {number}" for number in range(50)]


def answering(context: Context, name: str = "support") -> set[str]:
    return {served_models.route(context, ME, name, user).target for user in USERS}


def test_deploy_canary_promote_roll_back(context: Context) -> None:
    a, b, c = (add_run(context, letter) for letter in "abc")
    deployments.deploy(context, ME, "support", a)
    routed = served_models.route(context, ME, "support", "u")
    assert (routed.model, routed.target, routed.served.path) == ("support", a, context.runs.get(a).result.adapter_path)  # type: ignore[union-attr]
    deployments.deploy(context, ME, "support", b, canary=0.3)
    assert answering(context) == {a, b}
    deployments.promote(context, ME, "support")
    assert answering(context) == {b}
    deployments.deploy(context, ME, "support", c)
    assert answering(context) == {c}
    for expected in ({b}, {a, b}, {a}):
        deployments.rollback(context, ME, "support")
        assert answering(context) == expected
    with pytest.raises(ConflictError, match="no revision before"):
        deployments.rollback(context, ME, "support")
    kinds = [one.kind for one in deployments.show_deployment(context, ME, "support").history]
    assert kinds == ["rollback"] * 3 + ["deploy", "promote", "canary", "deploy"]
    actions = [entry.action for entry in newest_entries(context, limit=3 + 4)]
    assert actions[::-1] == [
        "deployment.deployed",
        "deployment.canary_set",
        "deployment.promoted",
        "deployment.deployed",
        *["deployment.rolled_back"] * 3,
    ]


def test_a_split_and_its_winner(context: Context) -> None:
    a, b = (add_run(context, letter) for letter in "ab")
    deployments.split(context, ME, "support", {a: 0.5, b: 0.5})
    assert answering(context) == {a, b}
    with pytest.raises(ConflictError, match="no canary"):
        deployments.promote(context, ME, "support")
    deployments.promote(context, ME, "support", b)
    assert answering(context) == {b}


def test_what_cannot_be_deployed(context: Context) -> None:
    a = add_run(context, "a")
    unfinished_states: tuple[RunStatus, ...] = ("running", "planned", "failed")
    for number, status in enumerate(unfinished_states):
        unfinished = add_run(context, str(number), status=status)
        with pytest.raises(ConflictError, match=f"is {status}"):
            deployments.deploy(context, ME, "support", unfinished)
    for target in ("run-20261125-093000-000000", "ft:tiny:default::none", "no-such-model", "/etc", ""):
        with pytest.raises((NotFoundError, RequestError)):
            deployments.deploy(context, ME, "support", target)
    context.access.add_project("proj-other", "other")
    with pytest.raises(NotFoundError, match="no run"):
        deployments.deploy(context, STRANGER, "support", a)
    for name in (
        "",
        "ft:tiny:x",
        "a b",
        "run-20261125-093000-0000aa",
        "smollm2-135m-instruct",
        "SmolLM2-135M-Instruct",
    ):
        with pytest.raises(RequestError, match="for a deployment"):
            deployments.deploy(context, ME, name, a)
    with pytest.raises(RequestError, match="not deployed yet"):
        deployments.deploy(context, ME, "support", a, canary=0.1)
    assert context.deployments.list("default") == []


def test_no_name_is_not_the_current_folder(context: Context) -> None:
    """As of a variable of the shell that is not set."""
    with pytest.raises(NotFoundError, match="does not exist"):
        deployments.deploy(context, ME, "support", "")


def test_of_another_project_nothing_is_seen(context: Context) -> None:
    context.access.add_project("proj-other", "other")
    deployments.deploy(context, ME, "support", add_run(context, "a"))
    assert deployments.list_deployments(context, STRANGER) == []
    for use in (deployments.promote, deployments.rollback, deployments.remove, deployments.show_deployment):
        with pytest.raises(NotFoundError):
            use(context, STRANGER, "support")
    with pytest.raises(NotFoundError, match="does not exist"):
        served_models.route(context, STRANGER, "support")


def test_a_change_of_what_was_not_seen_is_refused(context: Context) -> None:
    a, b = (add_run(context, letter) for letter in "ab")
    deployments.deploy(context, ME, "support", a, expected_revision=0)
    with pytest.raises(ConflictError, match="exists already, at revision 1"):
        deployments.deploy(context, ME, "support", b, expected_revision=0)
    deployments.deploy(context, ME, "support", b, expected_revision=1)
    with pytest.raises(ConflictError, match="somebody else"):
        deployments.rollback(context, ME, "support", expected_revision=1)
    with pytest.raises(ConflictError, match="is gone"):
        deployments.deploy(context, ME, "unknown", b, expected_revision=3)


def test_a_rollback_to_what_is_gone_changes_nothing(context: Context) -> None:
    a, b = (add_run(context, letter) for letter in "ab")
    deployments.deploy(context, ME, "support", a)
    deployments.deploy(context, ME, "support", b)
    (Path(served_models.served_model(context, ME, "support").path).parents[1] / a).rename(context.home / "away")
    with pytest.raises(ConflictError, match="cannot be served"):
        deployments.rollback(context, ME, "support")
    assert answering(context) == {b}


def test_a_rollback_to_a_checkpoint_that_was_saved_again_changes_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(2_000_000_000)
    monkeypatch.setattr(Database, "clock", lambda *_: float(next(ticks)))
    a, b = (add_run(context, letter) for letter in "ab")
    result = context.runs.get(a).result
    assert result is not None
    name, folder = "ft:tiny:default:mine:1", str(result.adapter_path)
    made = TunedModel(model_id=name, project_id="default", job_id="", run_id=a, base_model="tiny", adapter_path=folder)
    context.tuned_models.add(made)
    deployments.deploy(context, ME, "support", name)
    deployments.deploy(context, ME, "support", b)
    assert deployments.rollback(context, ME, "support").revision.shares[0].target == name, "it is as it was"
    deployments.deploy(context, ME, "support", b)
    context.tuned_models.delete("default", name)
    context.tuned_models.add(made)
    with pytest.raises(ConflictError, match=r"revision 3 .* has been saved again since, with other weights"):
        deployments.rollback(context, ME, "support")
    assert answering(context) == {b}


def test_a_rollback_to_a_run_whose_client_has_saved_another_result_changes_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(2_000_000_000)
    monkeypatch.setattr(Database, "clock", lambda *_: float(next(ticks)))
    a, b = (add_run(context, letter) for letter in "ab")

    def save(name: str) -> None:
        """As a client of the Tinker API does."""
        result, folder = context.runs.get(a).result, context.settings.run_folder(a) / "tinker" / name / "adapter"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        assert result is not None
        context.runs.update(a, result=result.model_copy(update={"adapter_path": str(folder)}))
        common: dict[str, Any] = {"project_id": "default", "job_id": "", "run_id": a, "base_model": "tiny", "step": 4}
        context.tuned_models.add(TunedModel(model_id=f"ft:tiny:default:{name}:1", adapter_path=str(folder), **common))

    save("first")
    deployments.deploy(context, ME, "support", a)
    deployments.deploy(context, ME, "support", b)
    assert deployments.rollback(context, ME, "support").revision.shares[0].target == a, "it is as it was"
    deployments.deploy(context, ME, "support", b)
    save("second")
    with pytest.raises(ConflictError, match=r"revision 3 .* has been saved again since, with other weights"):
        deployments.rollback(context, ME, "support")
    assert answering(context) == {b}


def test_an_export_is_deployed_by_its_folder_on_this_machine_alone(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConflictError, match=r"bundle\.json is missing"):
        deployments.deploy(context, ME, "support", str(folder))
    whole = VerifyReport(folder=str(folder), bundle_sha256=None, num_files=1, num_bytes=4, faults=())
    monkeypatch.setattr("luthier.ml.export.bundle.verify", lambda folder: whole)
    (folder / "parity.json").write_text(json.dumps({"passed": False, "reasons": ["5 texts differ"]}))
    with pytest.raises(ConflictError, match="did not pass its proof"):
        deployments.deploy(context, ME, "support", str(folder))
    (folder / "parity.json").write_text(json.dumps({"passed": True}))
    with pytest.raises(NotFoundError):
        deployments.deploy(context, REMOTE, "support", str(folder))
    deployments.deploy(context, ME, "support", str(folder))
    routed = served_models.route(context, ME, "support")
    assert (routed.target, routed.served.engine) == ("export:small", "llama_cpp")
    assert routed.served.path == str(folder / "model.gguf")
    shown = deployments.show_deployment(context, ME, "support").as_json()
    assert str(tmp_path) not in json.dumps(shown)
    deployments.deploy(context, ME, "support", add_run(context, "a"))
    (folder / "model.gguf").rename(folder / "model.onnx")
    with pytest.raises(RequestError, match="nothing that can be served"):
        deployments.deploy(context, ME, "support", str(folder))
    with pytest.raises(ConflictError, match=r"revision 1 .* cannot be served: .* nothing that can be served"):
        deployments.rollback(context, ME, "support")


def test_an_export_that_was_replaced_in_its_folder_does_not_answer(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates and evaluations are about the weights that were deployed."""
    folder = tmp_path / "small"
    whole = VerifyReport(folder=str(folder), bundle_sha256=None, num_files=1, num_bytes=4, faults=())
    monkeypatch.setattr("luthier.ml.export.bundle.verify", lambda folder: whole)

    def export(weights: bytes, card: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "model.gguf").write_bytes(weights)
        (folder / "README.md").write_text(card)
        (folder / "parity.json").write_text(json.dumps({"passed": True}))
        (folder / MANIFEST).write_bytes(make_manifest(folder).as_bytes())

    export(b"GGUF a", "of Monday")
    deployments.deploy(context, ME, "support", str(folder))
    export(b"GGUF a", "of Tuesday")
    assert answering(context) == {"export:small"}, "the same model was exported again"
    export(b"GGUF b", "of Tuesday")
    with pytest.raises(ConflictError, match="export:small has other weights than when it was deployed"):
        served_models.route(context, ME, "support", "u")
    made = deployments.deploy(context, ME, "support", str(folder))
    assert answering(context) == {"export:small"}
    assert "weights_sha256" not in json.dumps(deployments.revision_json(made.revision))
    with pytest.raises(ConflictError, match="has other weights"):
        deployments.rollback(context, ME, "support")
    (folder / MANIFEST).unlink()
    with pytest.raises(ConflictError, match="has other weights"):
        served_models.route(context, ME, "support", "u")


def test_a_run_is_not_asked_by_its_id_and_a_deployment_is_listed(context: Context) -> None:
    a = add_run(context, "a")
    with pytest.raises(NotFoundError, match=f"luthier deploy {a} --as NAME"):
        served_models.route(context, ME, a)
    deployments.deploy(context, ME, "support", a)
    assert [model.model_id for model in served_models.list_models(context, ME)] == ["support"]
    assert served_models.get_model(context, ME, "support").owned_by == "default"
    with pytest.raises(ConflictError, match="is a deployment"):
        served_models.delete_model(context, ME, "support")
    deployments.remove(context, ME, "support")
    assert served_models.list_models(context, ME) == []


def test_what_answers_is_not_removed(context: Context) -> None:
    a, b = (add_run(context, letter) for letter in "ab")
    deployments.deploy(context, ME, "support", a)
    with pytest.raises(ConflictError, match="answers as support"):
        remove_run(context, a)
    deployments.deploy(context, ME, "support", b)
    assert remove_run(context, a).run_id == a
    with pytest.raises(ConflictError, match="cannot be served"):
        deployments.rollback(context, ME, "support")


def test_a_canary_whose_files_are_gone_is_not_promoted(context: Context) -> None:
    a, b = (add_run(context, letter) for letter in "ab")
    deployments.deploy(context, ME, "support", a)
    deployments.deploy(context, ME, "support", b, canary=0.1)
    shutil.rmtree(context.settings.run_folder(b))
    with pytest.raises(ConflictError, match=f"revision 2 of 'support' goes to {b}, which cannot be served"):
        deployments.promote(context, ME, "support")
    assert context.deployments.get(ME.project_id, "support").revision.canary == b


def test_names_of_another_project_are_not_told_to_who_removes_a_run(context: Context) -> None:
    run, name = add_run(context, "a"), "ft:tiny:default::one:ckpt-step-5"
    place = str(context.settings.run_folder(run) / "model")
    common = {"project_id": "default", "job_id": "job-1", "run_id": run, "base_model": "tiny"}
    context.tuned_models.add(TunedModel(model_id=name, adapter_path=place, step=5, **common))
    context.access.add_project("proj-other", "other")
    permit(context, ME, name, ["proj-other"])
    deployments.deploy(context, Caller(project_id="proj-other"), "secret", name)
    with pytest.raises(ConflictError, match="is the source of ft:tiny") as refused:
        remove_run(context, run)
    assert "secret" not in f"{refused.value} {refused.value.do}"
    with pytest.raises(ConflictError, match="1 deployments route to"):
        served_models.delete_model(context, ME, name)


def test_the_turns_of_one_conversation_stay_together() -> None:
    def asked(*messages: tuple[str, str]) -> str:
        turns = tuple(Message(role=role, content=text) for role, text in messages)  # type: ignore[arg-type]
        return served_models.user_of(REMOTE, [TextRequest(conversation=Conversation(messages=turns))])

    begin = [("system", "Be kind."), ("user", "Hello")]
    assert asked(*begin) == asked(*begin, ("assistant", "Hi"), ("user", "And then?"))
    assert asked(*begin) != asked(("system", "Be kind."), ("user", "Hello there"))
    named = served_models.user_of(REMOTE, [TextRequest(text="x")], "ann")
    assert named == served_models.user_of(ME, [], "ann") != served_models.user_of(ME, [], "bob")
    texts = [TextRequest(text="x"), TextRequest(text="y")]
    assert served_models.user_of(ME, texts[:1]) != served_models.user_of(ME, texts[1:])


def test_what_nobody_has_judged_is_in_the_revision_and_in_the_audit_log(context: Context) -> None:
    judged, unknown = (add_run(context, letter) for letter in "ab")
    context.evaluations.save(make_evaluation(run_id=judged))
    assert deployments.deploy(context, ME, "support", judged).revision.unjudged == ()
    made = deployments.deploy(context, ME, "support", unknown)
    assert made.revision.unjudged == (unknown,)
    document = json.loads(newest_entries(context, project_id=ME.project_id, limit=1)[0].document)
    assert document["unjudged"] == [unknown]
    with pytest.raises(ConflictError, match="no evaluation of") as refused:
        deployments.deploy(context, ME, "other", unknown, may_be_unjudged=False)
    assert "--unjudged" in refused.value.do
    assert context.deployments.find(ME.project_id, "other") is None
    half = deployments.split(context, ME, "ab", {judged: 0.5, unknown: 0.5}, may_be_unjudged=False)
    assert half.revision.unjudged == (unknown,), "one beside a judged one is a try, and is on record"
    tried = deployments.deploy(context, ME, "support", judged, canary=0.1)
    assert tried.revision.unjudged == (unknown,), "most users still get it"
    assert deployments.promote(context, ME, "support").revision.unjudged == ()
    assert deployments.rollback(context, ME, "support").revision.unjudged == (unknown,), "it answers again"
    context.evaluations.save(make_evaluation("eval-20261125-100000-bbbbbb", run_id=unknown))
    assert deployments.rollback(context, ME, "support").revision.unjudged == (), "it was evaluated since"


def test_a_tuned_model_of_another_project_is_deployed_with_its_permission_alone(context: Context) -> None:
    run_id, name = add_run(context, "a"), "ft:tiny:default:mine:1"
    folder = str(context.runs.get(run_id).result.adapter_path)  # type: ignore[union-attr]
    context.tuned_models.add(
        TunedModel(
            model_id=f"{name}:ckpt-step-5", project_id="default", job_id="ftjob-1", run_id=run_id, base_model="tiny",
            adapter_path=folder, step=5, checkpoint_id="ftckpt_1",
        )
    )  # fmt: skip
    local = Caller(project_id=context.access.add_project("proj-other", "other").project_id)
    with pytest.raises(NotFoundError, match="does not exist"):
        deployments.deploy(context, local, "support", f"{name}:ckpt-step-5")
    permit(context, ME, f"{name}:ckpt-step-5", ["proj-other"])
    deployments.deploy(context, local, "support", f"{name}:ckpt-step-5")
    assert [one.name for one in context.deployments.list("proj-other")] == ["support"]
    assert context.deployments.list("default") == []


def test_two_folders_of_one_last_name_are_two_targets(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary, and the figures of each, go by the target."""
    whole = VerifyReport(folder="", bundle_sha256=None, num_files=1, num_bytes=4, faults=())
    monkeypatch.setattr("luthier.ml.export.bundle.verify", lambda folder: whole)
    folders = [tmp_path / name / "model" for name in "abc"]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(b"GGUF%d" % number)
        (folder / "parity.json").write_text(json.dumps({"passed": True}))
    deployments.deploy(context, ME, "support", str(folders[0]))
    deployments.deploy(context, ME, "support", str(folders[1]), canary=0.5)
    assert answering(context) == {"export:model", "export:model-2"}
    served = {served_models.route(context, ME, "support", user).served.path for user in USERS}
    assert served == {str(folder / "model.gguf") for folder in folders[:2]}
    deployments.promote(context, ME, "support")
    deployments.deploy(context, ME, "support", str(folders[0]))
    assert answering(context) == {"export:model"}, "each folder keeps its name"
    # In another deployment of the project, and of several new ones at once.
    deployments.split(context, ME, "trial", {str(folders[2]): 0.5, str(folders[1]): 0.5})
    assert answering(context, "trial") == {"export:model-3", "export:model-2"}
    deployments.remove(context, ME, "trial")
    deployments.remove(context, ME, "support")
    deployments.split(context, ME, "support", {str(folder): 1 / 3 for folder in folders})
    assert answering(context) == {"export:model", "export:model-2", "export:model-3"}
