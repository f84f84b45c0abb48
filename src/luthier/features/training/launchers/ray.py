"""Training on Ray: workers of Ray Train under this driver, or a recipe submitted to a cluster as a job.

With Ray Train this process owns the run, evaluates and reports. With the Jobs REST API the recipe and its rows are
uploaded as one package, and Ray is not needed locally: on the cluster the job is `luthier train RECIPE --on ray
--devices N`. It stores the run in the cluster's home, and its output is shown here.

Sources: Ray's documentation, "Ray Jobs REST API".
"""

from __future__ import annotations

import io
import json
import os
import shlex
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.aliases import with_new_keys
from luthier.core.data_sources import is_pattern, is_remote, names_of
from luthier.core.errors import RequestError, WorkError
from luthier.core.ids import sha256_bytes
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.recipe import DataRecipe, Recipe
from luthier.core.run import TrainResult
from luthier.features.planning.service import Prepared
from luthier.features.training.launchers import local as launcher_child
from luthier.features.training.launchers.environment import left_here, passed_settings
from luthier.features.training.launchers.local import Answers
from luthier.ml.data.files.patterns import matching_files
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import stop_signals

if TYPE_CHECKING:
    import httpx2

    from luthier.ml.training.budget import Meter


class RayLauncher:
    """Trains a run with `num_processes` workers of a Ray cluster; a `launchers.here.Launcher`.

    The run's folder, the rows and a local base model must be at the same paths on all nodes: a lost worker may restart
    on another node.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self.flags = f" --on ray --devices {num_processes}"

    def check(self, plan: Plan) -> None:
        """Raise RequestError without Ray, and for a batch that cannot be divided evenly."""
        from luthier.ml.training.distributed import refuse_unequal_shares
        from luthier.ml.training.ray_train import require_ray

        refuse_unequal_shares(plan.training.global_batch_size, self.num_processes)
        require_ray()

    def train(
        self,
        context: Context,
        run_id: str,
        prepared: Prepared,
        meter: Meter,
        emit: EventSink,
        lock: int,  # noqa: ARG002
    ) -> TrainResult:
        """Train to the end of the plan or to a request to stop.

        Raises:
            LuthierError: the run failed in a way that a retry would repeat.
            WorkError: workers were lost too often.
        """
        from luthier.ml.training.ray_train import fit

        plan, folder = prepared.plan, context.settings.run_folder(run_id)
        # Rank 0 writes the ledger on its node meanwhile; `take_up` reads its entries.
        meter.close()
        job = {
            "home": str(context.home),
            "run_id": run_id,
            "began": time.time(),
            "seconds_before": meter.spent.seconds,
            "plan": plan.model_dump(mode="json"),
            "storage": str(folder / "ray"),
            # Workers on other nodes do not have this environment.
            "collective_timeout_seconds": context.settings.collective_timeout_seconds,
        }
        with context.progress.task("training", plan.training.num_steps, "step") as bar:
            answers = Answers(emit, bar)

            def take(document: dict[str, Any]) -> None:
                answers.take(document)
                # Raised in the driver, inside `fit`, so that Ray stops the other workers instead of retrying them.
                if answers.error is not None:
                    raise answers.error

            fit(
                launcher_child.work,
                job,
                num_workers=self.num_processes,
                on_gpus=plan.training.device == "cuda",
                cpus_per_worker=max(1, plan.training.num_threads // self.num_processes),
                take=take,
                stop_signals=stop_signals,
            )
        assert answers.result is not None
        meter.take_up()
        meter.refused_by = answers.refused_by  # type: ignore[assignment]
        return answers.result


DEFAULT_PORT: Final = 8265
_ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
_TIMEOUT_SECONDS: Final = 60.0
# Ray gives a job 3 s between SIGTERM and SIGKILL by default; a step and its checkpoint may take longer.
_STOP_SECONDS: Final = 600
_ENTRY: Final = "recipe.json"


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a job.

    Attributes:
        job_id: Ray's id of it.
        address: Of the cluster's head.
        status: Ray's status, SUCCEEDED, FAILED or STOPPED.
        message: Ray's message.
        is_interrupted: Whether a signal has paused the run: the job was stopped, or ended with the exit code for that.
    """

    job_id: str
    address: str
    status: str
    message: str
    is_interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        """The final document of `luthier train --on ray://... --json`."""
        return {
            "job_id": self.job_id,
            "address": self.address,
            "status": self.status,
            "message": self.message,
            "is_interrupted": self.is_interrupted,
        }


