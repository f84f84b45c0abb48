"""Adapters of a running vLLM: loaded by name, and tested before they answer.

vLLM may accept an adapter and apply nothing of it: it skips matrices whose names it does not find in its own model. So
each load compares the adapter with the base on a probe, and refuses one that changes nothing. A proof, where there is
one, compares it with transformers as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2

from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.published_head import read_document
from luthier.ml.inference.vllm.answers import Complete, VllmAnswers, largest_difference

log = logging.getLogger("luthier.engines")

PROBE: Final = "Which wood is the front of a violin made of? Spruce; the back is of maple. 17 + 25 = 42, and so on."
MAX_PROBE_TOKENS: Final = 32
SAME_NATS: Final = 1e-6
"""Log-probabilities that differ by no more are those of the same weights."""

AskVllm = Callable[[str, str, dict[str, Any] | None], httpx2.Response]
"""Sends a request to vLLM: method, path below /v1, body; raises WorkError where there is no answer."""


class AdapterProof(Protocol):
    """Compares adapters in vLLM with the same adapters elsewhere."""

    def prepare(self, path: str) -> bool:
        """Whether everything that `check` needs is there; otherwise it is being made, and this returns at once."""
        ...

    def check(self, name: str, path: str, complete: Complete) -> None:
        """Compare the adapter that vLLM has loaded by this name.

        Raises:
            RequestError: it gives other answers than it should.
            WorkError: vLLM does not answer.
        """
        ...


def _refuse_whole_modules(name: str, path: str) -> None:
    # Of a file that cannot be read vLLM says what is wrong with it.
    if saved := read_document(Path(path) / "adapter_config.json").get("modules_to_save"):
        raise RequestError(
            f"the adapter {name!r} at {path} has {', '.join(saved)} trained in whole (modules_to_save)",
            expected="low-rank matrices alone: vLLM has no place for other weights of one adapter",
            do="export it with --to merged and serve that, or serve it with the engine transformers",
        )


class VllmAdapters:
    """Loads adapters into a vLLM child, and tests them.

    Args:
        ask: sends a request to the child.
        base: the name of the base there.
        probe: token ids on which an adapter is compared with the base.
        max_rank: the highest rank that the child takes, for messages.
        proof: compares them with transformers as well; None for no such comparison.
    """

    def __init__(
        self, ask: AskVllm, base: str, probe: Sequence[int], max_rank: int, proof: AdapterProof | None
    ) -> None:
        self._ask, self._base, self._probe = ask, base, list(probe)
        self._max_rank, self._proof = max_rank, proof
        self._of_base: dict[int, float] | None = None
        self._unproved: set[str] = set()

    def start_again(self) -> None:
        """Forget what is known of a child that has ended."""
        self._of_base = None
        self._unproved.clear()

    def load(self, name: str, path: str) -> None:
        """Load an adapter, and refuse one that changes nothing.

        Raises:
            RequestError: vLLM rejects it, or it fails a test.
            WorkError: vLLM does not answer.
        """
        _refuse_whole_modules(name, path)
        body = {"lora_name": name, "lora_path": path}
        response = self._ask("POST", "load_lora_adapter", body)
        if response.status_code != httpx2.codes.OK and "already" in response.text:
            # A name left by an earlier unload or load: its weights are unknown, so it is not kept.
            self._ask("POST", "unload_lora_adapter", {"lora_name": name})
            response = self._ask("POST", "load_lora_adapter", body)
        if response.status_code != httpx2.codes.OK:
            raise RequestError(
                f"vLLM refuses the adapter {name!r} at {path}: {response.text[:400]}",
                expected=f"a LoRA adapter of this base, of a rank up to {self._max_rank}",
                do="see what it says; serve other kinds of adapters merged, or with the engine transformers",
            )
        self._unproved.discard(name)
        with _UnloadedOnError(self, name):
            self._check_effect(name, path)
            if self._proof is not None:
                self._unproved.add(name)
                self.is_proved(name, path)

    def unload(self, name: str) -> None:
        """Unload an adapter.

        Raises:
            WorkError: vLLM does not answer.
        """
        self._unproved.discard(name)
        self._ask("POST", "unload_lora_adapter", {"lora_name": name})

    def is_proved(self, name: str, path: str) -> bool:
        """Whether a loaded adapter may answer; false while what it is compared with is being made.

        Raises:
            RequestError: the proof has failed, and the adapter is unloaded.
            WorkError: vLLM does not answer.
        """
        if self._proof is None or name not in self._unproved:
            return True
        if not self._proof.prepare(path):
            return False
        with _UnloadedOnError(self, name):
            self._proof.check(name, path, self.complete)
        self._unproved.discard(name)
        return True

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of vLLM to a completion.

        Raises:
            WorkError: there is none.
        """
        response = self._ask("POST", "completions", body)
        try:
            document = response.json() if response.status_code == httpx2.codes.OK else None
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise WorkError(
                f"vLLM answers a completion with HTTP {response.status_code}: {response.text[:300]}",
                expected="a completion with log-probabilities",
                do="see what it says; a version of vLLM from 0.12 on returns them",
            )
        return document

    def _check_effect(self, name: str, path: str) -> None:
        if self._of_base is None:
            self._of_base = VllmAnswers(self.complete, self._base, 0).after(self._probe)
        found = VllmAnswers(self.complete, name, 0).after(self._probe)
        if largest_difference(found, self._of_base) > SAME_NATS:
            return
        if _is_empty(Path(path)):
            log.warning("the adapter %s changes nothing: all its matrices B are zero, as before training", path)
            return
        raise RequestError(
            f"the adapter {name!r} at {path} changes nothing in vLLM: after {len(self._probe)} tokens all "
            "log-probabilities are those of the base",
            expected="answers that differ from those of the base",
            do="serve it merged (luthier export RUN --to merged) or with the engine transformers: vLLM has loaded it "
            "and applies none of its matrices, mostly since it names them otherwise",
        )


class _UnloadedOnError:
    """Unloads an adapter where the block fails, so that no later request reaches it."""

    def __init__(self, adapters: VllmAdapters, name: str) -> None:
        self._adapters, self._name = adapters, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, LuthierError):
            try:
                self._adapters.unload(self._name)
            except WorkError as failed:
                # The error that is on its way says more; a child that does not answer is started again.
                log.warning("the adapter %s was not unloaded: %s", self._name, failed)


def _is_empty(folder: Path) -> bool:
    """Whether all matrices B of an adapter are zero."""
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as tensors:
        names = [name for name in tensors.keys() if "lora_B" in name]  # noqa: SIM118 - no mapping
        return bool(names) and not any(bool(tensors.get_tensor(name).any()) for name in names)
