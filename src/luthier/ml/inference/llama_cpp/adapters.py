"""Which GGUF file is meant, and whether an adapter fits onto a base: seen before llama.cpp loads either."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from luthier.core.errors import NotFoundError, RequestError
from luthier.ml.inference.models.gguf_header import GgufHeader, read_gguf_header

_NUM_SHOWN = 3


def only_gguf(path: Path, kind: Literal["model", "adapter"]) -> Path:
    """The file itself, or the only file of this kind in a folder.

    Args:
        path: a file or a folder.
        kind: what the file must hold.

    Raises:
        NotFoundError: there is none.
        RequestError: there are several, or the file holds the other kind.
        ModelSourceError: a file is damaged.
    """
    if path.is_dir():
        files = [file for file in sorted(path.glob("*.gguf")) if _kind(file) == kind]
        if len(files) > 1:
            raise RequestError(
                f"{path} holds {len(files)} GGUF files with a{'n' if kind == 'adapter' else ''} {kind}: "
                f"{', '.join(file.name for file in files)}",
                expected="one, or the path of the one that is meant",
                do="name the file",
            )
        if not files:
            raise NotFoundError(
                f"{path} holds no GGUF file with a{'n' if kind == 'adapter' else ''} {kind}",
                expected="a file that `luthier export --to gguf` has made",
                do="export it first, or correct the path",
            )
        return files[0]
    if not path.is_file():
        raise NotFoundError(f"no file {path}", expected=f"a GGUF file with a {kind}", do="correct the path")
    if (found := _kind(path)) != kind:
        raise RequestError(f"{path} holds a {found}", expected=f"a {kind}", do="name the other file")
    return path


def check_adapter(adapter: GgufHeader, base: GgufHeader) -> None:
    """Check that an adapter is a LoRA of this base.

    Raises:
        RequestError: it is another kind of adapter, or was made for another base.
    """
    if adapter.values.get("adapter.type") != "lora":
        raise RequestError(
            f"{adapter.path} is of type {adapter.values.get('adapter.type')!r}",
            expected="a LoRA adapter",
            do="merge it into its base: llama.cpp loads LoRA adapters only",
        )
    if adapter.architecture != base.architecture:
        raise _other_base(adapter, base, f"it is for {adapter.architecture!r}, the base is {base.architecture!r}")
    wrong = [problem for name in adapter.shapes if (problem := _misfit(name, adapter, base))]
    if wrong or not adapter.shapes:
        more = f" and {len(wrong) - _NUM_SHOWN} more" if len(wrong) > _NUM_SHOWN else ""
        raise _other_base(adapter, base, "; ".join(wrong[:_NUM_SHOWN]) + more or "it changes nothing")


def _misfit(name: str, adapter: GgufHeader, base: GgufHeader) -> str | None:
    """What is wrong with one matrix of an adapter: A is [rank, inputs] and B [outputs, rank], turned in ggml."""
    matrix, _, side = name.rpartition(".lora_")
    if side not in ("a", "b"):
        return None
    if (whole := base.shapes.get(matrix)) is None:
        return f"the base has no {matrix}"
    shape = adapter.shapes[name]
    # Of an embedding, llama.cpp's converters leave A as it is and B turned, so both ways are right there.
    place, wanted = (0, whole[0]) if side == "a" else (1, whole[-1])
    if matrix.startswith("token_embd") or len(whole) != 2 or len(shape) != 2 or shape[place] == wanted:
        return None
    return f"{name} has {shape[place]} where {matrix} of the base has {wanted}"


def _kind(file: Path) -> str:
    return str(read_gguf_header(file).values.get("general.type") or "model")


def _other_base(adapter: GgufHeader, base: GgufHeader, why: str) -> RequestError:
    return RequestError(
        f"{adapter.path} does not fit onto {base.path}: {why}",
        expected="an adapter that was trained on this base",
        do="serve it on the base that it was trained on",
    )
