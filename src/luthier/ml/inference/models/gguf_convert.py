"""Turn a GGUF file into a transformers folder, once.

The work is done by `gguf_worker` in a child process: de-quantising takes several times the memory of the model, which
is then given back whole, and transformers' own output stays off the terminal.
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader

from luthier.core.errors import ModelSourceError
from luthier.core.ports import Progress

NUM_STEPS = 3
_SHOWN_LINES = 8


def convert(gguf: Path, target: Path, progress: Progress) -> None:
    """Write the model in a GGUF file into the empty folder `target` as bfloat16 safetensors.

    Memory: about 6 bytes a parameter for the weights, and as much again for a moment, in a child process.

    Raises:
        ModelSourceError: transformers cannot read it, its tokenizer cannot be rebuilt faithfully, what was written
            does not load back to equal weights, or the child died (of lack of memory, mostly).
        OSError: no room left on the disk.
    """
    command = [sys.executable, "-m", "luthier.ml.inference.models.gguf_worker", str(gguf), str(target)]
    answer = ""
    with tempfile.TemporaryFile() as log, progress.task(f"Converting {gguf.name}", NUM_STEPS, "steps") as task:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        ) as child:
            try:
                for line in child.stdout or ():
                    if line.strip() == "done":
                        task.advance()
                    else:
                        answer = line
            except BaseException:
                child.kill()
                raise
        if child.returncode == 0:
            return
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
    if answer.startswith("{"):
        error = json.loads(answer)
        raise ModelSourceError(error["came"], expected=error["expected"], do=error["do"])
    if any("No space left" in line or "StorageFull" in line for line in said):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
    raise ModelSourceError(
        "\n    ".join([f"converting {gguf} ended with exit code {child.returncode}; it said:", *said]),
        expected="a conversion that runs to its end",
        do="exit code -9 means that memory ran out: free some; otherwise report this",
    )


def metadata(gguf: Path, key: str) -> str | None:
    """A text value from a GGUF file's header, or None. The weights are not read.

    Raises:
        ModelSourceError: not a GGUF file.
    """
    try:
        field = GGUFReader(str(gguf)).fields.get(key)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise unreadable(gguf, error) from error
    return None if field is None else str(field.contents())


def unreadable(gguf: Path, error: Exception) -> ModelSourceError:
    """The error of a GGUF file that could not be read."""
    return ModelSourceError(
        f"{gguf} cannot be read: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
        expected="a whole GGUF file of an architecture that transformers can de-quantise",
        do="download the file again; if it stays, pull the original model from the hub",
    )
