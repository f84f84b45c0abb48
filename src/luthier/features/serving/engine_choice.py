"""Use case: serve a model by the fastest engine that is proved to answer as the model's own files do.

On a machine without a GPU a base and the LoRA adapters over it may be served as GGUF by llama.cpp. The files are made
once, in the cache of the home, proved against the model and timed beside it (`ml/export/serving_copy.py`). What
llama.cpp does otherwise than the engine transformers goes to that engine (`Served.fallback`). Where each of both is the
faster one at some load, and memory holds both, the load of the moment decides (`engine_balance.py`). Whatever speaks
against a copy leaves the model with its own engine, and the reason is shown.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import run_child
from luthier.core.engine_rates import NUM_MANY, EngineRates, EngineSpeed, rates_for
from luthier.core.errors import ConflictError, LuthierError, RequestError, StorageFullError, WorkError
from luthier.core.ids import sha256_document
from luthier.core.records.export import ExportSource
from luthier.core.stream import Served
from luthier.core.system.extras import install_command
from luthier.core.system.files import file_lock, scratch_folder
from luthier.core.system.gpu_device import has_gpu
from luthier.core.system.process_setup import num_usable_cores, usable_threads, wait_longer
from luthier.core.task_head import is_task_model
from luthier.core.text.counted import counted
from luthier.features.serving.engine_process import split
from luthier.features.serving.memory_budget import host_bytes, weight_bytes
from luthier.features.serving.model_facts import settled_template
from luthier.features.serving.targets import stamp, stamp_of
from luthier.ml.export.serving_copy import (
    ADAPTER,
    MODEL,
    REPORT,
    CopyQuantization,
    ServingCopy,
    read_copy,
    remove_unused,
)
from luthier.ml.inference.models.weights import packed_weights
from luthier.platform.home.context import Context

_PACKAGES: Final = {"xllamacpp": "xllamacpp", "llama_cpp_py_sync": "llama-cpp-py-sync"}
_FORMAT: Final = 2
"""Of what lies in the cache, and of the rules by which it was proved; another number makes everything again."""
_LOCK_SECONDS: Final = 3600.0
_RETRY_SECONDS: Final = 86_400.0
_WORK: Final = "luthier.ml.export.serving_copy"


@dataclass(frozen=True, slots=True)
class EngineDecision:
    """How a model is served, and why so.

    Attributes:
        served: The model as it is loaded.
        reason: Why by this engine, as a phrase.
    """

    served: Served
    reason: str


@dataclass(frozen=True, slots=True)
class _Copies:
    """The files that are served in the place of a model.

    Attributes:
        folder: Of the base.
        base: What is known of it.
        adapter_folder: Of the adapter; None for a model without one.
        adapter: What is known of that.
    """

    folder: Path
    base: ServingCopy
    adapter_folder: Path | None = None
    adapter: ServingCopy | None = None

    @property
    def proof(self) -> str:
        """What the proofs have shown."""
        return self.base.proof if self.adapter is None else f"{self.base.proof}; its adapter {self.adapter.proof}"

    def of(self, served: Served, rates: tuple[EngineRates, ...] = ()) -> Served:
        """The model with these files in the place of its own; rates: where the load decides which of both answers."""
        adapter = None if self.adapter_folder is None else str(self.adapter_folder / ADAPTER)
        return Served(
            engine="llama_cpp",
            path=str(self.folder / MODEL),
            sha256=self.folder.name,
            adapter_path=adapter,
            template=settled_template(served.path, served.template),
            template_options=served.template_options,
            opted_turns=served.opted_turns,
            fallback=served,
            hands_over=self.base.hands_over,
            rates=rates,
        )


def choose_engines(context: Context, models: Mapping[str, Served], *, must: bool = False) -> dict[str, EngineDecision]:
    """How each model is served: copies are made where there are none yet, which takes minutes for a large model.

    Args:
        context: The home.
        models: Models by name, as `loaded.choose_models` finds them.
        must: Whether llama.cpp was asked for: then no engine is timed, and what speaks against a copy is an error.

    Raises:
        RequestError: With `must`, a model that llama.cpp cannot serve in the place of its own files.
    """
    found = {name: _find_copies(context, name, served, "again" if must else "yes") for name, served in models.items()}
    refused = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if must:
        for name, reason in refused.items():
            if models[name].engine != "llama_cpp":
                raise refused_copy(name, reason)
    copies = {name: one for name, one in found.items() if isinstance(one, _Copies)}
    timed = {} if must else _timed(context, models, copies)
    decisions = {}
    for name, served in models.items():
        if (one := copies.get(name)) is None:
            decisions[name] = EngineDecision(served, refused[name])
        elif must:
            decisions[name] = EngineDecision(one.of(served), f"proved: {one.proof}")
        elif isinstance(rates := timed[name], str):
            decisions[name] = EngineDecision(served, rates)
        else:
            decisions[name] = _decide(context, served, one, rates)
    return decisions


def refused_copy(name: str, reason: str) -> RequestError:
    """What is said where llama.cpp was asked for a model that it cannot serve."""
    return RequestError(
        f"the engine llama_cpp for {name}, which is not a GGUF file: {reason}",
        expected="a model of which a proved GGUF file can be made, or a GGUF file",
        do=f"leave --engine out, or create the file yourself: luthier export {name} --to gguf -o DIR",
    )


def known_copy(context: Context, served: Served) -> Served | None:
    """The copy of a model that `choose_engines` has made and found faster at some load; None where there is none.

    Loads nothing.
    """
    # Looked up for each request: most homes have none at all.
    if served.engine != "transformers" or not context.settings.serving_copies_folder.is_dir():
        return None
    found = _find_copies(context, served.path, served, "no")
    if not isinstance(found, _Copies):
        return None
    if not (rates := _read_rates(found.folder)):
        return None
    decided = _decide(context, served, found, rates).served
    return None if decided == served else decided


Make = Literal["no", "yes", "again"]
"""Whether copies are made that are not there; `again`: also those that have failed in the last day."""


def _find_copies(context: Context, name: str, served: Served, make: Make) -> _Copies | str:
    """The proved files for a model, or why there are none."""
    if (reason := _why_not_tried(served)) is not None:
        return reason
    folder = context.settings.serving_copies_folder / _folder_name(served, context.settings.serving_quantization)
    base = _copy(context, name, served, folder, make)
    if isinstance(base, str) or base.why_not is not None:
        return base if isinstance(base, str) else str(base.why_not)
    if base.memory_bytes > (budget := host_bytes(context.settings.serving_memory_bytes)):
        return (
            f"llama.cpp takes {base.memory_bytes / 1e9:.1f} GB for it with keys and values of its context, and models "
            f"may take {budget / 1e9:.1f} (LUTHIER_SERVING_MEMORY_BYTES)"
        )
    if served.adapter_path is None:
        return _Copies(folder, base)
    own = folder / "adapters" / adapter_key(served.adapter_path)
    adapter = _copy(context, name, served, own, make, base=folder)
    if isinstance(adapter, str) or adapter.why_not is not None:
        return adapter if isinstance(adapter, str) else str(adapter.why_not)
    return _Copies(folder, base, own, adapter)


def _copy(
    context: Context, name: str, served: Served, folder: Path, make: Make, *, base: Path | None = None
) -> ServingCopy | str:
    """What is known of the copy in a folder, which is made where it is not there; or why it cannot be made now.

    What a model itself has against a copy is in its report. What passes (no network, no room, no memory) is kept for a
    day, so that no start waits for the same failure.
    """
    # A report is written last, into a folder that is renamed whole: what can be read is complete.
    if (known := read_copy(folder)) is not None:
        return known
    failed = folder.with_name(f"{folder.name}.failed")
    if make == "no":
        return "no GGUF copy was made yet"
    if make == "yes" and failed.is_file() and time.time() - failed.stat().st_mtime < _RETRY_SECONDS:
        return f"{failed.read_text(encoding='utf-8')} (tried again after a day, or once {failed} is deleted)"
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _make(context, name, served, folder, base)
    except ConflictError as error:  # another process is at it
        return error.came
    except (LuthierError, OSError, MemoryError) as error:
        # The model is served without a copy, and the reason is shown.
        reason = error.came if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
        failed.write_text(reason, encoding="utf-8")
        return reason


def _why_not_tried(served: Served) -> str | None:
    """Why a model is served as it is without anything being made; None where a copy is worth making."""
    if served.engine == "llama_cpp":
        return "it is a GGUF file"
    if served.engine == "vllm" and (packed := packed_weights(Path(served.path))) is not None:
        return f"its weights are packed ({packed.phrase})"
    if served.engine != "transformers":
        return f"the engine {served.engine} was chosen for it"
    if is_task_model(served.adapter_path or served.path):
        return "it has a task head"
    if has_gpu():
        return "there is a GPU"
    if missing := [distribution for module, distribution in _PACKAGES.items() if find_spec(module) is None]:
        return f"{' and '.join(missing)} not installed: {install_command('gguf')} for llama.cpp"
    if served.quantisation is not None:
        return f"it was trained over a base packed in {served.quantisation}"
    if served.adapter_path is not None:
        from luthier.ml.inference.low_rank import why_not_shared

        return why_not_shared(served.adapter_path)
    return None


def _folder_name(served: Served, quantization: CopyQuantization) -> str:
    """By all that decides what lies in the folder of a base: its weights, its template, what makes and runs it."""
    weights = served.sha256 or stamp(Path(served.path))
    template = settled_template(served.path, served.template)
    readable = re.sub(r"[^a-z0-9.]+", "-", Path(served.path).name.lower()).strip("-")[:40]
    return f"{readable or 'model'}-{sha256_document([_FORMAT, weights, template, quantization, *_versions()])[:16]}"


@cache
def _versions() -> tuple[str, ...]:
    return tuple(importlib.metadata.version(name) for name in _PACKAGES.values())


def adapter_key(adapter_path: str) -> str:
    """The name of the folder that holds the copy of an adapter, as its files are now."""
    folder = Path(adapter_path)
    files = [file for file in (folder / "adapter_model.safetensors", folder / "adapter_config.json") if file.is_file()]
    return sha256_document([str(folder), stamp_of(files)])[:16]


def _make(context: Context, name: str, served: Served, folder: Path, base: Path | None) -> ServingCopy:
    """Have a copy made by a child process; another process that makes the same one is waited for."""
    what = f"the GGUF copy of {name}"
    with file_lock(folder.with_name(f"{folder.name}.lock"), what=what, timeout_seconds=_LOCK_SECONDS):
        # Again, now behind the lock: the process that held it may have made this very copy.
        if (made := read_copy(folder)) is not None:
            return made
        source = _source(served, with_adapter=base is not None)
        if base is None:
            _check_room(folder.parent, source)
        with scratch_folder(folder.parent, f".{folder.name}-") as scratch:
            document = {
                "source": source.model_dump(mode="json"),
                "target": str(scratch),
                "tools": str(context.settings.tools_folder),
                "base": str(base),
                "quantization": context.settings.serving_quantization,
            }
            function, title = f"{_WORK}:{'make_base' if base is None else 'make_adapter'}", f"Creating {what}"
            with context.progress.task(title, None, "") as task:
                found = ServingCopy.model_validate(run_child(function, document, title=title, on_event=task.note))
            for left in () if found.why_not is None else list(scratch.iterdir()):
                # Nothing of a file that failed its proof is kept.
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            (scratch / REPORT).write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # without a report that can be read: an unfinished one
            # Atomic, on one file system: the scratch folder lies beside the target.
            scratch.rename(folder)
    if removed := remove_unused(context.settings.serving_copies_folder):
        title = f"{counted(len(removed), 'GGUF copy', 'GGUF copies')} removed, not used for 90 days"
        with context.progress.task(title, None, ""):
            pass
    return found


def _source(served: Served, *, with_adapter: bool) -> ExportSource:
    """The model as a proof takes it.

    Without the options that it was trained with: they change prompts, which come from the same template on both sides.
    """
    name = Path(served.path).name
    return ExportSource(
        name=name,
        run_id=None,
        base_name=name,
        base_path=served.path,
        base_sha256=served.sha256,
        adapter_path=served.adapter_path if with_adapter else None,
        template=settled_template(served.path, served.template),
        precision=served.precision or "float32",  # which the proof runs in whatever is said here
    )


def _check_room(parent: Path, source: ExportSource) -> None:
    """Raises StorageFullError or WorkError where disk or memory is too small: before the work, which takes minutes."""
    from luthier.core.system.machine_memory import memory_bytes
    from luthier.ml.export.exporters.registry import needed_bytes
    from luthier.ml.inference.models.structure import read_json
    from luthier.ml.inference.models.weights import count_parameters

    num = count_parameters(Path(source.base_path), read_json(Path(source.base_path) / "config.json"))
    needed, free = needed_bytes("gguf", "float16", num), shutil.disk_usage(parent).free
    if needed > free:
        raise StorageFullError(
            f"a GGUF copy takes {needed / 1e9:.1f} GB of the disk while it is made, and {free / 1e9:.1f} are free",
            expected=f"room below {parent}",
            do="free some, or serve with --engine transformers",
        )
    # The proof holds the model in float32, four bytes a weight, beside the file that llama.cpp maps.
    if (wanted := 5 * num) > (memory := memory_bytes()[0]):
        raise WorkError(
            f"its proof takes {wanted / 1e9:.1f} GB of memory, and there are {memory / 1e9:.1f}",
            expected="four bytes a weight, and some more",
            do="serve with --engine transformers, or export it on a larger machine",
        )


def _decide(context: Context, served: Served, copies: _Copies, rates: tuple[EngineRates, ...]) -> EngineDecision:
    """By what was timed: the copy, the model's own files, or both where the load decides and memory holds them."""
    proved = f"proved: {copies.proof}"
    winners = {one.winner for one in rates}
    shown = rates_for(rates, 1 if served.adapter_path is None else max(one.num_variants for one in rates))
    assert shown is not None  # `_timed` and `known_copy` come with some
    if winners == {"engine"}:
        return EngineDecision(copies.of(served), proved)
    if winners == {"fallback"}:
        return EngineDecision(served, f"llama.cpp is proved, too, and slower here: {_figures(shown)}")
    num_bytes = _bytes_of_both(served, copies, rates)
    if num_bytes <= (budget := host_bytes(context.settings.serving_memory_bytes)):
        return EngineDecision(copies.of(served, rates), f"{proved}; {by_load(shown)}")
    expected = context.settings.serving_expected_answers
    is_copy = not shown.takes_fallback(expected) if expected else shown.engine.is_faster_than(shown.fallback)
    why = f"for {expected:,} answers at once" if expected else "for few and many answers at once together"
    reason = (
        f"one engine, since both take {num_bytes / 1e9:.1f} GB and models may take {budget / 1e9:.1f} "
        f"(LUTHIER_SERVING_MEMORY_BYTES); the better one {why} (LUTHIER_SERVING_EXPECTED_ANSWERS): {_figures(shown)}"
    )
    return EngineDecision(copies.of(served), f"{proved}; {reason}") if is_copy else EngineDecision(served, reason)


