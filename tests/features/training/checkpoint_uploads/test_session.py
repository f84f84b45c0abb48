"""A run goes on from object storage on a machine that has nothing of it, and gives the undisturbed bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr
from tests.fixtures.forked_children import SessionForkServer
from tests.fixtures.service import write_recipe
from tests.vacuous import nonempty

from luthier.cli.main import main
from luthier.core.errors import CheckpointError, ConflictError, NotFoundError, RequestError, WorkError
from luthier.core.events import CheckpointSaved, CheckpointUploaded, Event, StepDone, ValidationDone, WarningRaised
from luthier.core.recipe import BudgetRecipe, Recipe
from luthier.features.recipes.service import load_recipe
from luthier.features.runs.service import remove_run
from luthier.features.training import external
from luthier.features.training.checkpoint_uploads import session
from luthier.features.training.checkpoint_uploads.bucket import ObjectStore, RunBucket, note_launch, store_of
from luthier.features.training.checkpoint_uploads.lease import RunLease
from luthier.features.training.checkpoint_uploads.signature import UploadSigner
from luthier.features.training.checkpoint_uploads.state import newest_checkpoint, restore
from luthier.features.training.service import resume, train
from luthier.ml.training.ledger import Ledger
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

BUCKET = "luthier-checkpoints"
KEY = (
    Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
QUICK = {
    "epochs": 2, "global_batch_size": 8, "learning_rate": 0.01, "precision": "float32", "num_threads": 1,
    "validate_every_steps": 3, "checkpoint_every_steps": 2, "early_stopping_patience": 0,
}  # fmt: skip
LONG = QUICK | {"epochs": 4, "validate_every_steps": 7, "checkpoint_every_steps": 5}
HELD_AT = 13
"""Of 20 steps: after the checkpoint of step 10, and after a validation."""
DATA = {"train": "train.jsonl", "validation": "valid.jsonl"}


def home(folder: Path, place: str, **settings: Any) -> Context:
    """A machine of its own that uploads to a place, and does not wait long for others."""
    context = Context.open(folder)
    given = {"checkpoints": SecretStr(place), "lease_seconds": 0.3, "upload_wait_seconds": 120.0} | settings
    context.settings = context.settings.model_copy(update=given)
    return context


def story(context: Context, run_id: str) -> list[tuple[Any, ...]]:
    events = context.runs.events(run_id)
    steps = [("step", e.step, e.loss, e.learning_rate) for e in events if isinstance(e, StepDone)]
    return [*steps, *[("validation", e.step, e.loss) for e in events if isinstance(e, ValidationDone)]]


def kill_tree(pid: int) -> None:
    """The machine is gone: every process of it at once."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)


def test_a_machine_that_dies_with_its_disk_is_replaced_and_the_bytes_are_those_of_an_undisturbed_run(
    tmp_path: Path,
    tiny_model: Path,
    empty_bucket: Callable[[str, str], Any],
    fork_server: SessionForkServer,
) -> None:
    client = empty_bucket(BUCKET, "secret-secret")
    place = f"s3://{BUCKET}/runs of spot machines"
    evaluation = {"few_shot": 0, "max_new_tokens": 2}
    recipe = write_recipe(tmp_path / "work", tiny_model, training=LONG, evaluation=evaluation)
    with Context.open(tmp_path / "undisturbed") as context:
        undisturbed = train(context, load_recipe(recipe), base_dir=recipe.parent)
        expected, events = undisturbed.record.result, story(context, undisturbed.record.run_id)
        verdict = undisturbed.evaluation.verdict if undisturbed.evaluation is not None else None
    assert expected is not None
    assert verdict is not None

    environment = os.environ | {"LUTHIER_CHECKPOINTS": place}
    lost = tmp_path / "lost machine"
    child = fork_server.module("tests.fixtures.training_child", lost, "train", recipe, HELD_AT, environment=environment)
    run_id = _uploaded_run(ObjectStore(place), 10, child)
    with Context.open(lost) as context:
        _until(lambda: context.runs.get(run_id).step == HELD_AT, child)
    kill_tree(child.pid)
    child.communicate()
    shutil.rmtree(lost)

    with home(tmp_path / "new machine", place) as context:
        outcome = resume(context, run_id)
        result = outcome.record.result
        assert result is not None
        assert (result.adapter_sha256, result.train_loss) == (expected.adapter_sha256, expected.train_loss)
        assert story(context, run_id) == events, "no step is missing, none is there twice"
        kept = sorted(path.name for path in (context.settings.run_folder(run_id) / "checkpoints").iterdir())
        assert outcome.warnings == ()

    with home(tmp_path / "desk", place) as context:
        record = session.fetch_run(context, run_id)
        assert record.status == "succeeded"
        assert record.result is not None
        assert record.result.adapter_path == str(context.settings.run_folder(run_id) / "adapter")
        assert (Path(record.result.adapter_path) / "adapter_config.json").is_file()
        assert Path(str(record.report_path)).is_file()
        fetched = context.evaluations.get(str(record.evaluation_id)).verdict
        assert fetched is not None
        assert fetched.word == verdict.word
        with pytest.raises(ConflictError, match="has succeeded already"):
            resume(context, run_id)

    stored = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    in_bucket = {part for key in stored for part in key.split("/") if part.startswith("step-")}
    assert len(in_bucket) <= len(kept) + 1, "pruned as on the disk"


