"""The export of a small copy before that of the model itself, so that what cannot be exported is refused at once.

A list of architectures says what a converter has a name for, not what it does with it: some are on the list and fail
on the shapes of their weights, others are converted without a part that the format or the runtime has no place for. So
converter and runtime are asked: a copy of the architecture with few layers, narrow ones, and the model's own tokenizer
is written in the format in float32, opened in the runtime, and read by both sides. Weights are random, and a part that
is missing shows in what every token is given; rounding does not.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from luthier.core.digest import sha256_document, sha256_file
from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.ports import Progress, SilentProgress
from luthier.core.records.export import ExportFormat, ExportSource
from luthier.core.system.scratch_folders import scratch_folder

if TYPE_CHECKING:
    from luthier.ml.export.exporters.registry import Write

_FORMAT: Final = 1
_NUM_TOKENS: Final = 64
MOST_SHARE: Final = 0.02
"""What the likelihoods of a small copy may differ, as a share of how much they vary; a few 1e-4 are usual."""
_BESIDE: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def rehearse(
    format: ExportFormat, write: Write, modules: tuple[str, ...], source: ExportSource, progress: Progress, tools: Path
) -> None:
    """Refuse a model of which not even a small copy comes out of the converter as it went in.

    Once for each config, tokenizer and versions; success is recorded in `tools`. An architecture of which no
    small copy runs is let through.

    Args:
        format: The format to be written.
        write: Its writer.
        modules: Packages that do the work; another version of one has it tried again.
        source: The model to be exported.
        progress: Told that it is being tried.
        tools: Where third-party programs are stored.

    Raises:
        RequestError: the converter or the runtime fails on the copy, or computes something else.
    """
    mark = tools / f"rehearsed-{format}-{_key(format, modules, source)[:32]}"
    if mark.is_file():
        return
    with (
        progress.task(f"Trying {format} on a small copy", None, ""),
        scratch_folder(Path(tempfile.gettempdir()), "luthier-export-rehearsal-") as scratch,
    ):
        base = scratch / "base"
        if not _write_copy(source, base):
            return
        small = source.model_copy(
            update={
                "name": f"a small copy of {source.base_name}",
                "base_path": str(base),
                "adapter_path": None,
                "adapter_sha256": None,
                "quantisation": None,
            }
        )
        folder = scratch / "export"
        folder.mkdir()
        try:
            write(small, folder, "float32", SilentProgress(), tools)
            share = _difference(format, small, folder)
        except (RequestError, WorkError) as error:
            why = f"it fails on a small copy of the model: {_last_line(error, scratch)}"
            raise _refused(format, source, why) from error
    if not share <= MOST_SHARE:
        raise _refused(
            format,
            source,
            f"of a small copy of the model it computes something else: likelihoods differ by {share:.0%} of how much "
            "they vary, so a part of the architecture is lost on the way",
        )
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _key(format: ExportFormat, modules: tuple[str, ...], source: ExportSource) -> str:
    """Whatever decides how a rehearsal ends."""
    base = Path(source.base_path)
    files = [base / name for name in ("config.json", "tokenizer.json", "tokenizer.model")]
    return sha256_document(
        {
            "version": _FORMAT,
            "format": format,
            "packages": {name: _version(name) for name in ("luthier", "torch", "transformers", *modules)},
            "files": {file.name: sha256_file(file) for file in files if file.is_file()},
            "template": source.template,
        }
    )


def _version(module: str) -> str | None:
    try:
        return version(module.replace("_", "-"))
    except PackageNotFoundError:
        return None


def _write_copy(source: ExportSource, folder: Path) -> bool:
    """The small copy as a transformers folder with the tokenizer of the model; False where none can be made."""
    import torch

    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.ml.inference.models.small_copy import small_copy

    generator = torch.get_rng_state()
    try:
        with quiet_transformers():
            small = small_copy(source.base_path, keeps_vocabulary=True)
            if small is None:
                return False
            small.save_pretrained(str(folder))
    finally:
        torch.set_rng_state(generator)
    for name in _BESIDE:
        if (Path(source.base_path) / name).is_file():
            shutil.copyfile(Path(source.base_path) / name, folder / name)
    return True


def _difference(format: ExportFormat, small: ExportSource, folder: Path) -> float:
    """How far the runtime is from transformers over the same tokens, as a share of how much likelihoods vary.

    Of each position the typical difference over the vocabulary, and of these the median: a router that rounding sends
    another way changes some positions, a part that is missing changes nearly all. Only positions behind the windows of
    the copy count.
    """
    from luthier.ml.export.runtimes.registry import open_export
    from luthier.ml.export.runtimes.transformers_model import TransformersModel

    own = TransformersModel(small.base_path)
    runtime = open_export(format, folder, small)
    try:
        most = min(_NUM_TOKENS, own.context_tokens, runtime.context_tokens or _NUM_TOKENS)
        start = most // 2
        vocabulary = own.log_probabilities([0], 0).shape[1]
        ids = np.random.default_rng(0).integers(3, vocabulary, size=most).tolist()
        wanted, found = own.log_probabilities(ids, start), runtime.log_probabilities(ids, start)
    finally:
        runtime.close()
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    centred = [rows - rows.mean(axis=1, keepdims=True) for rows in (wanted, found)]
    gaps = np.sqrt(((centred[0] - centred[1]) ** 2).mean(axis=1))
    return float(np.median(gaps / np.maximum(centred[0].std(axis=1), 1e-12)))


def _last_line(error: LuthierError, scratch: Path) -> str:
    """What a converter has said last: the exception that ended it, without the place of the copy."""
    lines = [line.strip() for line in error.came.replace(f"{scratch}/", "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _refused(format: ExportFormat, source: ExportSource, why: str) -> RequestError:
    return RequestError(
        f"{source.base_name} cannot be exported as {format}: {why}",
        expected="an architecture that the converter and the runtime know as transformers does",
        do="export with --to merged, which vLLM and transformers serve, or install a newer converter",
    )