def by_load(rates: EngineRates) -> str:
    """Which engine answers at which load, and the figures, as a phrase."""
    first, then = ("transformers", "llama_cpp") if rates.takes_fallback(1) else ("llama_cpp", "transformers")
    at = rates.switch_at
    loads = f"{first} at any load" if at is None else f"{first} up to {at - 1}, {then} from {at} answers on"
    return f"by load, {loads}: {_figures(rates)}"


def _figures(rates: EngineRates) -> str:
    copy, own = rates.engine, rates.fallback
    if copy.many is None or own.many is None:
        return (
            f"{copy.alone:.1f} and {copy.crowd:.1f} new tokens/s with 1 and {copy.num_crowd:,} answers at once, "
            f"against {own.alone:.1f} and {own.crowd:.1f}"
        )
    return (
        f"{copy.alone:.1f}, {copy.crowd:.1f} and {copy.many:.1f} new tokens/s with 1, {copy.num_crowd:,} and "
        f"{NUM_MANY} answers at once, against {own.alone:.1f}, {own.crowd:.1f} and {own.many:.1f}"
    )


def _bytes_of_both(served: Served, copies: _Copies, rates: tuple[EngineRates, ...]) -> int:
    """Memory of both engines, as measured when they were timed; what was not is estimated by the files."""
    copy = max(copies.base.memory_bytes, *(one.engine.num_bytes for one in rates))
    own = max(one.fallback.num_bytes for one in rates)
    return copy + (own or weight_bytes(served.path) + weight_bytes(served.adapter_path))


