"""Use case: resolve the models that a command names, each with its engine.

    any name that `features/models/names.py` knows
    a GGUF file with an adapter for it, joined by a plus: BASE.gguf+ADAPTER (a file, or its folder)

A base model that is not on this machine is pulled, since a local user requested it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.stream import Served
from luthier.core.system.extras import command_for
from luthier.core.system.files import expanded
from luthier.core.system.gpu_device import has_nvidia_gpu
from luthier.core.task_head import what_it_gives
from luthier.features.models.names import find_model
from luthier.features.serving.engine_choice import choose_engines
from luthier.features.serving.models import head_of
from luthier.features.serving.targets import (
    check_export,
    local_base_models,
    served_export,
    served_target,
    stamp_of,
)
from luthier.ml.inference.models.weights import packed_weights
from luthier.platform.home.context import Context

EngineChoice = Literal["auto", "transformers", "llama_cpp", "vllm"]

_ALIAS: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)", re.ASCII)
_PLUS: Final = ".gguf+"
_INSTALLED_BY: Final = {
    "llama_cpp": ("xllamacpp", "luthier[gguf]", ""),
    "vllm": ("vllm", "vllm", ", or name the command of another environment: LUTHIER_VLLM_COMMAND"),
}


def choose_models(context: Context, names: Sequence[str], engine: EngineChoice = "auto") -> dict[str, Served]:
    """The models by the name used in requests: its own, the last part of a path, or NAME of `NAME=MODEL`.

    Args:
        context: The home.
        names: Models as a command names them.
        engine: The engine that runs them; `auto` chooses by format and machine.

    Raises:
        RequestError: a name is given twice, or the engine cannot run a model or is not installed.
        NotFoundError: there is no such model, run or adapter.
        ConflictError: a run has no result, or an export is damaged or unverified.
        ModelSourceError: A base model could not be fetched.
    """
    found: dict[str, Served] = {}
    for text in names:
        name, model = _named(text)
        if name in found:
            raise RequestError(
                f"two models by the name {name!r}", expected="a name for each", do=f"name it: other={model}"
            )
        found[name] = choose_model(context, model, engine)
    return found


def show_deployment_note(context: Context, name: str) -> None:
    """Say on stderr which target of a deployment a command takes; nothing for other names and for addresses.

    Raises:
        NotFoundError: No such model.
    """
    from luthier.platform.cli.console import stderr_console, visible

    if "://" not in name and (note := find_model(context, name).note):
        stderr_console().print(visible(note), soft_wrap=True)


def choose_model(context: Context, name: str, engine: EngineChoice = "auto") -> Served:
    """One model by its name, with the engine that runs it.

    Raises:
        RequestError: The engine cannot run the model, or is not installed.
        NotFoundError: there is no such model, run or adapter.
        ConflictError: a run has no result, or an export is damaged or unverified.
        ModelSourceError: A base model could not be fetched.
    """
    # Resolved before the engine is chosen: whether a model has a head or is a GGUF file shows in its files.
    served = _found(context, name, engine)
    is_gguf = served.path.endswith(".gguf")
    if (head := head_of(served)) is not None and engine in ("auto", "transformers"):
        return served
    if head is not None:
        raise RequestError(
            f"the engine {engine} for {name}, which gives {what_it_gives(head.kind)}",
            expected="transformers: other engines know nothing of its task head",
            do="leave --engine out",
        )
    packed = None if is_gguf else packed_weights(Path(served.path))
    # vLLM is the faster one on an NVIDIA GPU; everything else runs with transformers anywhere.
    own = "llama_cpp" if is_gguf else "vllm" if packed is not None or _can_vllm() else "transformers"
    chosen = own if engine == "auto" else engine
    if is_gguf and chosen != "llama_cpp":
        raise RequestError(
            f"the engine {chosen} for {name}, which is a GGUF file",
            expected="llama_cpp for GGUF files",
            do="leave --engine out",
        )
    if packed is not None and chosen != "vllm":
        raise RequestError(
            f"the engine {chosen} for {name}, whose weights are packed ({packed.phrase})",
            expected="vllm for packed weights",
            do="leave --engine out, or serve the model in 16 bits",
        )
    if packed is not None and packed.before_vllm:
        raise RequestError(
            f"the weights of {name} are packed ({packed.phrase}), which its config.json does not say",
            expected="a quantization_config in config.json, by which vLLM reads such weights",
            do=f"{packed.before_vllm}, or serve the model in 16 bits",
        )
    if chosen in _INSTALLED_BY and not _is_installed(chosen):
        package, requirement, otherwise = _INSTALLED_BY[chosen]
        need = "" if packed is None or engine != "auto" else f" for {name}, whose weights are packed ({packed.phrase}),"
        raise RequestError(
            f"the engine {chosen}{need} needs the package {package}, which is not installed",
            expected="this package in the environment of Luthier, or vLLM in its own",
            do=command_for(requirement) + otherwise,
        )
    if chosen == "llama_cpp" and not is_gguf:
        return choose_engines(context, {name: served}, must=True)[name].served
    return served.model_copy(update={"engine": chosen})


def _found(context: Context, name: str, engine: EngineChoice) -> Served:
    model = find_model(context, name)
    if model.run_id is not None:
        _pull_base(context, model.run_id)
        if (made := model.tuned) is not None:
            return served_target(context, Caller(project_id=made.project_id), made.model_id)
        # A command, which is in no project, takes runs of all.
        project_id = context.runs.project_of(model.run_id) or DEFAULT_PROJECT
        return served_target(context, Caller(project_id=project_id), model.name)
    # A folder that is named as one may hold more than the base model that was made from it: a bundle's plan.
    local = {one.name: one for one in local_base_models(context).values()} if "/" not in name else {}
    if (found := local.get(model.name)) is not None:
        return Served(path=found.path, sha256=found.sha256)
    base, adapter = _with_adapter(model.name)
    place = expanded(base)
    if place.suffix == ".gguf" and place.is_file() and (adapter or engine in ("auto", "llama_cpp")):
        digest = stamp_of([place])
        return Served(engine="llama_cpp", path=str(place.resolve()), sha256=digest, adapter_path=adapter)
    if place.is_dir():
        return _served_folder(context, place.resolve())
    return _pulled(context, model.name)


def _served_folder(context: Context, folder: Path) -> Served:
    """The model in a folder. One that is a base model of this home has that model's digest.

    Adapters name their base by its record. With another digest for the folder itself, both would be loaded, and copied
    as GGUF, twice.
    """
    from luthier.ml.inference.models import sources

    check_export(folder)
    served = served_export(context, folder)
    # Compared as resolved paths: one folder may be named in several ways.
    names = (one.name for one in sources.local_models(context.home) if Path(one.path).resolve() == folder)
    name = next(names, None) if served.path == str(folder) else None
    # None where its files have changed since they were registered: then it is another model.
    base = None if name is None else sources.find(name, context.home)
    return served if base is None else served.model_copy(update={"path": base.path, "sha256": base.sha256})


def _pulled(context: Context, name: str) -> Served:
    from luthier.ml.inference.models import sources

    model = sources.pull(name, context.home, context.progress)
    return Served(path=model.path, sha256=model.sha256)


def _pull_base(context: Context, run_id: str) -> None:
    """Fetch the base of a run if it is not on this machine; errors of the run are reported later."""
    try:
        name = context.runs.plan(run_id).base_model.name
    except NotFoundError:
        return
    _pulled(context, name)


def _with_adapter(name: str) -> tuple[str, str | None]:
    """`base.gguf+adapter` -> both; an existing path is never split. Raises NotFoundError if there is no adapter."""
    if expanded(name).exists() or _PLUS not in name:
        return name, None
    base, _, adapter = name.partition(_PLUS)
    place = expanded(adapter)
    if not place.exists():
        raise NotFoundError(
            f"the adapter {adapter!r} of {name!r} is not there",
            expected="a GGUF file, or the folder with the only one",
            do="make it: luthier export RUN --to adapter -o DIR",
        )
    return f"{base}.gguf", str(place.resolve())


def _named(text: str) -> tuple[str, str]:
    """`NAME=MODEL`, or a model by its own name; an existing path is never split at its equals sign."""
    is_path = expanded(text).exists()
    if not is_path and (match := _ALIAS.fullmatch(text)):
        return match[1], match[2]
    # For BASE.gguf+ADAPTER the adapter gives the name: several may share a base.
    path = expanded(text if is_path else text.rpartition(_PLUS)[2])
    is_path = is_path or _PLUS in text
    return (path.resolve().stem if path.suffix == ".gguf" else path.resolve().name) if is_path else text, text


def _can_vllm() -> bool:
    """Whether there is an NVIDIA GPU and vLLM, checked without loading torch."""
    return has_nvidia_gpu() and _is_installed("vllm")


def _is_installed(engine: str) -> bool:
    if engine != "vllm":
        return find_spec(_INSTALLED_BY[engine][0]) is not None
    from luthier.ml.inference.vllm.process import is_installed

    # It may be in its own environment.
    return is_installed()