def _until(is_so: Callable[[], object], child: Any = None) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, "not in time"
        assert child is None or child.poll() is None, child.communicate()
        time.sleep(0.01)


def _uploaded_run(store: ObjectStore, step: int, child: Any) -> str:
    """The id of the only run in a store, once the upload of a step is whole."""
    _until(lambda: _steps_of(store, step), child)
    return store.names("runs")[0].split("/")[1]


def _steps_of(store: ObjectStore, step: int) -> bool:
    names = store.names("runs")
    if not names:
        return False
    bucket = RunBucket(store, names[0].split("/")[1])
    with suppress(CheckpointError):  # pruned in between
        return any(bucket.read_upload(path).step == step for path in bucket.uploads())
    return False


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str, str]:
    """A store with a run that has paused, its id, and the digest that an undisturbed run ends with."""
    folder = tmp_path_factory.mktemp("paused")
    recipe = write_recipe(folder / "work", tiny_model, training=QUICK, data=DATA)
    asked = load_recipe(recipe)
    with home(folder / "home", str(folder / "store")) as context:
        place = ObjectStore(str(folder / "store"))

        def each_is_uploaded(event: Event) -> None:
            if isinstance(event, CheckpointSaved):
                _until(lambda: _steps_of(place, event.step))

        limited = load_recipe(recipe, ["budget.tokens=2200"])
        outcome = train(context, limited, base_dir=recipe.parent, listener=each_is_uploaded)
        assert outcome.record.status == "paused"
        assert outcome.record.step >= 4
        context.settings = context.settings.model_copy(update={"checkpoints": None})
        whole = train(context, asked, base_dir=recipe.parent).record.result
    assert whole is not None
    shutil.rmtree(folder / "home")
    return folder / "store", outcome.record.run_id, str(whole.adapter_sha256)


@pytest.fixture
def store(paused: tuple[Path, str, str], tmp_path: Path) -> Path:
    """A copy of that store, to be damaged."""
    shutil.copytree(paused[0], tmp_path / "store")
    return tmp_path / "store"


def newest(store: Path, run_id: str) -> Path:
    """The document of the newest upload."""
    bucket = RunBucket(ObjectStore(str(store)), run_id)
    return store / "runs" / run_id / bucket.uploads()[0]


def weights(store: Path, run_id: str, document: Path) -> Path:
    upload = RunBucket(ObjectStore(str(store)), run_id).read_upload(f"{document.parent.name}/{document.name}")
    files = upload.checkpoints[f"step-{upload.step:08d}"]
    (path,) = [file.path for file in files if file.name == "weights.safetensors"]
    return store / "runs" / run_id / path


def gone(store: Path, run_id: str, document: Path) -> None:
    weights(store, run_id, document).unlink()


def changed(store: Path, run_id: str, document: Path) -> None:
    file = weights(store, run_id, document)
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def torn(_store: Path, _run_id: str, document: Path) -> None:
    document.write_text(document.read_text()[:50])


def leads_out(_store: Path, _run_id: str, document: Path) -> None:
    found = json.loads(document.read_text())
    found["checkpoints"][f"step-{found['step']:08d}"][0]["name"] = "../../../../../outside"
    document.write_text(json.dumps(found))


def of_other_run(_store: Path, run_id: str, document: Path) -> None:
    found = json.loads(document.read_text())
    document.write_text(json.dumps(found | {"run_id": f"{run_id[:-1]}x"}))