def _timed(
    context: Context, models: Mapping[str, Served], copies: Mapping[str, _Copies]
) -> dict[str, tuple[EngineRates, ...] | str]:
    """How fast both engines of each model are; or why they could not be timed."""
    found: dict[str, tuple[EngineRates, ...] | str] = {}
    for folder in {one.folder for one in copies.values()}:
        names = [name for name, one in copies.items() if one.folder == folder]
        try:
            pairs = [(models[name], copies[name].of(models[name])) for name in names]
            if sum(own.adapter_path is not None for own, _ in pairs) > 1:
                # Requests for one model alone know other rates than those for many adapters in turn.
                _time_once(context, folder, [one for one in pairs if one[0].adapter_path is None] or pairs[:1])
            _time_once(context, folder, pairs)
            found |= dict.fromkeys(names, _read_rates(folder))
        except (LuthierError, OSError, MemoryError) as error:
            reason = f"llama.cpp could not be timed: {error.came if isinstance(error, LuthierError) else error}"
            found |= dict.fromkeys(names, reason)
    return found


def _time_once(context: Context, folder: Path, pairs: list[tuple[Served, Served]]) -> None:
    """Time a base and its adapters by their own files and by their copies, once for a machine and its versions."""
    num_adapters = sum(own.adapter_path is not None for own, _ in pairs)
    threads, cores = context.settings.serving_threads, num_usable_cores()
    # Adapters are answered together by one engine and in turn by the other, so that their number decides, too.
    key = sha256_document([_machine(), cores, threads, num_adapters])[:16]
    place = folder / f"speed-{key}.json"
    known = _read_timing(place)
    # Earlier versions timed neither many answers at once nor llama.cpp at its full speed: it is done again.
    if known is not None and known.engine.many is not None:
        return
    document = {
        "own": [own.model_dump(mode="json") for own, _ in pairs],
        "copy": [copy.model_dump(mode="json") for _, copy in pairs],
        "num_threads": threads or usable_threads(),
        "rates_folder": str(context.settings.rates_folder),
    }
    title = f"Timing engines for {folder.name}"
    # llama.cpp takes its number of threads from there, as in the process that serves.
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else None
    with context.progress.task(title, None, "") as task:
        made = run_child(f"{__name__}:time_engines", document, title=title, on_event=task.note, environment=environment)
    kept = made | {"machine": _machine(), "num_variants": max(1, num_adapters)}
    place.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


