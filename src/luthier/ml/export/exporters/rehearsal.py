"""Export a small copy before the model itself, so that an unsupported model is rejected at once.

A converter's list of architectures is not a guarantee: some listed ones fail on the shapes of their weights, others are
converted without a part that the format or the runtime does not support. So both are tested: a copy of the architecture
with few, narrow layers and the model's own tokenizer is written in float32, opened in the runtime, and run by both
sides. Weights are random, so a missing part changes the output at every token, while rounding does not. The tokens of
the prompts of the later check, and the token that ends an answer, are compared too, as they depend only on template and
tokenizer.

A copy with few layers is tried first. Some runtimes identify a model by its number of layers (llama.cpp does for Gemma
2 and 3, EXAONE 4 and Command R), so a failed copy is tried again with the model's number of layers. If the runtime is
correct within the shortest attention window of the copy and wrong beyond it, it ignores windows: the export's context
is then limited to the model's window, within which windows have no effect. Differences that grow with distance (rotary
frequencies) hardly appear among the first tokens, so a long text is read last.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.ids import sha256_document, sha256_file
from luthier.core.ports import Progress, SilentProgress
from luthier.core.records.export import ExportFormat, ExportSource
from luthier.core.system.files import scratch_folder
from luthier.ml.export.exporters.companions import write_companions
from luthier.ml.export.exporters.proof_prompts import ProofPrompt, SourcePrompts, TokenFindings, compared_tokens
from luthier.ml.inference.models.architecture import TEMPLATES_FOLDER, TOKENIZER_FILES

if TYPE_CHECKING:
    from luthier.ml.export.runtimes.protocol import LogProbabilities, Runtime
    from luthier.ml.export.runtimes.transformers_runtime import TransformersModel

_FORMAT: Final = 5
_NUM_TOKENS: Final = 64
_FAR_TOKENS: Final = 1024
_NUM_COMPARED: Final = 32
MAX_SHARE: Final = 0.02
"""What the likelihoods of a small copy may differ at the very most, as a share of how much they vary."""
_MIN_SHARE: Final = 0.005
"""What they always may. llama.cpp reads activations off a table (a few 1e-4), and does not hold time steps of
Nemotron-H above `time_step_min`, as transformers does (0.0035 of the zoo's, behind 1,024 tokens)."""
_ROUNDINGS: Final = 2.0
"""How many times as far as rounding takes the model itself a runtime may be from it (`_bound`)."""
_BESIDE: Final = (*TOKENIZER_FILES, "chat_template.jinja", "generation_config.json")


def rehearse(
    format: ExportFormat,
    write: Callable[..., Any],
    modules: tuple[str, ...],
    source: ExportSource,
    progress: Progress,
    tools: Path,
    prompts: SourcePrompts | None = None,
    *,
    limits_context: bool = False,
) -> int | None:
    """Reject a model if a small copy of it is not converted correctly.

    Runs once per config, tokenizer, versions and prompts; success is recorded in `tools`. Architectures of which no
    small copy can run are accepted.

    Args:
        format: The export format.
        write: Its writer.
        modules: Packages that do the work; a new version of one repeats the rehearsal.
        source: The model to export.
        progress: Shows the rehearsal.
        tools: Where third-party programs are stored.
        prompts: The prompts of the later check; None compares no prompts.
        limits_context: Whether the writer can state a shorter context (`ExportSource.context_tokens`).

    Returns:
        The largest context in tokens for which the runtime is correct; None for the model's full context.

    Raises:
        RequestError: converter or runtime fails on the copy, computes something else, or makes other tokens of a prompt
            than the source.
    """
    key = _key(format, modules, source)
    model_mark = tools / f"rehearsed-{format}-{key[:32]}"
    marks = [model_mark]
    if prompts is not None:
        digest = sha256_document({"model": key, "prompts": [_document(one) for one in prompts.prompts]})
        marks.append(tools / f"rehearsed-{format}-prompts-{digest[:32]}")
    # Only success is recorded: a rejected model is tried again, as a package may have been repaired.
    if all(mark.is_file() for mark in marks):
        return _limit(model_mark)
    with progress.task(f"Trying {format} on a small copy", None, ""):
        trial = _Trial(format, write, source, tools, prompts, limits_context, is_known=model_mark.is_file())
        found = trial.run()
        if found is not None and found.fault and found.has_fewer_layers:
            found = trial.run(keeps_layers=True) or found
    if found is None:
        return None
    if found.fault:
        raise _refused(format, source, found.fault) from found.error
    refuse_other_tokens(format, source, found.tokens)
    model_mark.parent.mkdir(parents=True, exist_ok=True)
    if not model_mark.is_file():
        model_mark.write_text(str(found.context_tokens or ""), encoding="ascii")
    for mark in marks:
        mark.touch()
    return _limit(model_mark)


def _limit(mark: Path) -> int | None:
    """The context found in an earlier rehearsal."""
    text = mark.read_text(encoding="ascii")
    return int(text) if text else None


def refuse_other_tokens(format: ExportFormat, source: ExportSource, tokens: TokenFindings) -> None:
    """Raise RequestError if an export would write prompts or end answers differently from the source."""
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
    """Reject a model whose exported tokenizer and chat template write prompts differently in transformers.

    For formats that are not tried on a small copy. It needs no weights.

    Raises:
        RequestError: other tokens, or another end of an answer.
    """
    from luthier.ml.export.runtimes.transformers_runtime import TransformersTokens

    with scratch_folder(Path(tempfile.gettempdir()), "luthier-export-rehearsal-") as scratch:
        write_companions(source, scratch)
        refuse_other_tokens(format, source, compared_tokens(prompts, prompts.prompts, TransformersTokens(scratch)))


@dataclass(frozen=True, slots=True)
class _Found:
    """The result of a trial: the reason against the export, empty for none, and its exception."""

    tokens: TokenFindings
    fault: str = ""
    error: LuthierError | None = None
    context_tokens: int | None = None
    has_fewer_layers: bool = False


@dataclass(frozen=True, slots=True)
class _Trial:
    """One export to try. is_known: its computation was compared before, only the prompts were not."""

    format: ExportFormat
    write: Callable[..., Any]
    source: ExportSource
    tools: Path
    prompts: SourcePrompts | None
    limits_context: bool
    is_known: bool

    def run(self, *, keeps_layers: bool = False) -> _Found | None:
        """Try a small copy; None if none can be made."""
        with scratch_folder(Path(tempfile.gettempdir()), "luthier-export-rehearsal-") as scratch:
            if not _write_copy(self.source, scratch / "base", keeps_layers=keeps_layers):
                return None
            copied, own = (_num_layers(base) for base in (scratch / "base", Path(self.source.base_path)))
            is_cut = copied < own
            try:
                return replace(self._tried(scratch), has_fewer_layers=is_cut)
            except (RequestError, WorkError) as error:
                why = f"it fails on a small copy of the model: {_last_line(error, scratch)}"
                return _Found(TokenFindings(0), why, error, has_fewer_layers=is_cut)

    def _tried(self, scratch: Path) -> _Found:
        from luthier.ml.export.exporters.registry import open_export

        small = self.source.model_copy(
            update={
                "name": f"a small copy of {self.source.base_name}",
                "base_path": str(scratch / "base"),
                "adapter_path": None,
                "adapter_sha256": None,
                "quantisation": None,
            }
        )
        folder = scratch / "export"
        folder.mkdir()
        self.write(small, folder, "float32", SilentProgress(), self.tools)
        with closing(open_export(self.format, folder, small, in_child=True)) as runtime:
            fault, limit = ("", None) if self.is_known else self._compared(small, runtime)
            prompts = self.prompts
            tokens = TokenFindings(0) if prompts is None else compared_tokens(prompts, prompts.prompts, runtime)
            return _Found(tokens, fault, context_tokens=limit)

    def _compared(self, small: ExportSource, runtime: Runtime) -> tuple[str, int | None]:
        """The reason against the export, empty for none, and the largest context for which the runtime is correct."""
        if not _fault(small, runtime, _NUM_TOKENS):
            return _fault(small, runtime, _FAR_TOKENS, names_cause=True), None
        window, own = (_shortest_window(one.base_path) for one in (small, self.source))
        if self.limits_context and window and own and not _fault(small, runtime, window):
            # Nothing but the windows may differ: the model's own reach further than those of the copy.
            with _without_windows(Path(small.base_path)):
                if not _fault(small, runtime, _FAR_TOKENS):
                    return "", own
        return _fault(small, runtime, _NUM_TOKENS, names_cause=True), None


def _num_layers(base: Path) -> int:
    from luthier.ml.inference.models.architecture import load_config, text_config

    return int(getattr(text_config(load_config(base)), "num_hidden_layers", 0))


def _shortest_window(base: str) -> int | None:
    """The shortest attention window in tokens; None if no window is shorter than the context."""
    from luthier.ml.inference.models.architecture import context_tokens, load_config, text_config

    config = load_config(base)
    usable = [value for value in _windows(vars(text_config(config))).values() if value < context_tokens(config)]
    return min(usable, default=None)


def _windows(entries: Mapping[str, Any]) -> dict[str, int]:
    """The entries of a config that limit how far back layers look, in tokens."""
    from luthier.ml.inference.models.smaller_models import is_span

    return {key: value for key, value in entries.items() if is_span(key) and type(value) is int and value > 0}


@contextmanager
def _without_windows(base: Path) -> Iterator[None]:
    """Inside this block the config of a copy says that its layers look back over all that is ever read of it."""
    with _changed_config(base) as (part, write):
        part.update(dict.fromkeys(_windows(part), _FAR_TOKENS))
        write()
        yield


@contextmanager
def _changed_config(base: Path) -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """The part of a copy's config that describes its language model, and what writes it; it is as before at the end."""
    file = base / "config.json"
    before = file.read_text(encoding="utf-8")
    document = json.loads(before)
    try:
        yield document.get("text_config") or document, lambda: file.write_text(json.dumps(document), encoding="utf-8")
    finally:
        file.write_text(before, encoding="utf-8")


def _key(format: ExportFormat, modules: tuple[str, ...], source: ExportSource) -> str:
    """Everything that determines the result of a rehearsal, except the prompts."""
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


def _write_copy(source: ExportSource, folder: Path, *, keeps_layers: bool) -> bool:
    """Write the small copy as a transformers folder with the tokenizer of the model; False if none can be made."""
    import torch

    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.ml.inference.models.smaller_models import small_copy

    # The copy's random weights must not change the random state of the calling process.
    generator = torch.get_rng_state()
    try:
        with quiet_transformers():
            small = small_copy(source.base_path, keeps_vocabulary=True, keeps_layers=keeps_layers)
            if small is None:
                return False
            small.save_pretrained(str(folder))
    finally:
        torch.set_rng_state(generator)
    for name in _BESIDE:
        if (Path(source.base_path) / name).is_file():
            shutil.copyfile(Path(source.base_path) / name, folder / name)
    if (others := Path(source.base_path) / TEMPLATES_FOLDER).is_dir():
        shutil.copytree(others, folder / TEMPLATES_FOLDER)
    return True


def _fault(small: ExportSource, runtime: Runtime, num_tokens: int, *, names_cause: bool = False) -> str:
    """What the runtime makes of the small copy, where it is something else than what transformers does; else empty.

    The typical difference over the vocabulary at each position, as a share of the variation of likelihoods, and the
    median of these: a router that rounding changes affects some positions, a missing part nearly all. Only the last
    positions count, at most half of them and `_NUM_COMPARED`.
    """
    from luthier.ml.export.runtimes.transformers_runtime import TransformersModel

    own = TransformersModel(small.base_path)
    most = min(num_tokens, own.context_tokens, runtime.context_tokens or num_tokens)
    # At least the first half is context only: windows of the copy are shorter than that.
    start = max(most // 2, most - _NUM_COMPARED)
    vocabulary = own.log_probabilities([0], 0).shape[1]
    # From 3 on: the first ids are mostly special tokens, which some runtimes treat differently.
    ids = np.random.default_rng(0).integers(3, vocabulary, size=most).tolist()
    wanted, found = own.log_probabilities(ids, start), runtime.log_probabilities(ids, start)
    if found.shape != wanted.shape:
        return f"of a small copy of the model it knows {found.shape[1]} tokens where the model has {vocabulary}"
    share = _share(wanted, found)
    if share <= _MIN_SHARE:
        return ""
    with own.rounded():
        bound = _bound(_share(wanted, own.log_probabilities(ids, start)))
    if share <= bound:
        return ""
    lost = ""
    if names_cause:
        lost = _lost_switch(
            Path(small.base_path), lambda other: _share(other.log_probabilities(ids, start), found) <= bound
        )
    return (
        f"of a small copy of the model it computes something else: likelihoods differ by {100 * share:.2g}% of how "
        f"much they vary, where at most {100 * bound:.2g}% is rounding, "
        + (
            f"and it does what the model would do if {lost}"
            if lost
            else "so a part of the architecture is lost on the way"
        )
    )


def _bound(rounding: float) -> float:
    """How far a runtime may be from transformers, as a share of how much likelihoods vary.

    A runtime sums in another order, and no user of an export in 16 bits is harmed by less than what rounding the
    weights to 16 bits does. How far that takes a model depends on its depth, its routers and the position, so it is
    measured on the model itself.

    Args:
        rounding: How far the model is from itself with its weights rounded to float16.
    """
    return min(MAX_SHARE, max(_MIN_SHARE, _ROUNDINGS * rounding))


def _share(wanted: LogProbabilities, found: LogProbabilities) -> float:
    """The difference of likelihoods, as a share of their variation."""
    if not np.isfinite(found).all():
        return float("inf")
    # Centred by position: a constant added to all logits is not a difference.
    centred = [rows - rows.mean(axis=1, keepdims=True) for rows in (wanted, found)]
    gaps = np.sqrt(((centred[0] - centred[1]) ** 2).mean(axis=1))
    return float(np.median(gaps / np.maximum(centred[0].std(axis=1), 1e-12)))


def _lost_switch(base: Path, agrees: Callable[[TransformersModel], bool]) -> str:
    """The config switch of a copy that the runtime treats as set differently; empty if none explains the difference.

    Args:
        base: the folder of the copy; its config is changed temporarily and restored at the end.
        agrees: whether a model computes the same as the runtime.

    Returns:
        `alibi in config.json were false`.
    """
    from luthier.ml.export.runtimes.transformers_runtime import TransformersModel
    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.ml.inference.models.smaller_models import FAILURES

    with _changed_config(base) as (part, write):
        for name, holder, key in _switches(part):
            holder[key] = not holder[key]
            write()
            try:
                with quiet_transformers():
                    if agrees(TransformersModel(base)):
                        return f"{name} in config.json were {json.dumps(holder[key])}"
            except FAILURES:  # the weights do not fit without this entry
                pass
            holder[key] = not holder[key]
    return ""


def _switches(part: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any], str]]:
    """Boolean entries of a config: full name, holder, key; including nested ones (`rope_parameters`)."""
    found = []
    for key, value in part.items():
        if isinstance(value, bool):
            found.append((prefix + key, part, key))
        elif isinstance(value, dict):
            found += _switches(value, f"{prefix}{key}.")
    return found


def _last_line(error: LuthierError, scratch: Path) -> str:
    """The last message of a converter: the exception that ended it, without the path of the copy."""
    lines = [line.strip() for line in error.came.replace(f"{scratch}/", "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _refused(format: ExportFormat, source: ExportSource, why: str) -> RequestError:
    return RequestError(
        f"{source.base_name} cannot be exported as {format}: {why}",
        expected="an architecture that the converter and the runtime know as transformers does",
        do="export with --to merged, which vLLM and transformers serve, or install a newer converter",
    )
