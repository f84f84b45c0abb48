"""The export of a small copy before that of the model itself, so that what cannot be exported is refused at once.

A list of architectures says what a converter has a name for, not what it does with it: some are on the list and fail
on the shapes of their weights, others are converted without a part that the format or the runtime has no place for. So
converter and runtime are asked: a copy of the architecture with few layers, narrow ones, and the model's own tokenizer
is written in the format in float32, opened in the runtime, and read by both sides. Weights are random, and a part that
is missing shows in what every token is given; rounding does not. The tokens of the prompts that the export will be
proved on, and the token that ends an answer, are compared there too: they depend on template and tokenizer alone.

A copy with few layers is tried first. Some runtimes read off the number of layers what a model is (llama.cpp does so of
Gemma 2 and 3, EXAONE 4 and Command R), so what fails is tried again with as many layers as the model has. Where the
runtime is right as far as the shortest window of the copy reaches, and wrong behind it, it leaves windows out: the
export then has room for as many tokens as the model's own window, within which windows hide nothing. What differs with
the distance alone (rotary frequencies) hardly shows among the first tokens, so a long text is read at last.
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
    *,
    limits_context: bool = False,
) -> int | None:
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
        limits_context: Whether the writer can state a shorter context (`ExportSource.context_tokens`).

    Returns:
        The most tokens for which the runtime is right; None for all that the model has room for.

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
    """The context that was found when a model was tried."""
    text = mark.read_text(encoding="ascii")
    return int(text) if text else None


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


@dataclass(frozen=True, slots=True)
class _Found:
    """What came of a trial: the reason against the export, empty for none, and what raised it."""

    tokens: TokenFindings
    fault: str = ""
    error: LuthierError | None = None
    context_tokens: int | None = None
    has_fewer_layers: bool = False


@dataclass(frozen=True, slots=True)
class _Trial:
    """One export to be tried. is_known: what it computes was compared before, only prompts were not."""

    format: ExportFormat
    write: Callable[..., Any]
    source: ExportSource
    tools: Path
    prompts: SourcePrompts | None
    limits_context: bool
    is_known: bool

    def run(self, *, keeps_layers: bool = False) -> _Found | None:
        """Try a small copy; None where none can be made."""
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
        """The reason against the export, empty for none, and the most tokens for which the runtime is right."""
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
    """How many tokens the layers with the shortest window see; None where no window is shorter than the context."""
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


def _write_copy(source: ExportSource, folder: Path, *, keeps_layers: bool) -> bool:
    """The small copy as a transformers folder with the tokenizer of the model; False where none can be made."""
    import torch

    from luthier.ml.inference.models.quiet import quiet_transformers
    from luthier.ml.inference.models.smaller_models import small_copy

    # The copy's random weights must not move the random numbers of the process that asks.
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
    if (others := Path(source.base_path) / _OTHER_TEMPLATES).is_dir():
        shutil.copytree(others, folder / _OTHER_TEMPLATES)
    return True


def _fault(small: ExportSource, runtime: Runtime, num_tokens: int, *, names_cause: bool = False) -> str:
    """What the runtime makes of the small copy, where it is something else than what transformers does; else empty.

    Of each position the typical difference over the vocabulary, as a share of how much likelihoods vary, and of these
    the median: a router that rounding sends another way changes some positions, a part that is missing changes nearly
    all. Only the last positions count, at most half of them and `_NUM_COMPARED`.
    """
    from luthier.ml.export.runtimes.transformers_runtime import TransformersModel

    own = TransformersModel(small.base_path)
    most = min(num_tokens, own.context_tokens, runtime.context_tokens or num_tokens)
    # The first half at least is context only: windows of the copy are shorter than that.
    start = max(most // 2, most - _NUM_COMPARED)
    vocabulary = own.log_probabilities([0], 0).shape[1]
    # From 3 on: the first ids are mostly special tokens, which some runtimes treat apart.
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
    """How much likelihoods differ, as a share of how much they vary."""
    if not np.isfinite(found).all():
        return float("inf")
    # Centred by position: a constant added to all logits is no difference.
    centred = [rows - rows.mean(axis=1, keepdims=True) for rows in (wanted, found)]
    gaps = np.sqrt(((centred[0] - centred[1]) ** 2).mean(axis=1))
    return float(np.median(gaps / np.maximum(centred[0].std(axis=1), 1e-12)))


def _lost_switch(base: Path, agrees: Callable[[TransformersModel], bool]) -> str:
    """The switch of a copy's config that the runtime takes to be set otherwise; empty where none explains it.

    Args:
        base: the folder of the copy; its config is changed on the way and is as before at the end.
        agrees: whether a model computes what the runtime has computed.

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
            except FAILURES:  # the weights do not fit without it
                pass
            holder[key] = not holder[key]
    return ""


def _switches(part: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any], str]]:
    """Entries of a config that are true or false: full name, holder, key; nested ones (`rope_parameters`) included."""
    found = []
    for key, value in part.items():
        if isinstance(value, bool):
            found.append((prefix + key, part, key))
        elif isinstance(value, dict):
            found += _switches(value, f"{prefix}{key}.")
    return found


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