def is_address(text: str) -> bool:
    """Whether the address names a remote cluster: ray://HOST[:PORT], or the http address of its head."""
    return text.startswith(("ray://", "http://", "https://"))


def base_url(address: str) -> str:
    """The address of the Jobs API: `ray://head` is http://head:8265.

    Raises:
        RequestError: An invalid address.
    """
    scheme, _, place = address.partition("://")
    host, _, port = place.rstrip("/").partition(":")
    if not host or "/" in host or (port and not port.isdigit()):
        raise RequestError(
            f"--on {address}",
            expected="ray://HOST[:PORT], with the port of Ray's dashboard (8265)",
            do="write for example: --on ray://head.example:8265",
        )
    return f"{'http' if scheme == 'ray' else scheme}://{host}:{port or DEFAULT_PORT}"


def run_job(
    address: str,
    *,
    recipe: Recipe | None,
    base_dir: Path,
    resume_id: str | None = None,
    num_devices: int = 1,
    interrupted_exit_code: int = 0,
    echo: Callable[[str], object],
    look_seconds: float = 1.0,
) -> JobEnd:
    """Submit the job, print its output, and wait for its end; a stop request pauses the run there.

    Args:
        address: Of the dashboard of the cluster's head.
        recipe: With paths relative to `base_dir`; None with `resume_id`.
        base_dir: The folder of the recipe's files.
        resume_id: A run of the cluster's home to resume; None for a new one.
        num_devices: Workers, one for each device.
        interrupted_exit_code: Of the command on the cluster where a signal has paused the run; 0 and 1 cannot be
            distinguished from a run that has completed or failed there.
        echo: Gets the output, piece by piece.
        look_seconds: Between two looks at the job.

    Raises:
        RequestError: A bad address, rows that are not files, or a request that the API rejects.
        WorkError: The head cannot be reached, or the job fails.
    """
    import httpx2

    url = base_url(address)
    command = ["luthier", "train", *(["--resume", resume_id] if resume_id else [_ENTRY])]
    if interrupted_exit_code > 1:
        command += ["--interrupted-exit-code", str(interrupted_exit_code)]
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), "RAY_USAGE_STATS_ENABLED": "0"} | passed_settings()
    job: dict[str, Any] = {
        "entrypoint": shlex.join([*command, "--on", "ray", "--devices", str(num_devices)]),
        "runtime_env": {"env_vars": environment},
        "metadata": {"made_by": "luthier"},
    }
    headers = {"Authorization": f"Bearer {token}"} if (token := _token()) else {}
    with httpx2.Client(base_url=url, timeout=_TIMEOUT_SECONDS, headers=headers) as client, stop_signals() as stop:
        try:
            if recipe is not None:
                for note in left_here(recipe, uploads=False, secrets=()):
                    echo(f"note: {note}\n")
                job["runtime_env"]["working_dir"] = _upload(client, package(recipe, base_dir))
            job_id = str(_asked(client, "POST", "/api/jobs/", json.dumps(job).encode())["submission_id"])
            echo(f"job {job_id} on {url}\n")
            ended = _follow(client, job_id, stop, echo, look_seconds)
        except httpx2.TransportError as error:
            raise WorkError(
                f"the Ray cluster at {url}: {error or type(error).__name__}",
                expected="the head of a cluster whose dashboard listens there",
                do="check the address, or start one: ray start --head --dashboard-host 0.0.0.0",
            ) from error
    return _end(job_id, url, ended, interrupted_exit_code)


