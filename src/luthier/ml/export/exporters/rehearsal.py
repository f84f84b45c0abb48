"""The export of a small copy before that of the model itself, so that what cannot be exported is refused at once.

A list of architectures says what a converter has a name for, not what it does with it: some are on the list and fail
on the shapes of their weights, others are converted without a part that the format or the runtime has no place for. So
converter and runtime are asked: a copy of the architecture with few layers, narrow ones, and the model's own tokenizer
is written in the format in float32, opened in the runtime, and read by both sides. Weights are random, and a part that
is missing shows in what every token is given; rounding does not. The tokens of the prompts that the export will be
proved on, and the token that ends an answer, are compared there too: they depend on template and tokenizer alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from luthier.core.digest import sha256_document, sha256_file
from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.ports import Progress, SilentProgress
from luthier.core.records.export import ExportFormat, ExportSource
from luthier.core.system.scratch_folders import scratch_folder
from luthier.ml.export.exporters.companions import write_companions
from luthier.ml.export.exporters.proof_prompts import ProofPrompt, SourcePrompts, TokenFindings, compared_tokens

if TYPE_CHECKING:
    from luthier.ml.export.runtimes.protocol import Runtime

_FORMAT: Final = 2
_NUM_TOKENS: Final = 64
MAX_SHARE: Final = 0.02
"""What the likelihoods of a small copy may differ, as a share of how much they vary; a few 1e-4 are usual."""
_BESIDE: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_OTHER_TEMPLATES: Final = "additional_chat_templates"


def rehearse(
    format: ExportFormat,
    write: Callable[..., Any],
    modules: tuple[str, ...],
    source: ExportSource,
    progress: Progress,
    tools: Path,
    prompts: SourcePrompts | None = None,
) -> None:
    """Refuse a model of which not even a small copy comes out of the converter as it went in.

    Once for each config, tokenizer, versions and prompts; success is recorded in `tools`. An architecture of which no
    small copy runs is let through.

    Args:
        format: The format to be written.
        write: Its writer.
        modules: Packages that do the work; another version of one has it tried again.
        source: The model to be exported.
        progress: Shows that it is being tried.
        tools: Where third-party programs are stored.
        prompts: Those that the export will be proved on; None compares no prompts.

    Raises:
        RequestError: the converter or the runtime fails on the copy, computes something else, or makes other tokens of
            a prompt than the source.
    """
    key = _key(format, modules, source)
    model_mark = tools / f"rehearsed-{format}-{key[:32]}"
    marks = [model_mark]
    if prompts is not None:
        digest = sha256_document({"model": key, "prompts": [_document(one) for one in prompts.prompts]})
        marks.append(tools / f"rehearsed-{format}-prompts-{digest[:32]}")
    # Only success is marked: what was refused is tried again, since a package may have been repaired.
    if all(mark.is_file() for mark in marks):
        return
    with (
        progress.task(f"Trying {format} on a small copy", None, ""),
        scratch_folder(Path(tempfile.gettempdir()), "luthier-export-rehearsal-") as scratch,
    ):
        if not _write_copy(source, scratch / "base"):
            return
        try:
            fault, tokens = _tried(format, write, source, scratch, tools, prompts, is_known=model_mark.is_file())
        except (RequestError, WorkError) as error:
            why = f"it fails on a small copy of the model: {_last_line(error, scratch)}"
            raise _refused(format, source, why) from error
    if fault:
        raise _refused(format, source, fault)
    refuse_other_tokens(format, source, tokens)
    for mark in marks:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def refuse_other_tokens(format: ExportFormat, source: ExportSource, tokens: TokenFindings) -> None:
    """Raise RequestError where an export would not write prompts, or end answers, as the source does."""
    if not tokens.reasons:
        return
    raise RequestError(
        f"{source.name} cannot be exported as {format}: " + " ".join(tokens.reasons),
        expected="the tokens of training from the tokenizer and the chat template of the export, in its own runtime",
        do="export with --to merged, which vLLM and transformers serve; where the rows named are unusual, prove it on "
        "others with --data FILE"
        if format != "merged"
        else "prove it on other rows with --data FILE, or repair the chat template of the base model",
    )


def rehearse_companions(format: ExportFormat, source: ExportSource, prompts: SourcePrompts) -> None:
    """Refuse a model whose exported tokenizer and chat template write prompts otherwise in transformers.

    For formats that are not tried on a small copy: no weights are needed for it.

    Raises:
        RequestError: other tokens, or another end of an answer.
    """
    from luthier.ml.export.runtimes.transformers_runtime import TransformersTokens

    with scratch_folder(Path(tempfile.gettempdir()), "luthier-export-rehearsal-") as scratch:
        write_companions(source, scratch)
        refuse_other_tokens(format, source, compared_tokens(prompts, prompts.prompts, TransformersTokens(scratch)))


def _tried(
    format: ExportFormat,
    write: Callable[..., Any],
    source: ExportSource,
    scratch: Path,
    tools: Path,
    prompts: SourcePrompts | None,
    *,
    is_known: bool,
) -> tuple[str, TokenFindings]:
    """What a small copy in `scratch` computes otherwise in the runtime, empty for nothing, and the tokens of prompts.

    is_known: what it computes was compared before.
    """
    from luthier.ml.export.exporters.registry import open_export

    small = source.model_copy(
        update={
            "name": f"a small copy of {source.base_name}",
            "base_path": str(scratch / "base"),
            "adapter_path": None,
            "adapter_sha256": None,
            "quantisation": None,
        }
    )
    folder = scratch / "export"
    folder.mkdir()
    write(small, folder, "float32", SilentProgress(), tools)
    with closing(open_export(format, folder, small)) as runtime:
        fault = "" if is_known else _fault(small, runtime)
        tokens = TokenFindings(0) if prompts is None else compared_tokens(prompts, prompts.prompts, runtime)
        return fault, tokens


def _key(format: ExportFormat, modules: tuple[str, ...], source: ExportSource) -> str:
    """Whatever decides how a rehearsal ends, but for the prompts."""
    base = Path(source.base_path)
    files = [base / name for name in ("config.json", *_BESIDE)]
    return sha256_document(
        {
            "version": _FORMAT,
            "format": format,
            "packages": {name: _version(name) for name in ("luthier", "torch", "transformers", *modules)},
            "files": {file.name: sha256_file(file) for file in files if file.is_file()},
            "template": source.template,
            "options": source.template_options,
            "turns": source.opted_turns.model_dump(mode="json"),
        }
    )


def _document(prompt: ProofPrompt) -> dict[str, Any]:
    turns = None if prompt.conversation is None else prompt.conversation.model_dump(mode="json")
    return {"turns": turns, "text": prompt.text, "ids": prompt.ids}


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

    # The copy's random weights must not move the random numbers of the process that asks.
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
    if (others := Path(source.base_path) / _OTHER_TEMPLATES).is_dir():
        shutil.copytree(others, folder / _OTHER_TEMPLATES)
    return True


def _fault(small: ExportSource, runtime: Runtime) -> str:
    """What the runtime makes of the small copy, where it is something else than what transformers does; else empty.

    Of each position the typical difference over the vocabulary, as a share of how much likelihoods vary, and of these
    the median: a router that rounding sends another way changes some positions, a part that is missing changes nearly
    all. Only positions behind the windows of the copy count.
    """
    from luthier.ml.export.runtimes.transformers_model import TransformersModel

    own = TransformersModel(small.base_path)
    most = min(_NUM_TOKENS, own.context_tokens, runtime.context_tokens or _NUM_TOKENS)
    # The first half is context only: windows of the copy are shorter than that.
    start = most // 2
    vocabulary = own.log_probabilities([0], 0).shape[1]
    # From 3 on: the first ids are mostly special tokens, which some runtimes treat apart.
    ids = np.random.default_rng(0).integers(3, vocabulary, size=most).tolist()
    wanted, found = own.log_probabilities(ids, start), runtime.log_probabilities(ids, start)
    if found.shape != wanted.shape:
        return f"of a small copy of the model it knows {found.shape[1]} tokens where the model has {vocabulary}"
    share = float("inf")
    if np.isfinite(found).all():
        # Centred by position: a constant added to all logits is no difference.
        centred = [rows - rows.mean(axis=1, keepdims=True) for rows in (wanted, found)]
        gaps = np.sqrt(((centred[0] - centred[1]) ** 2).mean(axis=1))
        share = float(np.median(gaps / np.maximum(centred[0].std(axis=1), 1e-12)))
    if share <= MAX_SHARE:
        return ""
    return (
        f"of a small copy of the model it computes something else: likelihoods differ by {share:.0%} of how much "
        "they vary, so a part of the architecture is lost on the way"
    )


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
