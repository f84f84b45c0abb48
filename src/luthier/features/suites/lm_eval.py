"""Use case: tasks of EleutherAI's lm-evaluation-harness (extra `lm-eval`) on our systems, its numbers in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import sha256_document
from luthier.core.results.suite import LmEvalTask, TaskResult
from luthier.core.system.extras import require_extra
from luthier.core.text.counted import counted
from luthier.features.generation.shared_engine import SharedEngine
from luthier.features.models.resolve import Candidate
from luthier.features.suites.task_runs import Engines, Server, System
from luthier.platform.home.context import Context

_CAUTION = "Measured by the lm-evaluation-harness {version}; intervals are made of its standard errors."


def check_lm_eval(tasks: Sequence[LmEvalTask], systems: Sequence[System], *, folder: Path) -> None:
    """Raises RequestError where the harness is not installed, a task is unknown, or needs more than a server offers.

    NotFoundError: a task that it does not know.
    """
    # Looked for without importing it, which takes seconds.
    require_extra("lm-eval", f"task {tasks[0].name}")
    for task in tasks:
        loaded = _load(task.task, folder)
        servers = [system.name for system in systems if isinstance(system, Server)]
        # Its other kinds of tasks compare the likelihoods of given answers.
        if servers and loaded.OUTPUT_TYPE != "generate_until":
            raise RequestError(
                f"task {task.name} needs likelihoods ({loaded.OUTPUT_TYPE}), and {servers[0]} is a server, "
                "which reports none",
                expected="models on this machine for tasks that use likelihoods",
                do="leave the task out of the suite, or evaluate a base model or a run",
            )


def run_lm_eval(
    context: Context, engines: Engines, systems: Sequence[System], task: LmEvalTask, *, folder: Path, seed: int
) -> TaskResult:
    """One task of the harness on all systems; a path to its YAML file counts from `folder`.

    Args:
        context: The home.
        engines: Of the systems.
        systems: Models of this machine, or servers.
        task: The task and its number of examples.
        folder: Where paths to YAML files count from: the folder of the suite.
        seed: Of the examples in prompts, the same for every system.

    Raises:
        RequestError: The harness itself fails, or has no result.
        NotFoundError: A task that the harness cannot load.
        WorkError: An engine or a server gives no answer.
    """
    from importlib.metadata import version

    from luthier.ml.evaluation.foreign import Foreign, as_task_result

    found: list[Foreign] = []
    truncated: list[str] = []
    for system in systems:
        model = _model_of(context, engines, system)
        answer = evaluate_by_harness(model, task, folder, seed)
        found.append(
            Foreign(
                name=system.name,
                model=system.address if isinstance(system, Server) else system.model_name,
                adapter=None if isinstance(system, Server) else system.adapter_path,
                num_few_shot=task.few_shot,
                answer=answer,
            )
        )
        if model.num_truncated:
            truncated.append(
                f"{counted(model.num_truncated, 'request was', 'requests were')} cut to fit into the context of "
                f"{system.name}."
            )
    return as_task_result(
        task.name,
        found,
        primary=task.primary,
        file=task.task,
        sha256=sha256_document([one["doc_hash"] for one in found[0].samples]),
        seed=seed,
        cautions=(_CAUTION.format(version=version("lm_eval")), *truncated),
    )


def _model_of(context: Context, engines: Engines, system: System) -> Any:
    from luthier.ml.inference.lm_eval_model import DEFAULT_NEW_TOKENS, LmEvalModel

    engine = engines.of(system)
    # A server cuts by itself; the harness needs a number.
    tokenizer, room = None, 2**31
    if isinstance(system, Candidate):
        assert isinstance(engine, SharedEngine)
        tokenizer, room = engine.template.tokenizer, system.context_length_tokens
    return LmEvalModel(
        engine,
        tokenizer,
        context_length_tokens=room,
        progress=context.progress,
        max_new_tokens=DEFAULT_NEW_TOKENS,
    )


def evaluate_by_harness(model: Any, task: LmEvalTask, folder: Path, seed: int) -> dict[str, Any]:
    """The harness's own document of a task.

    Args:
        model: A model of the harness (`lm_eval.api.model.LM`).
        task: The task and its number of examples.
        folder: Where a path to a YAML file counts from.
        seed: Of the examples in prompts.

    Raises:
        RequestError: The harness fails.
    """
    # not `simple_evaluate`: it lists all packages of the machine after every task, which takes longer than small tasks
    from lm_eval.evaluator import evaluate

    loaded = _load(task.task, folder)
    # A task keeps its own number of examples where the suite sets none.
    if task.few_shot or loaded.get_config("num_fewshot") is None:
        loaded.set_config(key="num_fewshot", value=task.few_shot)
    # The harness draws the examples of a prompt by this seed: every system sees the same ones.
    loaded.set_fewshot_seed(seed=seed)
    name = loaded.task_name
    try:
        with _quiet(), _offline_from(folder):
            found: dict[str, Any] | None = evaluate(
                lm=model,
                task_dict={"tasks": {name: loaded}, "groups": {}, "group_map": {}},
                limit=task.most_rows,
                bootstrap_iters=1000,
                verbosity="ERROR",
            )
    # The harness has no error classes; these are what its tasks raise.
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise RequestError(
            f"task {task.name}: the lm-evaluation-harness failed: {type(error).__name__}: {error}",
            expected="a task that it can run",
            do="run it with lm_eval itself to see more",
        ) from error
    if not found:
        raise RequestError(f"task {task.name} has no result", expected="figures", do="run it with lm_eval itself")
    return found


def _load(name: str, folder: Path) -> Any:
    """A new task object of the harness for each call, since the object keeps state."""
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and not (folder / name).is_file():
        raise NotFoundError(f"no task file {folder / name}", expected="a YAML file of the harness", do="check the path")
    try:
        with _quiet(), _offline_from(folder):
            loaded = _manager(not is_file).load([str(folder / name) if is_file else name])["tasks"]
    except (KeyError, ValueError, TypeError, FileNotFoundError, ConnectionError) as error:
        raise NotFoundError(
            f"the lm-evaluation-harness cannot load {name!r}: {error}",
            expected="the name of one of its tasks (its data is fetched), or a YAML file with data next to it",
            do="list them with: lm_eval ls tasks",
        ) from error
    if len(loaded) != 1:
        raise RequestError(
            f"{name!r} is a group of {len(loaded)} tasks",
            expected="one task",
            do=f"name them individually: {', '.join(list(loaded)[:8])}",
        )
    return next(iter(loaded.values()))


def files_named_in(path: Path, folder: Path) -> dict[str, Path]:
    """The files that a task file of the harness names, by their names in it: data, functions, and what it includes.

    Args:
        path: The task file.
        folder: The folder of the suite, which paths of data count from.
    """
    import yaml

    found: dict[str, Path] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        try:
            # Composed and not loaded, since only the harness knows its tag for functions.
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the harness says what is wrong with it
        for keys, tag, value in _scalars(root, ()):
            if tag == "!function":
                found[value] = file.parent / f"{value.rpartition('.')[0]}.py"
            elif "dataset_kwargs" in keys:
                found |= _data_of(folder, value)
            elif keys[:1] == ("include",) and value not in found:
                found[value] = file.parent / value
                waiting.append(found[value])
    return {name: one for name, one in found.items() if one.exists()}


def _scalars(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """All plain values of a YAML document: the keys that lead to each, its tag, and its text."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*keys, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _scalars(one, keys)
    elif isinstance(node, yaml.ScalarNode):
        yield keys, str(node.tag), str(node.value)


def _data_of(folder: Path, name: str) -> dict[str, Path]:
    try:
        if any(sign in name for sign in "*?[") and not Path(name).is_absolute():
            return {one.relative_to(folder).as_posix(): one for one in folder.glob(name)}
        return {name: folder / name} if name and (folder / name).exists() else {}
    except (OSError, ValueError):  # text that can be no path
        return {}


@lru_cache(maxsize=2)
def _manager(with_defaults: bool) -> Any:
    """Its table of tasks; reading all of them takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_defaults)


@contextmanager
def _offline_from(folder: Path) -> Iterator[None]:
    """The harness takes paths of data in task files from the working directory: that is the suite's for so long."""
    before = Path.cwd()
    # Of the whole process: nothing else may use relative paths meanwhile.
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's own log and bars: progress is ours."""
    import logging
    import warnings

    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