def with_record(store: Path, run_id: str, document: Path, values: dict[str, str]) -> None:
    """Give the record in an upload other values, with digests that match."""
    bucket, found = RunBucket(ObjectStore(str(store)), run_id), json.loads(document.read_text())
    upload = bucket.read_upload(f"{document.parent.name}/{document.name}")
    state = bucket.read_json(upload.state)
    made = bucket.put_json(upload.state.path, state | {"record": state["record"] | values})
    document.write_text(json.dumps(found | {"state": made.model_dump(mode="json")}))


def with_other_record(store: Path, run_id: str, document: Path) -> None:
    with_record(store, run_id, document, {"run_id": "run-20261130-120000-00000a"})


def with_other_files(store: Path, run_id: str, document: Path) -> None:
    with_record(store, run_id, document, {"report_path": "/etc/passwd"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (gone, "is gone"),
        (changed, "has digest"),
        (torn, "cannot be read"),
        (leads_out, "cannot be read"),
        (of_other_run, "is that of run"),
        (with_other_record, "is that of another run"),
        (with_other_files, "outside of the run's folder"),
    ],
)
def test_a_damaged_upload_is_skipped_and_the_one_before_it_is_used(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path, damage: Callable[..., None], words: str
) -> None:
    run_id, document = paused[1], newest(store, paused[1])
    last = json.loads(document.read_text())["step"]
    damage(store, run_id, document)
    with home(tmp_path / "home", str(store)) as context:
        (problem,) = restore(context, RunBucket(ObjectStore(str(store)), run_id))
        assert words in problem
        assert not list(tmp_path.glob("**/outside"))
        found = newest_checkpoint(context.settings.run_folder(run_id))
        assert found is not None
        assert 0 < int(found.name[5:]) < last
        assert context.runs.get(run_id).status == "paused"


