"""The objects of one run in object storage, and how they are written so that no reader takes a torn one for whole.

    ROOT/launches/DIGEST.json                   the run of a launch (`LUTHIER_LAUNCH_ID`)
    ROOT/runs/RUN/leases/00000002.json          made exclusively: the generation that may write (see `lease`)
    ROOT/runs/RUN/g00000002/step-00000040/...   files of a checkpoint, as on disk
    ROOT/runs/RUN/g00000002/state-....json.gz   record, plan, evaluation, budget ledger
    ROOT/runs/RUN/g00000002/events-....json.gz  events since the upload before
    ROOT/runs/RUN/g00000002/upload-00000003.json    what belongs together, with digests; written last
    ROOT/runs/RUN/g00000002/upload-00000003.json.sig    its signature, where there is a key (see `signature`)

An upload counts once its document is there. A kill before that leaves objects that no document names; the next upload
removes them. A generation writes and prunes only its own objects and those of earlier generations.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

from fsspec.implementations.local import LocalFileSystem
from pydantic import AfterValidator, Field, ValidationError

from luthier.core.errors import CheckpointError, RequestError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_bytes, sha256_document, sha256_file
from luthier.core.system.artifact_transfer import copy_local, copy_to, errors_explained, open_root
from luthier.core.system.files import disk_full_explained, replace_file
from luthier.features.training.checkpoint_uploads.signature import SETTING, UploadSigner
from luthier.ml.export.bundle.signature import SignatureError
from luthier.platform.home.settings import Settings

FROM_ARTIFACTS: Final = "artifacts"
"""The value of the setting `checkpoints` that takes a folder beside the artifacts."""
SIGNATURE: Final = ".sig"
"""What the name of a signature adds to that of the object it signs."""
ALLOW_UNSIGNED: Final = (
    "check who may write to the store; add --allow-unsigned where it was uploaded before there was a key"
)
_MAX_DOCUMENT_BYTES: Final = 512 << 20
"""Of a document when it is unpacked: the events of a million steps have about 300 MiB."""
_PRECONDITION: Final = ("PreconditionFailed", "ConditionalRequestConflict")


def _below(path: str) -> str:
    """A path that leads out of no folder: others may be able to write to a bucket."""
    place = PurePosixPath(path)
    leads_out = place.is_absolute() or ".." in place.parts or "\\" in path or ":" in path
    if leads_out or str(place) != path or path.startswith("."):
        raise ValueError("a relative path below its folder, such as adapter/adapter_config.json")
    return path


PathBelow = Annotated[str, AfterValidator(_below)]


class StoredFile(FrozenModel):
    """An object of an upload.

    Attributes:
        name: The file's name on disk, relative to its folder.
        path: Where the object is, relative to the run.
        sha256: Digest of the content.
        num_bytes: Size of the content.
    """

    name: PathBelow
    path: PathBelow
    sha256: str
    num_bytes: int


class Upload(FrozenModel):
    """What belongs together: a state of a run, complete enough to resume it on another machine.

    Attributes:
        format: Version of this document.
        run_id: The run.
        number: Position among the uploads of its generation.
        generation: The lease under which it was written.
        step: The step to resume from; 0 before the first checkpoint.
        plan_hash: Hash of the run's plan.
        checkpoints: Files by the name of the checkpoint's folder: that of `step`, and the best one that it refers to.
        state: Record, plan, evaluation and ledger.
        events: The events of the run, in order, in pieces.
        result: Weights and report of a run that has ended.
    """

    format: int = 1
    run_id: str
    number: int
    generation: int
    step: int
    plan_hash: str
    checkpoints: dict[Annotated[str, Field(pattern=r"^step-[0-9]{8}$")], tuple[StoredFile, ...]] = Field(
        default_factory=dict
    )
    state: StoredFile
    events: tuple[StoredFile, ...] = ()
    result: tuple[StoredFile, ...] = ()

    def files(self) -> Iterator[StoredFile]:
        """Every object that this upload needs."""
        for files in self.checkpoints.values():
            yield from files
        yield self.state
        yield from self.events
        yield from self.result


class ObjectStore:
    """Small and large objects below one root. All methods raise WorkError where the store fails.

    Args:
        root: A local folder or an fsspec URL such as `s3://bucket/folder`.
        signer: Signs and verifies the documents that others are found by; None does neither.
        allow_unsigned: Whether a document without a signature is read although there is a key.

    Raises:
        RequestError: No driver knows the URL.
    """

    def __init__(self, root: str, *, signer: UploadSigner | None = None, allow_unsigned: bool = False) -> None:
        self.signer, self._allow_unsigned = signer, allow_unsigned
        self._files, self._root = open_root(root, what="checkpoints", setting="LUTHIER_CHECKPOINTS or --checkpoints")
        self._is_local = isinstance(self._files, LocalFileSystem)
        self.name = self._root if self._is_local else str(self._files.unstrip_protocol(self._root))

    def names(self, folder: str = "") -> list[str]:
        """Paths of all objects below a folder, relative to the root; none where it is missing."""
        with self._explained(), suppress(FileNotFoundError):
            found = (str(path)[len(self._root) + 1 :] for path in self._files.find(self._place(folder)))
            # A store may list the folder itself.
            return sorted(path for path in found if path.startswith(f"{folder}/" if folder else ""))
        return []

    def read(self, path: str) -> bytes:
        """The content of an object.

        Raises:
            FileNotFoundError: There is none.
        """
        with self._explained():
            return bytes(self._files.cat_file(self._place(path)))

    def write(self, path: str, content: bytes) -> None:
        """Write an object whole, in place of one that is there."""
        with self._no_bucket_explained(), self._explained():
            if self._is_local:
                self._write_local(path, content)
            else:
                self._files.pipe_file(self._place(path), content)

    def write_signed(self, path: str, content: bytes) -> None:
        """Write an object with its signature, which comes first: an object is never there without it."""
        if self.signer is not None:
            self.write(path + SIGNATURE, self.signer.sign(path, content))
        self.write(path, content)

    def read_signed(self, path: str) -> bytes:
        """The content of an object that `write_signed` has written.

        Raises:
            FileNotFoundError: There is none.
            CheckpointError: There is a key, and no signature by it.
        """
        content = self.read(path)
        if self.signer is None:
            return content
        try:
            self.signer.check(path, content, self.read(path + SIGNATURE))
        except FileNotFoundError as error:
            if self._allow_unsigned:
                return content
            raise CheckpointError(
                f"{self.name}/{path} has no signature",
                expected=f"a signature with the key of {SETTING}",
                do=ALLOW_UNSIGNED,
            ) from error
        except SignatureError as error:
            raise damaged(f"{self.name}/{path} is not as it was uploaded: its signature {error}") from error
        return content

    def create(self, path: str, content: bytes) -> bool:
        """Write an object that must not be there yet; False where it is, or where another writer was first."""
        try:
            with self._no_bucket_explained(), self._explained():
                if self._is_local:
                    target = Path(self._place(path))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # Not by fsspec, which looks first and then writes: another machine may write in between.
                    with target.open("xb") as file:
                        file.write(content)
                else:
                    self._files.pipe_file(self._place(path), content, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            if not _exists_already(error):
                raise
            return False
        # A store that ignores the condition lets the last of two writers win: it must be this one.
        return self.read(path) == content

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to an object, which appears whole or not at all."""
        if self._is_local:
            target = Path(self._place(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_local(source, target)
        else:
            copy_to(self._files, source, self._place(path), self.name)

    def download(self, path: str, target: Path) -> None:
        """Copy an object to a local file.

        Raises:
            FileNotFoundError: There is none.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk_full_explained(target), self._explained():
            self._files.get_file(self._place(path), str(target))

    def remove(self, path: str) -> None:
        """Remove an object; nothing where there is none."""
        with self._explained(), suppress(FileNotFoundError):
            self._files.rm_file(self._place(path))

    @contextmanager
    def _no_bucket_explained(self) -> Iterator[None]:
        """Of what writes: nothing has to be there but the bucket."""
        try:
            yield
        except FileNotFoundError as error:
            raise WorkError(
                f"{self.name} failed: there is no such bucket",
                expected="a bucket that is there; none is created",
                do="create it, or correct the place (LUTHIER_CHECKPOINTS or --checkpoints)",
            ) from error

    def _explained(self) -> AbstractContextManager[None]:
        return errors_explained(self.name, is_local=self._is_local)

    def _place(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _write_local(self, path: str, content: bytes) -> None:
        target = Path(self._place(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(content)
        replace_file(partial, target)


def _exists_already(error: BaseException) -> bool:
    """Whether a store has refused to write because the object exists."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FileExistsError):
            return True
        answer = getattr(cause, "response", None)
        if isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _PRECONDITION:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class RunBucket:
    """The objects of one run.

    Attributes:
        store: The place with all runs.
        run_id: The run.
    """

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        self.store, self.run_id = store, run_id

    def path(self, relative: str) -> str:
        """A path of the run as a path of the store."""
        return f"runs/{self.run_id}/{relative}"

    def names(self) -> list[str]:
        """Paths of all objects of the run, relative to it."""
        start = len(self.path(""))
        return [name[start:] for name in self.store.names(f"runs/{self.run_id}")]

    def uploads(self) -> list[str]:
        """Paths of the documents of all uploads, the newest first: by generation, then by number."""
        return sorted((name for name in self.names() if _is_document(name)), reverse=True)

    def read_upload(self, path: str) -> Upload:
        """One document.

        Raises:
            CheckpointError: It is gone, cannot be read, is that of another run, or is not signed as it should be.
        """
        try:
            found = Upload.model_validate_json(self.store.read_signed(self.path(path)))
        except (FileNotFoundError, ValidationError) as error:
            what = "is gone" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise damaged(f"{self.store.name}/{self.path(path)} {what}") from error
        if found.run_id != self.run_id:
            raise damaged(f"{self.store.name}/{self.path(path)} is that of run {found.run_id[:64]}")
        return found

    def remove_all(self) -> None:
        """Remove every object of the run, the documents of its uploads first."""
        for path in sorted(self.names(), key=lambda name: not _is_document(name)):
            self.store.remove(self.path(path))

    def put(self, source: Path, relative: str, *, name: str = "", sha256: str | None = None) -> StoredFile:
        """Upload a file.

        Args:
            source: The file.
            relative: Its path below the run's own.
            name: What the manifest calls it; empty for the name of the file.
            sha256: Its digest, where that is known; None computes it.
        """
        num_bytes, digest = source.stat().st_size, sha256 or sha256_file(source)
        self.store.upload(source, self.path(relative))
        return StoredFile(name=name or source.name, path=relative, sha256=digest, num_bytes=num_bytes)

    def put_json(self, relative: str, document: Any) -> StoredFile:
        """Upload a document as compressed JSON."""
        # mtime=0: equal documents give equal bytes.
        content = gzip.compress(json.dumps(document, separators=(",", ":")).encode(), 1, mtime=0)
        self.store.write(self.path(relative), content)
        return StoredFile(name=Path(relative).name, path=relative, sha256=sha256_bytes(content), num_bytes=len(content))

    def read_json(self, file: StoredFile) -> Any:
        """A document that `put_json` has written.

        Raises:
            CheckpointError: It is gone or has changed, or is no such document.
        """
        content = self._checked(file, lambda: self.store.read(self.path(file.path)))
        if (found := sha256_bytes(content)) != file.sha256:
            raise damaged(self._changed(file, found))
        place = f"{self.store.name}/{self.path(file.path)}"
        try:
            # Unpacked with a bound: who may write to the bucket must not fill the memory of this machine.
            text = gzip.GzipFile(fileobj=io.BytesIO(content)).read(_MAX_DOCUMENT_BYTES + 1)
            if len(text) > _MAX_DOCUMENT_BYTES:
                raise damaged(f"{place} unpacks to more than {_MAX_DOCUMENT_BYTES >> 20} MiB")
            return json.loads(text)
        except (EOFError, ValueError, OSError, zlib.error, RecursionError) as error:
            raise damaged(f"{place} cannot be read") from error

    def fetch(self, file: StoredFile, target: Path) -> None:
        """Copy an object to a local file and check its digest.

        Raises:
            CheckpointError: It is gone or has changed.
        """
        self._checked(file, lambda: self.store.download(self.path(file.path), target))
        if (found := sha256_file(target)) != file.sha256:
            raise damaged(self._changed(file, found))

    def _checked(self, file: StoredFile, read: Any) -> Any:
        try:
            return read()
        except FileNotFoundError as error:
            raise damaged(f"{self.store.name}/{self.path(file.path)} is gone") from error

    def _changed(self, file: StoredFile, found: str) -> str:
        return (
            f"{self.store.name}/{self.path(file.path)} has digest {found[:12]}, and not {file.sha256[:12]} as uploaded"
        )


def _is_document(path: str) -> bool:
    return path.startswith("g") and path.partition("/")[2].startswith("upload-") and path.endswith(".json")


def damaged(came: str) -> CheckpointError:
    """The error for an upload that is not as it was written."""
    return CheckpointError(
        came,
        expected="the objects of an upload as they were written",
        do="resume the run: the newest complete upload is used",
    )


def store_of(settings: Settings) -> ObjectStore | None:
    """Where checkpoints are uploaded to; None where the settings name no place.

    Raises:
        RequestError: The place cannot be used.
    """
    if settings.checkpoints is None:
        return None
    root = settings.checkpoints.get_secret_value()
    if root == FROM_ARTIFACTS:
        if settings.artifacts is None:
            raise RequestError(
                f"checkpoints are to go to `{FROM_ARTIFACTS}`, and artifacts are in the home",
                expected="artifacts elsewhere (LUTHIER_ARTIFACTS), or a URL for the checkpoints",
                do="write for example: LUTHIER_CHECKPOINTS=s3://bucket/folder",
            )
        root = f"{settings.artifacts.get_secret_value().rstrip('/')}/checkpoints"
    key = settings.checkpoint_key
    signer = None if key is None else UploadSigner(key.get_secret_value())
    return ObjectStore(root.rstrip("/"), signer=signer, allow_unsigned=settings.checkpoint_allow_unsigned)


def note_launch(store: ObjectStore, launch: str, run_id: str) -> None:
    """Record which run a launch has begun."""
    store.write_signed(_launch_path(launch), json.dumps({"run_id": run_id}).encode())


def run_of_launch(store: ObjectStore, launch: str) -> str | None:
    """The run that a launch has begun on whichever machine; None where it has begun none.

    Raises:
        CheckpointError: There is a key, and what names the run is not signed by it.
    """
    try:
        document: Mapping[str, Any] = json.loads(store.read_signed(_launch_path(launch)))
        return str(document["run_id"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _launch_path(launch: str) -> str:
    return f"launches/{sha256_document(launch)[:16]}.json"
