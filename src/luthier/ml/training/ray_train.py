"""Run a function in the workers of Ray Train, which starts and connects them and restarts them if one is lost.

Ray connects the processes and detects lost ones; training and resuming use this project's loop and checkpoints. Nothing
is reported to Ray, whose `report` takes seconds per call. Ray is imported only here, on use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from luthier.core.errors import PeerLostError, RequestError, WorkError
from luthier.core.events import WarningRaised
from luthier.core.system.extras import install_command
from luthier.core.system.process_setup import start_daemon

Answer = Callable[[dict[str, Any]], None]
Work = Callable[[dict[str, Any], Answer, Callable[[], str | None]], None]
MAX_FAILURES: Final = 3
_LOOK_SECONDS: Final = 0.3
_IDLE: Final = "the run was planned on a machine without a GPU, and trains as it was planned:"
_SETTINGS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 s by default, which would also delay the end of the work
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def require_ray() -> None:
    """Raise RequestError if Ray is not installed."""
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"--on ray without Ray ({error})",
            expected="the extra `ray` of this package",
            do=f"install it: {install_command('ray')}",
        ) from error


# Ray calls the methods of an actor one at a time, so that no lock is needed here.
class _Mailbox:
    """An actor between driver and workers: passes answers one way and the stop request the other way."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.wish = ""

    def put(self, answer: str) -> None:
        self.answers.append(answer)

    def take(self) -> list[str]:
        taken, self.answers = self.answers, []
        return taken

    def ask_to_stop(self, wish: str) -> None:
        self.wish = wish

    def wished(self) -> str:
        return self.wish


def fit(
    work: Work,
    job: dict[str, Any],
    *,
    num_workers: int,
    on_gpus: bool,
    cpus_per_worker: int,
    take: Answer,
    stop_signals: Callable[[], AbstractContextManager[Callable[[], str | None]]],
) -> None:
    """Call `work(job, answer, stop)` in each of `num_workers` processes of the cluster that this machine belongs to.

    Args:
        work: must be importable on every node. An exception makes Ray restart it, except for errors that it answers. If
            this machine belongs to no cluster, Ray is started on it for the duration of the call.
        job: given to each process as it is.
        num_workers: processes.
        on_gpus: whether each process gets a GPU.
        cpus_per_worker: CPU cores that Ray reserves for each process.
        take: called with each answer, in this thread.
        stop_signals: entered after Ray has started, since Ray installs its own signal handlers; yields a function that
            is called a few times per second and returns the reason to stop, if any, which is passed on to the workers.

    Raises:
        RequestError: Ray is not installed.
        WorkError: the workers were lost more than `MAX_FAILURES` times.
    """
    for name, value in _SETTINGS.items():
        # setdefault: what the operator has set for the cluster is left alone.
        os.environ.setdefault(name, value)
    require_ray()
    import ray

    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="warning", include_dashboard=False)
    failures: list[Exception] = []
    try:
        if not on_gpus and (num := ray.cluster_resources().get("GPU", 0)):
            message = f"{_IDLE} {num:g} GPUs of the cluster are not used"
            take({"event": WarningRaised(step=0, code="gpus_idle", message=message).model_dump(mode="json")})
        # No CPU is reserved for it: it would be one fewer for the workers.
        mailbox = ray.remote(_Mailbox).options(num_cpus=0).remote()
        trainer = _trainer(work, job, mailbox, num_workers, on_gpus, cpus_per_worker)

        def run() -> None:
            try:
                trainer.fit()
            except Exception as error:  # noqa: BLE001 - Ray's own classes; what it says is passed on
                failures.append(error)

        # fit() blocks: the main thread stays free for signals, and for passing answers on.
        thread = start_daemon(run, "ray-train")
        has_sent_stop = has_ended = False
        with stop_signals() as stop_requested:
            while not has_ended:
                thread.join(_LOOK_SECONDS)
                # Read before the last `take`: answers that came with the end are still delivered.
                has_ended = not thread.is_alive()
                if not has_sent_stop and (wish := stop_requested()) is not None:
                    ray.get(mailbox.ask_to_stop.remote(wish))
                    has_sent_stop = True
                for text in ray.get(mailbox.take.remote()):
                    take(json.loads(text))
    finally:
        ray.shutdown()
    if failures:
        last = str(failures[0]).strip().splitlines() or [type(failures[0]).__name__]
        raise WorkError(
            f"Ray gave up after {MAX_FAILURES} new starts: {last[-1][:500]}",
            expected="workers that live until the next checkpoint",
            do="see the logs of the workers in Ray's dashboard, then continue the run",
        ) from failures[0]


def _trainer(
    work: Work, job: dict[str, Any], mailbox: Any, num_workers: int, on_gpus: bool, cpus_per_worker: int
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def one_worker() -> None:
        import ray

        def answer(document: dict[str, Any]) -> None:
            ray.get(mailbox.put.remote(json.dumps(document)))

        def stop() -> str | None:
            return ray.get(mailbox.wished.remote()) or None

        from luthier.core.errors import LuthierError

        try:
            work(job, answer, stop)
        except PeerLostError:
            raise
        except LuthierError as error:
            answer({"error": error.as_json()})  # reported, not raised: a restart would fail in the same way

    return TorchTrainer(
        one_worker,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=on_gpus, resources_per_worker={"CPU": cpus_per_worker}
        ),
        run_config=RunConfig(storage_path=job["storage"], failure_config=FailureConfig(max_failures=MAX_FAILURES)),
    )