def package(recipe: Recipe, base_dir: Path) -> bytes:
    """A deterministic zip file with recipe and rows. Raises RequestError for missing rows.

    Models are not included: their paths must exist on the cluster.
    """
    files: dict[str, bytes] = {}
    sent: dict[str, str] = {}
    recipe = recipe.model_copy(update={"data": _with_source_names(recipe.data)})
    for number, (key, named) in enumerate(recipe.data.files().items()):
        if is_remote(named):
            continue  # the cluster downloads it
        path = base_dir / named
        if is_pattern(named):
            found = matching_files(path)
            files |= {f"rows/{number}/{shown}": file.read_bytes() for file, shown in found}
            # All of what was found, whatever the pattern was: folders below it are sent, too.
            sent[key] = f"rows/{number}/**/*" if len(found) > 1 else f"rows/{number}/{found[0][1]}"
            continue
        if not path.is_file():
            raise RequestError(f"data.{key}: {path}", expected="a file to send along", do="correct the path")
        sent[key] = f"rows/{number}-{path.name}"
        files[sent[key]] = path.read_bytes()
    recipe = recipe.model_copy(update={"data": recipe.data.with_files(sent)})
    document = with_new_keys(recipe.model_dump(mode="json", exclude_none=True))
    files[_ENTRY] = json.dumps(document, indent=2).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            # A bare ZipInfo has the fixed date 1980-01-01: the same content gives the same bytes and the same digest.
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _with_source_names(data: DataRecipe) -> DataRecipe:
    """The same with a name for each of several sources: files have other names on the cluster."""
    return data.model_copy(
        update={
            key: tuple(
                one.model_copy(update={"name": name}) for one, name in zip(sources, names_of(sources), strict=True)
            )
            for key, sources in data.listed().items()
        }
    )


def _upload(client: httpx2.Client, content: bytes) -> str:
    name = f"_ray_pkg_{sha256_bytes(content)[:16]}.zip"
    path = f"/api/packages/gcs/{name}"
    # The name contains the digest, so an existing package is the same one.
    if client.get(path).status_code != 200:
        _asked(client, "PUT", path, content)
    return f"gcs://{name}"


def _follow(
    client: httpx2.Client,
    job_id: str,
    stop: Callable[[], str | None],
    echo: Callable[[str], object],
    look_seconds: float,
) -> Mapping[str, Any]:
    """Print the output of a job until it has ended; returns what Ray says of it then."""
    num_shown, has_told = 0, False
    while True:
        job = _asked(client, "GET", f"/api/jobs/{job_id}")
        logs = str(_asked(client, "GET", f"/api/jobs/{job_id}/logs").get("logs") or "")
        # The API returns the whole log each time.
        echo(logs[num_shown:])
        num_shown = len(logs)
        if job["status"] in _ENDED:
            return job
        if not has_told and stop() is not None:
            _asked(client, "POST", f"/api/jobs/{job_id}/stop")
            has_told = True
        time.sleep(look_seconds)


def _end(job_id: str, url: str, job: Mapping[str, Any], interrupted_exit_code: int) -> JobEnd:
    """How a job has ended. Raises WorkError for one that has failed."""
    status, message = str(job["status"]), str(job.get("message") or "")
    # Ray calls every exit code but 0 a failure: that of a paused run was asked for.
    has_code = interrupted_exit_code > 1 and job.get("driver_exit_code") == interrupted_exit_code
    if status == "FAILED" and not has_code:
        raise WorkError(
            f"job {job_id} on {url} failed: {message.strip()[-500:]}",
            expected="`luthier train` to end well on the cluster",
            do="read what it printed above; the run stays in the cluster's home and may be resumed",
        )
    return JobEnd(job_id, url, status, message, is_interrupted=status == "STOPPED" or has_code)


def _asked(client: httpx2.Client, method: str, path: str, content: bytes | None = None) -> Mapping[str, Any]:
    response = client.request(method, path, content=content)
    if response.status_code >= 500:
        raise WorkError(
            f"{method} {path}: {response.status_code} {response.text[:500]}",
            expected="an answer of Ray's Jobs API",
            do="see the dashboard's log on the head",
        )
    if response.status_code >= 400:
        raise RequestError(
            f"{method} {path}: {response.status_code} {response.text[:500]}",
            expected="a request that Ray's Jobs API takes",
            do="set RAY_AUTH_TOKEN where it requires one; else check that the address is a Ray dashboard's",
        )
    found: Any = response.json() if response.content else {}
    return found if isinstance(found, Mapping) else {}


def _token() -> str | None:
    """The cluster's token from the environment or Ray's token file, if any."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None
