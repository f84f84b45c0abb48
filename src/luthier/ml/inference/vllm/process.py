"""vLLM as a child process: discovery, start, monitoring and shutdown.

Built from vLLM's documentation: "vllm serve" (arguments), "LoRA Adapters" (loading at run time). vLLM is not imported,
so it may be installed in a separate environment: LUTHIER_VLLM_COMMAND sets its command.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

import httpx2

from luthier.core.errors import NotFoundError, WorkError
from luthier.core.ports import Progress
from luthier.core.system import facilities
from luthier.core.system.files import SHORT_TEMPORARY, scratch_folder
from luthier.core.system.machine_memory import memory_bytes
from luthier.core.system.process_setup import dying_with_parent
from luthier.ml.inference.vllm.failures import find_failure

COMMAND: Final = "LUTHIER_VLLM_COMMAND"
_TAIL_BYTES, _NUM_LINES = 8192, 20
# Several tracebacks of several processes.
_CAUSE_BYTES: Final = 1 << 18
_STOP_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.25
_EXIT_SECONDS: Final = 5.0
_GPU: Final = Path("/dev/nvidiactl")
_MAX_SOCKET_FOLDER_BYTES: Final = 66


def vllm_command(environment: Mapping[str, str]) -> list[str]:
    """The vLLM command: LUTHIER_VLLM_COMMAND, otherwise `vllm` in this environment, otherwise on the PATH.

    Raises:
        NotFoundError: there is none.
    """
    if words := shlex.split(environment.get(COMMAND, "")):
        return words
    beside = Path(sys.executable).with_name("vllm")
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        if beside.is_file():
            return [str(beside)]
    if found := shutil.which("vllm", path=environment.get("PATH")):
        return [found]
    raise NotFoundError(
        "the engine vllm without vLLM",
        expected="the package vllm in this environment, `vllm` on the PATH, or its command in LUTHIER_VLLM_COMMAND",
        do="pip install vllm on a machine with a GPU (in a separate environment, if versions conflict), "
        "or use the engine transformers or llama_cpp",
    )


def is_installed() -> bool:
    """Whether there is a vLLM that `vllm_command` finds; it is not started."""
    try:
        vllm_command(os.environ)
    except NotFoundError:
        return False
    return True


class VllmProcess:
    """Manages one child process at a time.

    The thread that calls `start` must outlive the child: the kernel kills the child with that thread.

    Args:
        command: that starts vLLM, such as `vllm`.
        arguments: of `vllm serve`, without host, port and key.
    """

    def __init__(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        self._command, self._arguments = list(command), list(arguments)
        # vLLM asks for its key below /v1 and few other paths: /tokenize, /invocations, /metrics, /pause and others are
        # open (vLLM, "Security"). So it listens on a socket in a folder that only this user may enter; the key is for
        # systems without such sockets.
        self.key = secrets.token_hex()
        self._scratch = ExitStack()
        self.socket_path = _socket_path(self._scratch)
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._log: IO[bytes] | None = None
        self._client = self.make_client(timeout_seconds=5.0)

    def make_client(self, timeout_seconds: float) -> httpx2.Client:
        """A client with the key, for `url` of this child and of those after it; the caller closes it."""
        path = None if self.socket_path is None else str(self.socket_path)
        # No proxy: the child is on this machine.
        return httpx2.Client(
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=timeout_seconds,
            trust_env=False,
            transport=httpx2.HTTPTransport(uds=path),
        )

    @property
    def is_running(self) -> bool:
        """Whether the child is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start a child.

        Raises:
            NotFoundError: the program does not exist.
        """
        self.stop()
        listen = self._listen_arguments()
        if self._log is not None:
            self._log.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        environment = _inherited(self._command) | {
            # In the environment rather than as an argument, which every user of the machine can read.
            "VLLM_API_KEY": self.key,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            # What its processes say to each other stays on this machine.
            "VLLM_HOST_IP": os.environ.get("VLLM_HOST_IP", "127.0.0.1"),
            # The model is local, and no usage statistics are sent.
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        command = [*self._command, "serve", *self._arguments, *listen]
        try:
            # Not `core.child_process`: a program in another environment with an HTTP interface.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                # A separate process group, so that `stop` also reaches the workers of vLLM.
                start_new_session=True,
                creationflags=facilities.GROUP_FLAGS,
                preexec_fn=dying_with_parent(),
            )
            self._is_stopped = False
        except OSError as error:
            raise NotFoundError(
                f"{shlex.join(self._command)} cannot be started: {error}",
                expected=f"the program of vLLM, or its command in {COMMAND}",
                do="install vllm, or correct the command",
            ) from error

    def _listen_arguments(self) -> list[str]:
        """Where the next child listens: at `socket_path`, else on a free port of the loopback; sets `url`."""
        if self.socket_path is not None:
            # A killed child leaves its socket behind, which the next one could not bind.
            self.socket_path.unlink(missing_ok=True)
            self.url = "http://vllm"
            return ["--uds", str(self.socket_path)]
        # Another process may take the port before vLLM binds it; the child then exits, and the next start uses another.
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        return ["--host", "127.0.0.1", "--port", str(port)]

    def is_healthy(self) -> bool:
        """Whether its health check succeeds."""
        if not self._accepts_connections():
            return False
        try:
            return self._client.get(f"{self.url}/health").status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    def _accepts_connections(self) -> bool:
        """Whether there is somebody at the socket. httpx leaves a socket open that could not be connected."""
        if self.socket_path is None:
            return True
        with facilities.unix_socket() as probe:
            try:
                probe.connect(str(self.socket_path))
            except OSError:
                return False
        return True

    def wait(self, progress: Progress, timeout_seconds: float) -> None:
        """Wait until it is ready; shows the last line of its log.

        Raises:
            WorkError: it has exited or is not ready in time; includes the end of its log.
        """
        begun = shown = time.monotonic()
        with progress.task("Starting vLLM", None, "s") as task:
            while not self.is_healthy():
                now = time.monotonic()
                if not self.is_running:
                    raise self.ended("before it could work")
                if now - begun > timeout_seconds:
                    self.stop()
                    raise self.ended(f"stopped: it was not ready after {timeout_seconds:,.0f} s")
                task.advance(now - shown)
                task.note((self.tail() or ["no log yet"])[-1][:80])
                shown = now
                time.sleep(_LOOK_SECONDS)

    def ends_soon(self) -> bool:
        """Whether the child has exited, or does within seconds: its connections break before its exit can be seen."""
        if self._process is None:
            return True
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ended(self, when: str) -> WorkError:
        """The error for an exited child: the cause in its log, what to do about it, and the end of the log."""
        code = None if self._process is None else self._process.poll()
        # The signal with which `stop` ended it is no cause.
        failure = find_failure("\n".join(self._log_lines(_CAUSE_BYTES)), None if self._is_stopped else code)
        because = f": {failure.cause}" if failure.cause else ""
        said = "\n    ".join(self.tail() or ["(nothing)"])
        return WorkError(
            f"vLLM has ended {when}, with exit code {code}{because}; its output:\n    {said}",
            expected="a server that keeps running",
            do=failure.remedy,
        )

    def tail(self) -> list[str]:
        """The last lines of its log."""
        return self._log_lines(_TAIL_BYTES)[-_NUM_LINES:]

    def _log_lines(self, num_bytes: int) -> list[str]:
        """The lines within the last bytes of its log, without empty ones."""
        if self._log is None:
            return []
        size = os.fstat(self._log.fileno()).st_size
        # The position stays, which the child shares for its writes.
        text = facilities.read_at(self._log.fileno(), num_bytes, max(0, size - num_bytes)).decode(errors="replace")
        # The log is shown in errors and pages, but vLLM may print its arguments and environment.
        lines = [line.rstrip().replace(self.key, "***") for line in text.splitlines()]
        return [line for line in lines if line]

    def stop(self) -> None:
        """Stop the child and its descendants; its log is kept until the next start."""
        process = self._process
        if process is None or self._is_stopped:
            return
        # SIGKILL follows even if the child has exited: workers left in its group hold the GPU's memory.
        for end in (facilities.stop_group, facilities.kill_group):
            end(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        process.wait()
        self._is_stopped = True

    def close(self) -> None:
        """Stop and delete the log."""
        self.stop()
        self._client.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        self._scratch.close()


def _socket_path(scratch: ExitStack) -> Path | None:
    """A place for a socket in a new folder of mode 0700; None where the system has no such sockets.

    scratch: its end removes the folder. Folders of processes that were killed are removed now.
    """
    if not hasattr(socket, "AF_UNIX"):
        return None
    # Its address has room for some 100 bytes, and TMPDIR may be long.
    is_short = len(os.fsencode(tempfile.gettempdir())) <= _MAX_SOCKET_FOLDER_BYTES
    parent = Path(tempfile.gettempdir()) if is_short else SHORT_TEMPORARY
    return scratch.enter_context(scratch_folder(parent, "luthier-vllm-")) / "socket"


def _inherited(command: Sequence[str]) -> dict[str, str]:
    """This process's environment, for a program that may live in another Python environment."""
    environment = dict(os.environ)
    if Path(command[0]).parent != Path(sys.executable).parent:
        # It names packages of this environment, which would hide those of the other one.
        environment.pop("PYTHONPATH", None)
    if not _GPU.exists():
        # vLLM's build for processors would take nearly all memory for keys and values.
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_cache_gib(memory_bytes()[0])))
    return environment


def _cache_gib(total_bytes: int) -> int:
    """A quarter of the memory that this process may use, in GiB, at least 1."""
    return max(1, total_bytes // 4 >> 30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
