"""Use case: whether a base model works here, in each part and by which path, before anybody trains it.

Everything is tried in a process of its own: an error of any library, a process that the kernel ends for its memory, a
template without an end are lines of the table, not the end of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import LuthierError, NotFoundError, RequestError
from luthier.core.system.scratch_folders import scratch_folder
from luthier.features.model_checks.records import CHECKS, Check, ModelCheck
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel

DEFAULT_SECONDS: Final = 600.0
_MAX_SHARE: Final = 0.4
"""Of the memory that is free, what one copy of the model in float32 may take; two of them lie side by side."""
_NUM_LAYERS: Final = 2
_LEFT: Final = ("plan", "reach", "loss", "step", "text", "stream", "score")


def check_model(
    context: Context, name: str, *, rows: Path | None = None, max_seconds: float = DEFAULT_SECONDS
) -> ModelCheck:
    """Try a base model in all its parts; what does not work is said, with the reason and what to do.

    Args:
        name: A name of the catalogue, a folder, or what else `models pull` takes; it is pulled where it is not there.
        rows: A file of rows to try in place of one of each kind, in any shape that `luthier data preview` reads.
        max_seconds: Of all parts together; those that are left then are `not_run`.

    A model that is too large for the memory in float32 is computed with by its first two layers, which is said.

    Raises:
        RequestError: max_seconds is no time. NotFoundError: no such file of rows. What `models.sources.pull` raises.
    """
    if not max_seconds > 0:
        raise RequestError(f"max_seconds={max_seconds}", expected="more than 0", do="give it some minutes")
    if rows is not None and not rows.is_file():
        raise NotFoundError(f"{rows}: no such file", expected="a file of rows", do="check the path of --rows")
    from luthier.ml.inference.models import sources

    model = sources.pull(name, context.home, context.progress)
    path, layers, why_not = _computed_with(context, model)
    with scratch_folder(Path(tempfile.gettempdir()), "luthier-check-") as work:
        asked = {"path": path, "rows": None if rows is None else str(rows.absolute()), "work": str(work)}
        found = list(_tried(asked, max_seconds))
    if why_not is not None:
        found = [check for check in found if check.name not in _LEFT]
        found += [Check(name=part, status="not_run", reason=why_not) for part in _LEFT]
    return ModelCheck(
        model=model.name,
        path=str(model.path),
        architecture=model.architecture,
        num_parameters=model.num_parameters,
        context_length_tokens=model.context_length_tokens,
        layers=layers,
        checks=tuple(found),
    )


def _computed_with(context: Context, model: LocalModel) -> tuple[str, str, str | None]:
    """The folder to compute with, which layers are in it, and why nothing can be computed where that is so."""
    import psutil

    from luthier.ml.inference.models import sources

    if 4 * model.num_parameters <= _MAX_SHARE * psutil.virtual_memory().available:
        return str(model.path), "all", None
    try:
        shallow = sources.pull(f"layers:{_NUM_LAYERS}@{model.name}", context.home, context.progress)
    except LuthierError as error:
        return str(model.path), "none", f"too large for the memory in float32, and {error.came}"
    return str(shallow.path), f"{_NUM_LAYERS} of them: the whole is too large for the memory in float32", None


def _tried(asked: dict[str, Any], max_seconds: float) -> Iterator[Check]:
    """The parts as the child tells of them; then the one that it has died in, and those that are left."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "luthier.features.model_checks.trials"]
    under_way, done, is_late = "template", set[str](), threading.Event()
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=said, env=environment) as child,
    ):

        def stop() -> None:
            is_late.set()
            child.kill()

        timer = threading.Timer(max_seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            for document in _lines(child, asked):
                if "begins" in document:
                    under_way = document["begins"]
                    continue
                check = Check.model_validate(document)
                done.add(check.name.partition(":")[0])
                under_way = ""
                yield check
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
        said.seek(0)
        last = "".join(said.read().decode(errors="replace").strip().splitlines()[-1:])[:300]
    if code == 0:
        return
    what = f"signal {-code}" if code < 0 else f"exit code {code}"
    why, remedy = f"the process ended with {what}: {last}", "report it with this table"
    if is_late.is_set():
        why, remedy = f"not done after {max_seconds:.0f} s for all parts", "give it more with --max-seconds"
    yield Check(name=under_way or "the check", status="fault", reason=why, remedy=remedy)
    for name in CHECKS:
        if name not in done and name != under_way.partition(":")[0]:
            yield Check(name=name, status="not_run", reason="an earlier part has ended the process")


def _lines(child: subprocess.Popen[bytes], asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the child says, as long as it lives."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(asked).encode())
        child.stdin.close()
    for line in child.stdout:
        with contextlib.suppress(ValueError):  # a line that was cut off when it died
            yield json.loads(line)
