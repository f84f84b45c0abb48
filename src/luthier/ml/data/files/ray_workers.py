"""Parts of rows on a cluster of Ray: one task a part, results in the order of the parts.

The driver reads the file and keeps rows, keys and flags, as without Ray; a task gets a part of the rows and returns
what was found in it. So no worker needs the file, results are those of one process, and a part whose worker has died
is done again from the rows that the driver has sent. At most a few parts a core are under way.

Plain tasks rather than Ray Data: docs/decisions/0027-checks-of-data-on-ray.md. Ray is imported only here, on use.
"""

from __future__ import annotations

import os
import pickle
import platform
import secrets
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeVar

from luthier.core.errors import LuthierError, RequestError, StorageFullError, WorkError, error_from
from luthier.core.system import facilities
from luthier.core.system.extras import require_extra
from luthier.core.system.files import scratch_folder
from luthier.core.system.process_setup import environment_with

Result = TypeVar("Result")

MAX_RETRIES: Final = 3
"""Further attempts at a part after its worker or its machine has died."""
LOCAL: Final = "local"
_PARTS_PER_CORE: Final = 2
_MAX_SHARED: Final = 8
_SETTINGS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_oom_retries": str(MAX_RETRIES),  # without an end by default
}
# A task has one core; libraries with their own threads would take all cores of the machine for each.
_ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PACKAGES: Final = (
    *("luthier", "polars", "numpy", "scipy", "rensa", "py3langid", "tokenizers"),
    # Names of people: a worker with another model would leave some unmasked that this process finds.
    *("presidio-analyzer", "spacy", "en_core_web_lg", "en_core_web_md", "en_core_web_sm"),
)
# Ray's sockets have to be below a short path: a name of more than 107 bytes is refused.
_TEMPORARY: Final = Path("/tmp")  # noqa: S108 - files are in a folder of this user alone, of a random name


@contextmanager
def ray_workers() -> Iterator[RayWorkers]:
    """The workers of a cluster, until the block ends.

    The cluster is the one that RAY_ADDRESS names, else the one that this machine belongs to; where there is none, or
    RAY_ADDRESS is `local`, Ray is started on this machine and ended with the block, and leaves nothing behind.

    Raises:
        RequestError: Ray is not installed, or this process uses it already.
        WorkError: the cluster cannot be reached.
    """
    require_extra("ray", "--on ray")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        raise RequestError(
            "--on ray in a process that is connected to Ray already",
            expected="a separate process, which connects and disconnects",
            do="call ray.shutdown() first, or run the command by itself",
        )
    with ExitStack() as stack:
        _connect(stack)
        yield RayWorkers()


