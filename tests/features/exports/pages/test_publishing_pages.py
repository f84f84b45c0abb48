"""Exports are signed and pushed by their page, with keys and to places that the operator names, by admins alone."""

from __future__ import annotations

import io
import shutil
import tarfile
import threading
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import Browser, shown
from tests.homes import add_export, fill
from tests.ml.export.bundle.keys import write_curve_keys

from luthier.core.errors import RequestError
from luthier.core.ids import sha256_file
from luthier.core.records.export import ExportSource
from luthier.features.exports.bundles import facts_for
from luthier.features.models.service import pull_model
from luthier.ml.export.bundle import add_bundle_files, verify
from luthier.ml.export.bundle import push as bundle_push
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.ui import page_work
from luthier.platform.ui.work_progress import Stage
from luthier.testing.servers import wait_for


@pytest.fixture
def export_id(home: Context, tiny_model: Path) -> str:
    """An export of a base model with a whole bundle."""
    view = pull_model(home, str(tiny_model))
    made = add_export(home, "tiny")
    folder = home.settings.exports_folder / made
    shutil.rmtree(folder)
    shutil.copytree(str(view.path), folder)
    source = ExportSource(
        name=view.name, run_id=None, base_name=view.name, base_path=str(view.path), base_sha256=str(view.sha256),
        precision="float32",
    )  # fmt: skip
    stored = home.exports.get("default", made).document
    assert stored is not None
    export = stored.model_copy(update={"source": source, "folder": str(folder), "files": {}})
    add_bundle_files(folder, export, facts_for(home, export))
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    home.exports.finish(made, export.model_copy(update={"files": files}))
    return made


def allow(home: Context, **values: Any) -> None:
    home.settings = home.settings.model_copy(update=values)


def push(one: TestClient, export_id: str, target: str, name: str = "mine") -> Any:
    return one.post(f"/exports/{export_id}/push", data={"target": target, "name": name})


