"""Use case: check whether a base model works here, part by part and with which path, before it is trained.

Everything is tried in a child process (`trials`): an error of any library, a process that the kernel kills for its
memory, or a template that never ends is a line of the table, not the end of the check.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from luthier.core.child_process.process import ChildEndedError, run_child
from luthier.core.errors import LuthierError, NotFoundError, RequestError, first_line
from luthier.core.frozen_model import FrozenModel
from luthier.core.ports import ProgressTask, StopCheck
from luthier.core.system.files import scratch_folder
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.base_model import LocalModel

CheckStatus = Literal["works", "refused", "wrong", "fault", "not_run"]
CHECKS: Final = (
    "template",
    "rows",
    "plan",
    "reach",
    "loss",
    "step",
    "text",
    "stream",
    "score",
)
"""Parts of a check, in their order. `rows` comes once for each kind of row: `rows: one turn`."""


class Check(FrozenModel):
    """One part of a check.

    Attributes:
        name: The part, such as `loss` or `rows: one turn`.
        status: `refused`: Luthier refuses, with a reason. `wrong`: not the result of the model's own forward pass.
            `fault`: an unexpected error. `not_run`: left out for time, or because an earlier part failed.
        path: The path that works.
        reason: Why it does not work.
        remedy: What to do about it.
        seconds: How long it took.
        measures: Figures that were found; each name says the unit or what it is a share of.
    """

    name: str
    status: CheckStatus
    path: str = ""
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0
    measures: dict[str, float] = Field(default_factory=dict)


class ModelCheck(FrozenModel):
    """All checks of one base model.

    Attributes:
        model: Its name.
        path: Its folder.
        architecture: The class of its configuration.
        num_parameters: All its parameters.
        context_length_tokens: Its longest sequence.
        layers: Which layers were computed with; `all` for small models.
        checks: The parts, in order.
    """

    model: str
    path: str
    architecture: str | None
    num_parameters: int
    context_length_tokens: int
    layers: str
    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether every part works."""
        return all(check.status == "works" for check in self.checks)


DEFAULT_SECONDS: Final = 600.0
_MAX_SHARE: Final = 0.4
"""Of the memory that is free, what one copy of the model in float32 may take; two of them are in memory together."""
_NUM_LAYERS: Final = 2
_TRIALS: Final = "luthier.features.model_checks.trials:check"
_LEFT: Final = ("plan", "reach", "loss", "step", "text", "stream", "score")


def check_model(
    context: Context,
    name: str,
    *,
    rows: Path | None = None,
    max_seconds: float = DEFAULT_SECONDS,
    stop_requested: StopCheck = lambda: None,
) -> ModelCheck:
    """Try a base model in all its parts; failures are reported, with the reason and what to do.

    Args:
        context: The home.
        name: A name of the catalogue, a folder, or what else `models pull` takes; it is pulled where it is not there.
        rows: A file of rows to try in place of one of each kind, in any shape that `luthier data preview` reads.
        max_seconds: Of all parts together; those that are left then are `not_run`.
        stop_requested: Asked several times a second while parts are tried; a reason ends the check.

    A model that is too large for the memory in float32 is tested with its first two layers, which is reported.

    Raises:
        RequestError: max_seconds is no time. NotFoundError: no such file of rows. What `models.sources.pull` raises.
        StoppedError: `stop_requested` has returned a reason.
    """
    if not max_seconds > 0:
        raise RequestError(f"max_seconds={max_seconds}", expected="more than 0", do="give it some minutes")
    if rows is not None and not rows.is_file():
        raise NotFoundError(f"{rows}: no such file", expected="a file of rows", do="check the path of --rows")
    from luthier.ml.inference.models import sources

    model = sources.pull(name, context.home, context.progress)
    path, layers, why_not = _computed_with(context, model)
    with scratch_folder(Path(tempfile.gettempdir()), "luthier-check-") as work:
        asked = {
            "path": path,
            "rows": None if rows is None else str(rows.absolute()),
            "work": str(work),
            # What does not fit into the memory is not loaded: the system might end other processes for it.
            "computes": why_not is None,
        }
        with context.progress.task("Checking the parts", len(CHECKS), "parts") as task:
            found = _tried(asked, max_seconds, stop_requested, task)
    if why_not is not None:
        # A child that has ended early has left them, too.
        found = [check for check in found if check.name not in _LEFT]
        found += [Check(name=part, status="not_run", reason=why_not) for part in _LEFT]
    return ModelCheck(
        model=model.name,
        path=str(model.path),
        architecture=model.architecture,
        num_parameters=model.num_parameters,
        context_length_tokens=model.context_length_tokens,
        layers=layers,
        checks=tuple(found),
    )