def _connect(stack: ExitStack) -> None:
    import ray
    from ray.exceptions import RayError

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    named = os.environ.get("RAY_ADDRESS", "")
    address = named or _cluster_of_this_machine()
    if address and address != LOCAL:
        try:
            ray.init(address, **options)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            what = f"RAY_ADDRESS={address}" if named else f"the Ray cluster that this machine belongs to, {address}"
            raise WorkError(
                f"{what}: {_first_line(error)}",
                expected="the address of a cluster that answers, such as 10.0.0.1:6379",
                do="correct RAY_ADDRESS, or start the cluster (`ray start --head`); RAY_ADDRESS=local starts Ray "
                "on this machine for the command alone",
            ) from error
        stack.callback(ray.shutdown)
        return
    folder = stack.enter_context(scratch_folder(_TEMPORARY, "luthier-ray-"))
    # Ray keeps other users of the machine out by a token, which it would write into the home folder.
    token = {"RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or _token()}
    # Ray sets RAY_AUTH_MODE by itself.
    stack.enter_context(environment_with(token, restored=("RAY_AUTH_MODE",)))
    stack.callback(ray.shutdown)  # before the folder goes
    try:
        ray.init(LOCAL, include_dashboard=False, _temp_dir=str(folder), **options)
    except Exception as error:
        # Ray raises plain exceptions here, such as for a machine that is too busy to start it within 15 seconds.
        raise WorkError(
            f"Ray cannot be started on this machine: {_first_line(error)}",
            expected="free ports, about 1 GiB of memory, and a machine that starts its processes within 15 seconds",
            do="try again later, name a cluster by RAY_ADDRESS, or run the command without --on ray",
        ) from error


def _cluster_of_this_machine() -> str:
    """The cluster that `ray start` has joined, as Ray's documentation of `ray.init` describes it; empty for none."""
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's own rule
    try:
        with (Path(place) / "ray" / "ray_current_cluster").open(encoding="utf-8") as file:
            # The folder may be everybody's: rows must not go to a cluster that another user of the machine has named.
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid not in (0, facilities.posix.getuid()):
                raise RequestError(
                    f"{file.name} belongs to another user of this machine",
                    expected="a cluster that this user or root has joined",
                    do="name the cluster by RAY_ADDRESS; RAY_ADDRESS=local starts Ray on this machine for the command",
                )
            return file.read().strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""


@cache
def _token() -> str:
    # Ray keeps a token as long as the process lives.
    return secrets.token_hex(32)


class RayWorkers:
    """The workers of the cluster that this process is connected to; a `row_workers.RowWorkers`."""

    def __init__(self) -> None:
        import ray

        self._ray = ray
        self._task = ray.remote(_answer).options(num_cpus=1, max_retries=MAX_RETRIES)
        self._versions = versions()

    @property
    def are_remote(self) -> bool:
        """Always."""
        return True

    @property
    def num_cores(self) -> int:
        """Cores of the cluster; 0 for one that starts machines when there is work."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def map(self, function: Callable[..., Result], items: Iterable[Any], *shared: Any) -> Iterator[Result]:
        """See `row_workers.RowWorkers`.

        Raises:
            LuthierError: the function raised it.
            WorkError: the workers of a part died `MAX_RETRIES` + 1 times, or have other versions than this process.
            StorageFullError: a machine of the cluster has no room for parts that are under way.
        """
        with _ray_errors_explained():
            kept = [self._ray.put(one) for one in shared]
        # Looked up each time: a cluster may grow while it works.
        most = _PARTS_PER_CORE * max(1, self.num_cores)
        waiting: deque[Any] = deque()
        try:
            for item in items:
                if len(waiting) >= most:
                    yield self._result(waiting.popleft())
                with _ray_errors_explained():
                    work = self._ray.cloudpickle.dumps((function, item))
                    waiting.append(self._task.remote(work, self._versions, kept))
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            # A block that was left by an error may end after the connection, which has ended all tasks.
            for task in waiting if self._ray.is_initialized() else ():
                self._ray.cancel(task, force=True)

    def _result(self, task: Any) -> Any:
        with _ray_errors_explained():
            answer = self._ray.get(task)
        if "error" in answer:
            raise error_from(answer["error"])
        return answer["result"]


@contextmanager
def _ray_errors_explained() -> Iterator[None]:
    from ray import exceptions

    try:
        yield
    except (exceptions.OutOfDiskError, exceptions.ObjectStoreFullError) as error:
        raise StorageFullError(
            f"a machine of the Ray cluster has no room for parts of rows: {_first_line(error)}",
            expected="some hundred MB in memory or in Ray's temporary folder on each machine",
            do="free some disk space there, or start Ray with a larger --object-store-memory or another --temp-dir",
        ) from error
    except exceptions.RayTaskError as error:
        raise WorkError(
            f"a worker of the Ray cluster failed: {_first_line(error.cause or error)}",
            expected="the result of a part of the rows",
            do="run the command without --on ray; if it works there, this is a fault of Luthier: please report it",
        ) from error
    except exceptions.RayError as error:
        raise WorkError(
            f"a part of the rows was lost with its worker, in {MAX_RETRIES + 1} attempts: {_first_line(error)}",
            expected="workers that live as long as a part takes, some seconds",
            do="check the memory of the cluster's machines (`ray status`), then start again; nothing was written",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


@cache
def versions() -> str:
    """What the results depend on: Python and the packages that look at rows, with their versions."""
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


# In a worker: what was sent once for all parts, by the name of the object.
_shared: dict[str, Any] = {}


def _answer(work: bytes, of_driver: str, shared: list[Any]) -> dict[str, Any]:
    """One part, in a worker. An error of Luthier comes back as a document, since its classes cannot be pickled.

    Args:
        work: function and part, pickled, so that no library is loaded before its threads are set.
        of_driver: the versions of the driver.
        shared: references to what all parts need.
    """
    if (here := versions()) != of_driver:
        return {"error": _other_versions(here, of_driver).as_json()}
    os.environ.update(_ONE_THREAD)
    function, item = pickle.loads(work)  # noqa: S301 - of the driver, whose functions this process runs
    try:
        return {"result": function(item, *map(_shared_value, shared))}
    except LuthierError as error:
        return {"error": error.as_json()}


def _shared_value(reference: Any) -> Any:
    import ray

    name = reference.hex()
    if name not in _shared:
        while len(_shared) >= _MAX_SHARED:
            del _shared[next(iter(_shared))]
        _shared[name] = ray.get(reference)
    return _shared[name]


def _other_versions(here: str, of_driver: str) -> WorkError:
    theirs, mine = of_driver.split(", "), here.split(", ")
    differing = ", ".join(one for one in mine if one not in theirs) or "fewer packages"
    wanted = ", ".join(one for one in theirs if one not in mine)
    return WorkError(
        f"a machine of the Ray cluster ({platform.node()}, {sys.executable}) has {differing}",
        expected=f"the same versions on all machines, so that the findings are the same: {wanted}",
        do="install the same versions of Luthier and its packages on the machines of the cluster",
    )