def test_an_export_is_signed_and_its_download_has_the_signature(
    home: Context, browser: Browser, export_id: str, tmp_path: Path
) -> None:
    private, public = write_curve_keys(tmp_path, "server")
    allow(home, signing_key=private)
    one, address = browser("admin"), f"/exports/{export_id}"
    before = home.exports.get("default", export_id).document
    assert before is not None
    assert "Sign it" in one.get(address).text
    page = unescape(shown(one, one.post(f"{address}/sign")).text)
    assert "The export is signed by ecdsa:" in page
    assert "It is signed: the signature is one of the files." in page
    with tarfile.open(fileobj=io.BytesIO(one.get(f"{address}/files.tar").content)) as tar:
        tar.extractall(tmp_path / "copy", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    report = verify(tmp_path / "copy" / export_id, key=public)
    assert (report.is_whole, report.is_signer_proved) == (True, True)
    after = home.exports.get("default", export_id).document
    assert after is not None
    signature = home.settings.exports_folder / export_id / "model.sig"
    assert after.num_bytes - before.num_bytes == signature.stat().st_size
    assert home.audit_log.newest(limit=1)[0].action == "export.signed"
    assert one.post(f"{address}/sign").status_code == 303, "the same key again changes nothing"
    again = home.exports.get("default", export_id).document
    assert again == after


def test_an_export_is_pushed_to_a_place_that_the_operator_allows(
    home: Context, browser: Browser, export_id: str, tmp_path: Path
) -> None:
    target = f"file://{tmp_path}/shelf"
    allow(home, push_targets=f"hf://acme {target}")
    one = browser("admin")
    assert f'<option value="{target}"' in one.get(f"/exports/{export_id}").text
    page = unescape(shown(one, push(one, export_id, target)).text)
    assert "The export is complete at" in page
    assert verify(tmp_path / "shelf" / "mine").is_whole
    assert home.audit_log.newest(limit=1)[0].action == "export.pushed"
    for place, name in (
        (f"file://{tmp_path}", "mine"),
        (f"{target}/..", "mine"),
        ("hf://others", "mine"),
        (target, "../out"),
        (target, ".hidden"),
        (target, ""),
    ):
        answer = push(one, export_id, place, name)
        assert answer.status_code == 422, (place, name)
        assert str(home.home) not in answer.text
    assert sorted(path.name for path in (tmp_path / "shelf").iterdir()) == ["mine"]


def test_nothing_is_signed_or_pushed_where_the_operator_names_nothing(
    home: Context, browser: Browser, export_id: str
) -> None:
    one = browser("admin")
    text = one.get(f"/exports/{export_id}").text
    assert "LUTHIER_SIGNING_KEY" in text
    assert f"/exports/{export_id}/sign" not in text
    assert f"/exports/{export_id}/push" not in text
    assert one.post(f"/exports/{export_id}/sign").status_code == 422
    assert push(one, export_id, "hf://acme").status_code == 422


def test_only_admins_of_the_project_sign_and_push(
    home: Context, browser: Browser, export_id: str, tmp_path: Path
) -> None:
    allow(home, signing_key=write_curve_keys(tmp_path, "server")[0], push_targets=f"file://{tmp_path}/shelf")
    trainer = browser("read", "train")
    assert "Sign and push" not in trainer.get(f"/exports/{export_id}").text
    assert trainer.post(f"/exports/{export_id}/sign").status_code == 403
    assert push(trainer, export_id, f"file://{tmp_path}/shelf").status_code == 403
    friend = browser("admin", project=create_project(home, "friend").project_id)
    assert friend.post(f"/exports/{export_id}/sign").status_code == 404
    assert push(friend, export_id, f"file://{tmp_path}/shelf").status_code == 404
    assert not (tmp_path / "shelf").exists()


def test_an_error_of_the_key_names_no_path(home: Context, browser: Browser, export_id: str, tmp_path: Path) -> None:
    allow(home, signing_key=tmp_path / "gone.pem")
    answer = browser("admin").post(f"/exports/{export_id}/sign")
    assert answer.status_code == 404
    assert str(tmp_path) not in answer.text
    assert "gone.pem" in answer.text


def test_an_export_that_has_changed_is_neither_signed_nor_pushed(
    home: Context, browser: Browser, tmp_path: Path
) -> None:
    made = fill(home)
    allow(home, signing_key=write_curve_keys(tmp_path, "server")[0], push_targets=f"file://{tmp_path}/shelf")
    one = browser("admin")
    for answer in (
        one.post(f"/exports/{made.export_id}/sign"),
        push(one, made.export_id, f"file://{tmp_path}/shelf"),
    ):
        assert answer.status_code == 422
        assert "not a complete bundle" in answer.text
    assert not (tmp_path / "shelf").exists()


@pytest.mark.parametrize("value", ["s3://key:secret@bucket", "hf://org/name", "bucket", "s3://bucket?x=1"])
def test_a_target_with_credentials_or_no_form_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_PUSH_TARGETS", value)
    with pytest.raises(RequestError, match="LUTHIER_PUSH_TARGETS"):
        Settings.read()


def test_a_push_is_cancelled_by_its_page_and_the_next_one_completes_it(
    home: Context, browser: Browser, export_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, begun, go_on = f"file://{tmp_path}/shelf", threading.Event(), threading.Event()
    allow(home, push_targets=target)
    one, other = browser("admin"), browser("admin")
    with monkeypatch.context() as patch:
        patch.setattr(page_work, "WAIT_SECONDS", 0.0)
        whole = bundle_push.copy_to

        def slow(files: Any, source: Path, *given: Any, **named: Any) -> None:
            begun.set()
            assert go_on.wait(60)
            whole(files, source, *given, **named)

        patch.setattr(bundle_push, "copy_to", slow)
        page = push(one, export_id, target).headers["location"]
        assert begun.wait(60)
        assert f'action="{page}/cancel"' in one.get(page).text
        assert other.post(f"{page}/cancel").status_code == 404, "it is nobody else's"
        assert one.post(f"{page}/cancel").headers["location"] == page
        text = one.get(page).text
        assert "Cancelling" in text
        assert f'action="{page}/cancel"' not in text
        go_on.set()
        wait_for(lambda: one.get(page).status_code == 409)
    assert "was cancelled" in one.get(page).text
    entry = home.audit_log.newest(limit=1)[0]
    assert (entry.action, entry.subject) == ("export.push_cancelled", export_id)
    assert not (tmp_path / "shelf" / "mine" / "bundle.json").exists()
    assert "The export is complete at" in unescape(shown(one, push(one, export_id, target)).text)
    assert verify(tmp_path / "shelf" / "mine").is_whole


def test_the_wait_for_a_signature_counts_what_is_verified(
    home: Context, browser: Browser, export_id: str, tmp_path: Path, stages: list[Stage]
) -> None:
    allow(home, signing_key=write_curve_keys(tmp_path, "server")[0])
    assert browser("admin").post(f"/exports/{export_id}/sign").status_code == 303
    (verified,) = stages
    assert (verified.title, verified.is_bytes) == ("Verifying", True)
    assert verified.done == verified.total
    assert verified.done > 0