def test_a_run_whose_uploads_are_all_damaged_is_not_begun_again_in_silence(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    run_id = paused[1]
    for file in (store / "runs" / run_id).rglob("upload-*.json"):
        file.write_text("{}")
    with home(tmp_path / "home", str(store)) as context:
        with pytest.raises(CheckpointError, match=f"all uploads of run {run_id}"):
            resume(context, run_id)
        with pytest.raises(NotFoundError):
            context.runs.get(run_id)


def test_a_resume_says_what_was_damaged_and_ends_with_the_same_bytes(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    run_id, digest = paused[1:]
    changed(store, run_id, newest(store, run_id))
    with home(tmp_path / "home", str(store)) as context:
        outcome = resume(context, run_id, budget=BudgetRecipe(tokens=10**9))
        assert outcome.record.result is not None
        assert outcome.record.result.adapter_sha256 == digest
        codes = [event.code for event in context.runs.events(run_id) if isinstance(event, WarningRaised)]
        assert "broken_upload" in codes
        bill = outcome.record.result.bill
        assert bill is not None
        assert bill.tokens > outcome.record.result.num_tokens, "what was spent on the other machine counts"
        remove_run(context, run_id)
        assert RunBucket(ObjectStore(str(store)), run_id).names() == []


def test_with_a_key_a_run_resumes_from_signed_uploads_alone(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    run_id, signer = paused[1], UploadSigner(KEY)
    signed = {"checkpoint_key": SecretStr(KEY)}
    with home(tmp_path / "first", str(store), **signed) as context:
        with pytest.raises(CheckpointError, match="has no signature") as refused:
            resume(context, run_id)
        assert "--allow-unsigned" in refused.value.do
        with pytest.raises(NotFoundError):
            context.runs.get(run_id)
    with home(tmp_path / "second", str(store), **signed, checkpoint_allow_unsigned=True) as context:
        assert restore(context, RunBucket(_store(context), run_id)) == []
    for file in nonempty(list((store / "runs" / run_id).rglob("upload-*.json"))):
        path = file.relative_to(store).as_posix()
        file.with_name(f"{file.name}.sig").write_bytes(signer.sign(path, file.read_bytes()))
    last = json.loads(newest(store, run_id).read_text())["step"]
    with_record(store, run_id, newest(store, run_id), {"base_model": "another"})
    with home(tmp_path / "third", str(store), **signed) as context:
        (problem,) = restore(context, RunBucket(_store(context), run_id))
        assert "its signature" in problem
        found = newest_checkpoint(context.settings.run_folder(run_id))
        assert found is not None
        assert 0 < int(found.name[5:]) < last
        assert context.runs.get(run_id).base_model != "another"
    public = UploadSigner(KEY).private_key().public_key()
    text = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with home(tmp_path / "fourth", str(store), checkpoint_key=SecretStr(text)) as context:
        assert session.fetch_run(context, run_id).status == "paused"
        with pytest.raises(RequestError, match="holds a public key"):
            resume(context, run_id)


def _store(context: Context) -> ObjectStore:
    found = store_of(context.settings)
    assert found is not None
    return found


def test_a_dead_store_ends_no_training_and_gets_the_run_later(
    tmp_path: Path, tiny_model: Path, paused: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "work", tiny_model, training=QUICK, data=DATA)
    place = str(tmp_path / "store")

    def dead(_self: ObjectStore, _source: Path, _path: str) -> None:
        raise WorkError("the store is dead", expected="one that answers", do="wait")

    with home(tmp_path / "home", place, upload_wait_seconds=0.0) as context:
        with monkeypatch.context() as patched:
            patched.setattr(ObjectStore, "upload", dead)
            outcome = train(context, load_recipe(recipe), base_dir=recipe.parent)
        run_id, result = outcome.record.run_id, outcome.record.result
        assert result is not None
        assert (outcome.record.status, result.adapter_sha256) == ("succeeded", paused[2])
        assert outcome.warnings[-1].endswith(f"luthier runs upload {run_id} --checkpoints {place}")
        codes = [event.code for event in context.runs.events(run_id) if isinstance(event, WarningRaised)]
        assert codes.count("checkpoint_not_uploaded") == 1
        assert not any(isinstance(event, CheckpointUploaded) for event in context.runs.events(run_id))
    arguments = [run_id, "--home", str(tmp_path / "home"), "--checkpoints", place, "--json"]
    assert main(["runs", "upload", *arguments]) == 0
    arguments[2] = str(tmp_path / "desk")
    assert main(["runs", "fetch", *arguments]) == 0
    with Context.open(tmp_path / "desk") as context:
        fetched = context.runs.get(run_id).result
        assert fetched is not None
        assert fetched.adapter_sha256 == result.adapter_sha256
        assert Path(str(fetched.adapter_path)).is_dir()


def test_two_machines_never_train_one_run(store: Path, paused: tuple[Path, str, str], tmp_path: Path) -> None:
    run_id, place = paused[1], str(store)
    with home(tmp_path / "a", place) as first, home(tmp_path / "b", place, lease_seconds=6.0) as second:
        with session.uploads_of(first, run_id), pytest.raises(ConflictError, match=f"run {run_id}: .* is training it"):
            resume(second, run_id)
        with pytest.raises(NotFoundError):
            second.runs.get(run_id)


def test_the_removal_of_a_run_leaves_the_uploads_of_the_machine_that_has_taken_it(tmp_path: Path) -> None:
    with home(tmp_path / "first", str(tmp_path / "store")) as context:
        moved, own = add_run(context, "a"), add_run(context, "b")
        for run_id in (moved, own):
            lease = RunLease(RunBucket(_store(context), run_id), context.settings.run_folder(run_id), seconds=0.3)
            lease.take()
            lease.release()
        bucket = RunBucket(_store(context), moved)
        RunLease(bucket, tmp_path / "second", seconds=0.3).take()
        before = nonempty(bucket.names())
        assert session.is_continued_elsewhere(context, moved, context.settings.run_folder(moved))
        assert not session.is_continued_elsewhere(context, own, context.settings.run_folder(own))
        for run_id in (moved, own):
            remove_run(context, run_id)
        assert bucket.names() == before
        assert RunBucket(_store(context), own).names() == []
        assert context.runs.list() == []


def test_a_run_that_trains_elsewhere_is_fetched_again_as_far_as_it_has_come(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    run_id, document = paused[1], newest(store, paused[1])

    def steps(context: Context) -> list[int]:
        return [event.step for event in context.runs.events(run_id) if isinstance(event, StepDone)]

    with home(tmp_path / "desk", str(store)) as desk:
        later = document.rename(tmp_path / document.name)  # it is not there yet
        before = session.fetch_run(desk, run_id)
        assert steps(desk) == list(range(1, before.step + 1))
        later.rename(document)
        after = session.fetch_run(desk, run_id)
        assert after.step > before.step > 0
        assert steps(desk) == list(range(1, after.step + 1))
        assert (after.status, str(after.stopped_because)[:21]) == ("paused", "budget of 2200 tokens")
        assert newest_checkpoint(desk.settings.run_folder(run_id)) is None, "it is looked at, not resumed"


def test_a_run_keeps_the_budget_that_it_was_given_on_another_machine(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    run_id, bucket = paused[1], RunBucket(ObjectStore(str(store)), paused[1])

    def tokens(context: Context) -> int | None:
        budget = context.runs.plan(run_id).budget
        return None if budget is None else budget.tokens

    with home(tmp_path / "home", str(store)) as context:
        session.fetch_run(context, run_id)
        assert tokens(context) == 2200
        upload = bucket.read_upload(bucket.uploads()[0])
        state = bucket.read_json(upload.state)
        state["plan"]["budget"]["tokens"] = 5000
        file = bucket.put_json("g00000009/state-00000001.json.gz", state)
        later = upload.model_copy(update={"generation": 9, "number": 1, "state": file})
        bucket.store.write(bucket.path("g00000009/upload-00000001.json"), later.model_dump_json().encode())
        session.fetch_run(context, run_id)
        assert tokens(context) == 5000


def test_an_older_state_never_replaces_a_newer_one(store: Path, paused: tuple[Path, str, str], tmp_path: Path) -> None:
    """A machine that was taken away comes back with its disk, after another one has continued."""
    run_id, place = paused[1], RunBucket(ObjectStore(str(store)), paused[1])
    with home(tmp_path / "home", str(store)) as context:
        restore(context, place)
        folder = context.settings.run_folder(run_id)
        kept = newest_checkpoint(folder)
        assert kept is not None
        shutil.rmtree(kept)
        with pytest.raises(ConflictError, match="has uploaded more of run"):
            session.upload_run(context, run_id)
        restore(context, place)
        assert newest_checkpoint(folder) == kept


def test_what_another_machine_has_spent_counts_where_this_one_has_come_further(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    run_id, place = paused[1], RunBucket(ObjectStore(str(store)), paused[1])
    with home(tmp_path / "home", str(store)) as context:
        restore(context, place)
        # The other one has taken the run later, and trained the same steps again.
        upload = place.read_upload(place.uploads()[0])
        state = place.read_json(upload.state)
        state["spent"]["seconds"] += 100.0
        file = place.put_json("g00000009/state-00000001.json.gz", state)
        later = upload.model_copy(update={"generation": 9, "number": 1, "state": file})
        place.store.write(place.path("g00000009/upload-00000001.json"), later.model_dump_json().encode())
        assert restore(context, place) == []
        assert Ledger(context.settings.run_folder(run_id)).last().seconds == state["spent"]["seconds"]


def test_what_another_machine_has_spent_counts_where_its_only_upload_is_damaged(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    run_id, bucket = paused[1], RunBucket(ObjectStore(str(store)), paused[1])
    with home(tmp_path / "home", str(store)) as context:
        restore(context, bucket)
        path = bucket.uploads()[0]
        upload = bucket.read_upload(path)
        state = bucket.read_json(upload.state)
        state["spent"]["seconds"] += 100.0
        file = bucket.put_json("g00000009/state-00000001.json.gz", state)
        further = {f"step-{upload.step + 9:08d}": upload.checkpoints[f"step-{upload.step:08d}"]}
        values = {"generation": 9, "number": 1, "step": upload.step + 9, "checkpoints": further, "state": file}
        ahead = upload.model_copy(update=values)
        bucket.store.write(bucket.path("g00000009/upload-00000001.json"), ahead.model_dump_json().encode())
        for old in bucket.uploads()[1:]:
            bucket.store.remove(bucket.path(old))
        changed(store, run_id, store / "runs" / run_id / "g00000009" / "upload-00000001.json")
        (problem,) = restore(context, bucket)
        assert "has digest" in problem
        assert Ledger(context.settings.run_folder(run_id)).last().seconds == pytest.approx(state["spent"]["seconds"])


def test_a_run_that_moved_is_billed_once_for_each_second_of_each_machine(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    """A machine goes on without uploading, another one takes over and uploads, and the first comes back."""
    run_id, bucket = paused[1], RunBucket(ObjectStore(str(store)), paused[1])

    def work(context: Context, seconds: float, tokens: int) -> None:
        ledger = Ledger(context.settings.run_folder(run_id))
        before = ledger.last()
        ledger.append(before.model_copy(update={"seconds": before.seconds + seconds, "tokens": before.tokens + tokens}))
        ledger.close()

    with home(tmp_path / "first", str(store)) as first, home(tmp_path / "second", str(store)) as second:
        for context in (first, second):
            restore(context, bucket)
        uploaded = Ledger(first.settings.run_folder(run_id)).last()
        assert uploaded.seconds > 0
        work(first, 10.0, 100)
        work(second, 30.0, 300)
        with session.uploads_of(second, run_id) as uploads:
            uploads.begin(second.runs.plan(run_id))
            assert uploads.end(second.runs.get(run_id)) == []
        for _ in range(2):  # the second time changes nothing
            assert restore(first, bucket) == []
            spent = Ledger(first.settings.run_folder(run_id)).last()
            assert spent.seconds == pytest.approx(uploaded.seconds + 40.0)
            assert spent.tokens == uploaded.tokens + 400


def test_a_state_whose_shares_are_no_amounts_is_damaged(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path
) -> None:
    bucket = RunBucket(ObjectStore(str(store)), paused[1])
    upload = bucket.read_upload(bucket.uploads()[0])
    state = bucket.read_json(upload.state)
    for name, wrong in enumerate(({"x/y": {}}, {"ab": {"seconds": -1.0}}, [], {"ab": {"seconds": "NaN"}}), 1):
        file = bucket.put_json(f"g00000009/state-{name:08d}.json.gz", state | {"spent_by_home": wrong})
        later = upload.model_copy(update={"generation": 9, "number": name, "state": file})
        bucket.store.write(bucket.path(f"g00000009/upload-{name:08d}.json"), later.model_dump_json().encode())
    with home(tmp_path / "home", str(store)) as context:
        problems = restore(context, bucket)
        assert len(problems) == 4
        assert all(problem.endswith("cannot be read") for problem in problems)


def test_a_store_without_credentials_or_answer_is_refused_before_anything_is_trained(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    recipe = write_recipe(tmp_path / "work", tiny_model, training=QUICK, data=DATA)
    with home(tmp_path / "home", "s3://bucket/folder") as context:
        with pytest.raises(WorkError, match="s3://bucket/folder failed") as caught:
            train(context, load_recipe(recipe), base_dir=recipe.parent)
        assert "credentials" in caught.value.do
        assert context.runs.list() == []


def test_the_place_beside_the_artifacts_needs_artifacts_elsewhere(tmp_path: Path) -> None:
    with home(tmp_path / "home", "artifacts") as context:
        with pytest.raises(RequestError, match="artifacts are in the home"):
            store_of(context.settings)
        context.settings = context.settings.model_copy(update={"artifacts": SecretStr(str(tmp_path / "files"))})
        found = store_of(context.settings)
        assert found is not None
        assert found.name == str(tmp_path / "files" / "checkpoints")


def test_nothing_is_fetched_or_uploaded_without_a_place(context: Context) -> None:
    for use in (session.fetch_run, session.upload_run):
        with pytest.raises((RequestError, NotFoundError)):
            use(context, "run-20261130-120000-00000a")
    with pytest.raises(RequestError, match="no place for uploaded checkpoints"):
        session.fetch_run(context, "run-20261130-120000-00000a")


@pytest.fixture
def named_launch(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LUTHIER_LAUNCH_ID", "spot-1")
    return "spot-1"


def test_a_launch_finds_its_run_on_another_machine(
    tmp_path: Path, named_launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[str] = []
    monkeypatch.setattr("luthier.features.training.service.resume", lambda _c, run_id, **_: resumed.append(run_id))

    def begun(*_: Any, show_plan: Any, **__: Any) -> None:
        show_plan("run-20261130-120000-00000a", None, None)

    monkeypatch.setattr("luthier.features.training.service.train", begun)
    recipe = Recipe.model_construct(budget=None)
    for machine in ("a", "b", "b"):
        with home(tmp_path / machine, str(tmp_path / "store")) as context:
            external.train(context, recipe, base_dir=Path())
            assert session.launched_elsewhere(context, named_launch) == "run-20261130-120000-00000a"
            assert session.launched_elsewhere(context, "another") is None
    assert resumed == ["run-20261130-120000-00000a"] * 2


def test_a_launch_names_the_machine_that_trains_its_run(
    store: Path, paused: tuple[Path, str, str], tmp_path: Path, named_launch: str
) -> None:
    run_id, place = paused[1], str(store)
    recipe = Recipe.model_construct(budget=None)
    note_launch(ObjectStore(place), named_launch, run_id)
    with (
        home(tmp_path / "a", place) as first,
        home(tmp_path / "b", place, lease_seconds=6.0) as second,
        session.uploads_of(first, run_id),
        pytest.raises(ConflictError, match="is training it"),
    ):
        external.train(second, recipe, base_dir=Path())
