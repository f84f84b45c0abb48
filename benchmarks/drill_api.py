"""The API in the fault drill: a server that is started again whenever it dies, and a client that hands jobs to it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from drill_world import EPOCHS, World

from luthier.core.access import Caller
from luthier.core.records.fine_tuning import FineTuningRequest
from luthier.features.finetuning_api import service as fine_tuning
from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.files import service as files
from luthier.platform.home.context import Context

_EDGE = "luthier-drill"
_GIVE_UP_SECONDS = 180.0


def request_of(seed: int, train: str, valid: str) -> dict[str, Any]:
    """A job of the API; `seed` is all that differs from one to the other."""
    asked = {"n_epochs": EPOCHS, "batch_size": 8, "learning_rate_multiplier": 20.0}
    method = {"type": "supervised", "supervised": {"hyperparameters": asked}}
    return {"model": "tiny", "training_file": train, "validation_file": valid, "seed": seed, "method": method}


def submit_in_peace(context: Context, rows: Path, num_requests: int) -> dict[str, int]:
    """The same requests without a server; the number of each job's request by its id."""
    pull_model(context, str(rows / "tiny"))
    ids = {
        name: files.add_file(
            context, "default", rows / f"{name}.jsonl", filename=f"{name}.jsonl", purpose="fine-tune"
        ).file_id
        for name in ("train", "valid")
    }
    caller, asked = Caller(), {}
    for seed in range(num_requests):
        request = FineTuningRequest.model_validate(request_of(seed, ids["train"], ids["valid"]))
        asked[fine_tuning.create(context, caller, request).job_id] = seed
    return asked


@dataclass
class Api:
    """The server of a world. submitted: the seed of each job by its id, as far as the client knows."""

    world: World
    key: str = ""
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    submitted: dict[str, int] = field(default_factory=dict)
    num_starts: int = 0
    num_retries: int = 0
    error: str | None = None
    _thread: threading.Thread | None = None
    _start_at: float = 0.0

    def prepare(self, rows: Path) -> None:
        """A key, the base model, and a port that stays the same from start to start."""
        with self.world.context() as context:
            pull_model(context, str(rows / "tiny"))
            self.key = create_key(context, "drill", scopes=("train", "read"))[1]
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])

    def keep(self) -> None:
        """Start the server where it is missing, a moment after its death."""
        if self.process is not None and self.process.poll() is None:
            return
        now = time.monotonic()
        if self.process is not None and not self._start_at:
            self._start_at = now + self.world.draw.uniform(0.2, 3.0)
        if now < self._start_at:
            return
        self._start_at, self.num_starts = 0.0, self.num_starts + 1
        command = [sys.executable, "-m", "luthier", "up", "--port", str(self.port), "--workers", "0"]
        with (self.world.logs / "api.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--home", str(self.world.home)], stdout=log, stderr=log, env=self.world.environment()
            )

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def submit(self, rows: Path, seeds: list[int], pauses: list[float]) -> None:
        """Hand jobs to the server from a thread of its own, as a stubborn client does: again until it is heard."""
        self._thread = threading.Thread(target=self._submit, args=(rows, seeds, pauses), daemon=True)
        self._thread.start()

    @property
    def is_submitting(self) -> bool:
        """Whether the client still has jobs to hand in."""
        return self._thread is not None and self._thread.is_alive()

    def _submit(self, rows: Path, seeds: list[int], pauses: list[float]) -> None:
        try:
            ids = {name: self._upload(rows / f"{name}.jsonl") for name in ("train", "valid")}
            for number, (seed, pause) in enumerate(zip(seeds, pauses, strict=True)):
                body = json.dumps(request_of(seed, ids["train"], ids["valid"])).encode()
                headers = {"Content-Type": "application/json", "Idempotency-Key": f"drill-{number}"}
                self.submitted[self._again("/v1/fine_tuning/jobs", body, headers)["id"]] = seed
                time.sleep(pause)
        except Exception as error:  # noqa: BLE001 - told in the report
            self.error = repr(error)

    def _upload(self, path: Path) -> str:
        head = f'--{_EDGE}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{_EDGE}\r\n'
        head += f'Content-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{_EDGE}--\r\n".encode()
        return str(self._again("/v1/files", body, {"Content-Type": f"multipart/form-data; boundary={_EDGE}"})["id"])

    def _again(self, path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        give_up_at = time.monotonic() + _GIVE_UP_SECONDS
        while True:
            request = Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
            request.add_header("Authorization", f"Bearer {self.key}")
            try:
                with urlopen(request, timeout=30) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except HTTPError as error:
                if (error.code < 500 and error.code != 409) or time.monotonic() >= give_up_at:
                    raise RuntimeError(f"{path}: {error.code} {error.read()[:500]!r}") from error
            except (URLError, OSError, ValueError):
                if time.monotonic() >= give_up_at:
                    raise
            self.num_retries += 1
            time.sleep(0.5)
