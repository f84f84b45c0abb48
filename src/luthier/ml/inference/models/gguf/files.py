"""GGUF files: the header with keys, names and shapes of tensors, and conversion into a transformers folder.

Format: "GGUF" specification of ggml, version 2 and 3. The header is read in one pass, skipping list values, so that a
large vocabulary costs no time. A truncated file is rejected.

A file is converted once, by `worker` in a child process: dequantising takes several times the memory of the model,
which is fully released afterwards, and transformers' output stays off the terminal.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from luthier.core.child_process.process import run_child
from luthier.core.errors import ModelSourceError, NotFoundError, WorkError, first_line, library_reason
from luthier.core.ports import Progress

_MAGIC: Final = b"GGUF"
_STRING, _ARRAY = 8, 9
_FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_DEFAULT_ALIGNMENT: Final = 32
# By ggml type number: weights per block, and bytes per block ("ggml-common.h").
_BLOCKS: Final = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 30: (1, 2),
}  # fmt: skip
# No valid key is longer; a corrupt length would otherwise request all memory.
_MAX_STRING_BYTES: Final = 1 << 26
# ggml does not read nested lists, but the format allows them.
_MAX_NESTED_LISTS: Final = 8
# Maximum bytes of a skipped value: more than any file has, and small enough for `seek`, which overflows at 2**63.
_MAX_SKIPPED_BYTES: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        values: by key, without lists.
        num_in_list: length of each list, by key.
        shapes: of the tensors, with dimensions in ggml's order (innermost first).
        longest_in_list: bytes of the longest text of each list of texts.
    """

    path: Path
    values: dict[str, Any]
    num_in_list: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    longest_in_list: dict[str, int] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The prefix of its keys, such as `llama`; empty if the file does not state it."""
        return str(self.values.get("general.architecture", ""))

    def number(self, key: str, default: int) -> int:
        """A whole number of the architecture, such as `context_length`."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        # A float that is not an integer (infinity, NaN) is not a count.
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if is_whole else default


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        NotFoundError: no such file.
        ModelSourceError: not a GGUF file, or a truncated one.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}", expected="a GGUF file", do="correct the path")
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
        raise ModelSourceError(
            f"{path} cannot be read as GGUF: {type(error).__name__}: {library_reason(error)}",
            expected="a complete GGUF file of version 2 or 3",
            do="fetch or export it again",
        ) from error


def _read(path: Path, file: BinaryIO) -> GgufHeader:
    if (magic := file.read(4)) != _MAGIC:
        raise ValueError(f"begins with {magic!r}")
    version, num_tensors, num_values = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    values: dict[str, Any] = {}
    num_in_list: dict[str, int] = {}
    longest_in_list: dict[str, int] = {}
    for _ in range(num_values):
        key = _string(file).decode()
        (kind,) = _unpack(file, "I")
        if kind == _ARRAY:
            num_in_list[key], longest_in_list[key] = _skip_list(file)
        else:
            is_text = kind == _STRING
            values[key] = _string(file).decode(errors="replace") if is_text else _unpack(file, _FORMATS[kind])[0]
    shapes = {}
    end = 0
    for _ in range(num_tensors):
        name = _string(file).decode()
        (num_dimensions,) = _unpack(file, "I")
        # ggml has at most 4 dimensions; a corrupt count must not read the whole file.
        shapes[name] = _unpack(file, f"{min(num_dimensions, 8)}Q")
        kind, begin = _unpack(file, "IQ")
        # Offsets are relative to the start of the weights; the furthest end gives the required file size.
        end = max(end, begin + _num_bytes(kind, shapes[name]))
    _check_whole(path, file.tell(), int(values.get("general.alignment", _DEFAULT_ALIGNMENT)), end)
    return GgufHeader(path, values, num_in_list, shapes, longest_in_list)


def _num_bytes(kind: int, shape: tuple[int, ...]) -> int:
    """Bytes of the weights of a tensor; 0 for an unknown type."""
    in_block, block_bytes = _BLOCKS.get(kind, (1, 0))
    return math.prod(shape) // in_block * block_bytes


def _check_whole(path: Path, header_bytes: int, alignment: int, weight_bytes: int) -> None:
    # The weights begin at the next multiple of the alignment.
    wanted = -(-header_bytes // max(1, alignment)) * alignment + weight_bytes if weight_bytes else header_bytes
    if (found := path.stat().st_size) < wanted:
        raise ValueError(f"{found:,} bytes, where its header declares {wanted:,}: it is cut off")


def _skip_list(file: BinaryIO, depth: int = 1) -> tuple[int, int]:
    """The number of values, and the bytes of the longest text among them; 0 if there is none."""
    if depth > _MAX_NESTED_LISTS:
        raise ValueError(f"lists in lists, more than {_MAX_NESTED_LISTS} deep")
    kind, length = _unpack(file, "IQ")
    longest = 0
    if kind == _STRING:
        for _ in range(length):
            (num_bytes,) = _unpack(file, "Q")
            longest = max(longest, num_bytes)
            _skip(file, num_bytes)
    elif kind == _ARRAY:
        for _ in range(length):
            _skip_list(file, depth + 1)
    else:
        _skip(file, struct.calcsize("<" + _FORMATS[kind]) * length)
    return int(length), int(longest)


def _skip(file: BinaryIO, num_bytes: int) -> None:
    if num_bytes > _MAX_SKIPPED_BYTES:
        raise ValueError(f"a value of {num_bytes:,} bytes")
    file.seek(num_bytes, 1)


def _string(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "Q")
    if length > _MAX_STRING_BYTES:
        raise ValueError(f"a text of {length:,} bytes")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("it ends in the middle of a text")
    return text


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


NUM_STEPS = 3
_WORKER: Final = "luthier.ml.inference.models.gguf.worker:convert"


def convert(gguf: Path, target: Path, progress: Progress) -> None:
    """Write the model in a GGUF file into the empty folder `target` as bfloat16 safetensors.

    Memory: about 6 bytes per parameter for the weights, and briefly twice that, in a child process.

    Raises:
        ModelSourceError: transformers cannot read it, its tokenizer cannot be rebuilt faithfully, the written model
            does not load back to equal weights, or the child died (usually out of memory).
        OSError: no room left on the disk.
    """
    document = {"gguf": str(gguf), "target": str(target)}
    with progress.task(f"Converting {gguf.name}", NUM_STEPS, "steps") as task:
        try:
            run_child(_WORKER, document, title=f"converting {gguf}", on_event=lambda _: task.advance())
        except WorkError as error:
            raise ModelSourceError(error.came, expected=error.expected, do=error.do) from error


def metadata(gguf: Path, key: str) -> str | None:
    """A text value from a GGUF file's header, or None. Weights and vocabulary are not read.

    Raises:
        NotFoundError: no such file.
        ModelSourceError: not a GGUF file, or a truncated one.
    """
    value = read_gguf_header(gguf).values.get(key)
    return None if value is None else str(value)


def unreadable(gguf: Path, error: Exception) -> ModelSourceError:
    """The error for an unreadable GGUF file."""
    return ModelSourceError(
        f"{gguf} cannot be read: {type(error).__name__}: {first_line(error, '')}",
        expected="a complete GGUF file of an architecture that transformers can de-quantise",
        do="download the file again; if it stays, pull the original model from the hub",
    )