@cache
def _machine() -> list[str]:
    """What speeds hold for: this machine, its processor and threads, and the versions of what computes."""
    from luthier.ml.planning.hardware import cpu_name

    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return [platform.node(), cpu_name(), f"{usable_threads()} threads", *versions, *_versions()]


def time_engines(document: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """In a child process: how fast models are answered by their own files and by their copies, one after the other.

    Args:
        document: `own` and `copy` (`Served` of one base and its adapters), `num_threads` of torch, `rates_folder`.
        channel: Gets the titles of what is being done.

    Returns:
        `own` and `copy`: `EngineSpeed` as JSON.
    """
    from luthier.ml.export.serving_copy import time_engine
    from luthier.platform.home.hardware_benchmark import hardware_in

    wait_longer()  # as the process that serves
    precision = hardware_in(Path(document["rates_folder"])).precision
    found = {}
    for side in ("own", "copy"):
        models = [split(Served.model_validate(one), lambda: precision) for one in document[side]]
        channel.emit(models[0][0].engine)
        adapters = [path for _, path in models if path is not None]
        speed = time_engine(models[0][0], adapters, num_threads=document["num_threads"])
        found[side] = speed.model_dump(mode="json")
    return found


def _read_rates(folder: Path) -> tuple[EngineRates, ...]:
    """What was timed on this machine, by number of variants."""
    read = (_read_timing(file) for file in sorted(folder.glob("speed-*.json")))
    found = [one for one in read if one is not None]
    # Files of earlier versions, of another number of adapters, timed llama.cpp at half its speed.
    newer = [one for one in found if one.engine.many is not None]
    return tuple(sorted(newer or found, key=lambda one: one.num_variants))


def _read_timing(place: Path) -> EngineRates | None:
    """One timing; None where there is none, or another machine's, or none that can be read: it is made again."""
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
        # Files of earlier versions do not name their machine.
        if document.get("machine", _machine()) != _machine():
            return None
        return EngineRates(
            num_variants=document.get("num_variants", 1),
            engine=EngineSpeed.model_validate(document["copy"]),
            fallback=EngineSpeed.model_validate(document["own"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