def _computed_with(context: Context, model: LocalModel) -> tuple[str, str, str | None]:
    """The folder to compute with, which layers are in it, and why nothing can be computed where that is so."""
    from luthier.core.system.machine_memory import memory_bytes
    from luthier.ml.inference.models import sources

    # 4 bytes a parameter in float32. The reference and the trained copy are in memory together, so less than a half.
    if 4 * model.num_parameters <= _MAX_SHARE * memory_bytes()[1]:
        return str(model.path), "all", None
    try:
        shallow = sources.pull(f"layers:{_NUM_LAYERS}@{model.name}", context.home, context.progress)
    except LuthierError as error:
        return str(model.path), "none", f"too large for the memory in float32, and {error.came}"
    return str(shallow.path), f"{_NUM_LAYERS} of them: the whole is too large for the memory in float32", None


def _tried(asked: dict[str, Any], max_seconds: float, stop_requested: StopCheck, task: ProgressTask) -> list[Check]:
    """The parts as the child sends them; then the one that it has died in, and those that are left."""
    found, under_way, begun = list[Check](), "template", list[str]()

    def note(event: dict[str, Any]) -> None:
        nonlocal under_way
        # The child announces a part before it runs. If it dies, the last announced part is the one that killed it.
        under_way = event.get("begins", "")
        # `rows: one turn` and `rows: tools` are one part.
        part = under_way.partition(":")[0]
        if part in CHECKS and part not in begun:
            begun.append(part)
            task.advance(int(len(begun) > 1))  # those before it are done
        if not under_way:
            found.append(Check.model_validate(event))

    try:
        # Nothing is fetched on the way: what is tried is the folder that a training would use.
        run_child(
            _TRIALS,
            asked,
            timeout_seconds=max_seconds,
            on_event=note,
            environment={"HF_HUB_OFFLINE": "1"},
            stop_requested=stop_requested,
        )
    except ChildEndedError as error:
        # A negative return code is the signal that ended the process: -9 is mostly the kernel's OOM killer.
        what = f"signal {-error.returncode}" if error.returncode < 0 else f"exit code {error.returncode}"
        last = "".join(error.log_lines[-1:])[:300]
        why, remedy = f"the process ended with {what}: {last}", "report it with this table"
        if error.is_late:
            why, remedy = f"not done after {max_seconds:.0f} s for all parts", "give it more with --max-seconds"
    except (LuthierError, OSError) as error:
        last = first_line(error)[:300]
        why, remedy = f"the process ended with {type(error).__name__}: {last}", "report it with this table"
    else:
        return found
    # `rows: one turn` and `rows: tools` are both the part `rows`.
    done = {check.name.partition(":")[0] for check in found}
    found.append(Check(name=under_way or "the check", status="fault", reason=why, remedy=remedy))
    left = [name for name in CHECKS if name not in done and name != under_way.partition(":")[0]]
    return found + [Check(name=name, status="not_run", reason="an earlier part has ended the process") for name in left]


def show_check(console: Console, found: ModelCheck) -> None:
    """What is known of the model, a line for each part, then what to do about those that do not work."""
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts, make_table, visible

    rows = [
        ("model", found.model),
        ("architecture", found.architecture or "-"),
        ("parameters", figures.count(found.num_parameters)),
        ("context", f"{found.context_length_tokens:,} tokens"),
        ("layers", found.layers),
    ]
    facts(console, rows)
    table = make_table(["part", "ends", "by which path, or why not", "figures", "s"], num_text_columns=4)
    for one in found.checks:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in one.measures.items())
        ending = one.status.replace("_", " ")
        table.add_row(visible(one.name), ending, visible(one.path or one.reason), shown, f"{one.seconds:.1f}")
    console.print(table)
    for one in found.checks:
        if one.remedy:
            console.print(f"{visible(one.name)}: {visible(one.remedy)}", soft_wrap=True)
