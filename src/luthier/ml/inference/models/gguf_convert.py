"""Turn a GGUF file into a transformers folder, once.

The work is done by `gguf_worker` in a child process: de-quantising takes several times the memory of the model, which
is then given back whole, and transformers' own output stays off the terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gguf import GGUFReader

from luthier.core.child_process.process import run_child
from luthier.core.errors import ModelSourceError, WorkError
from luthier.core.library_errors import first_line
from luthier.core.ports import Progress

NUM_STEPS = 3
_WORKER: Final = "luthier.ml.inference.models.gguf_worker:convert"


def convert(gguf: Path, target: Path, progress: Progress) -> None:
    """Write the model in a GGUF file into the empty folder `target` as bfloat16 safetensors.

    Memory: about 6 bytes a parameter for the weights, and as much again for a moment, in a child process.

    Raises:
        ModelSourceError: transformers cannot read it, its tokenizer cannot be rebuilt faithfully, what was written
            does not load back to equal weights, or the child died (of lack of memory, mostly).
        OSError: no room left on the disk.
    """
    document = {"gguf": str(gguf), "target": str(target)}
    with progress.task(f"Converting {gguf.name}", NUM_STEPS, "steps") as task:
        try:
            run_child(_WORKER, document, title=f"converting {gguf}", on_event=lambda _: task.advance())
        except WorkError as error:
            raise ModelSourceError(error.came, expected=error.expected, do=error.do) from error


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
        f"{gguf} cannot be read: {type(error).__name__}: {first_line(error, '')}",
        expected="a whole GGUF file of an architecture that transformers can de-quantise",
        do="download the file again; if it stays, pull the original model from the hub",
    )
