"""`luthier launch`: job files for systems that start processes on machines, and their start by SkyPilot."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import (
    Answer,
    BudgetHoursOption,
    BudgetUsdOption,
    CheckpointsOption,
    ForceOption,
    JsonOption,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.recipe import BudgetRecipe, Recipe
    from luthier.features.training.job_files import Launch, System
    from luthier.features.training.launchers.sky import SkyJob

_STORE_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION")
"""Settings of a store, no secrets, that a job needs as the machine does that writes its file."""


_NodesOption = Annotated[int, typer.Option("--nodes", metavar="N", help="Number of machines.")]
_DevicesOption = Annotated[int, typer.Option("--devices", metavar="N", help="Processes per machine, one GPU each.")]
_HoursOption = Annotated[
    float | None,
    typer.Option("--hours", metavar="H", help="Time limit of the job.", show_default="by the budget, or 24"),
]
_CpusOption = Annotated[int, typer.Option("--cpus-per-device", metavar="N", help="CPU cores per process.")]
_AcceleratorOption = Annotated[
    str, typer.Option("--accelerator", metavar="NAME", help="Name of the GPU, as SkyPilot writes it.")
]
_ImageOption = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="ray: container image with Luthier and Ray.")
]
_SetupOption = Annotated[
    str | None,
    typer.Option(
        "--setup",
        metavar="COMMAND",
        help="Command that installs Luthier; runs first, on each node (slurm: on the first one).",
    ),
]
_RunHomeOption = Annotated[
    str | None, typer.Option("--home", metavar="DIR", help="The home in which rank 0 keeps the run; on shared storage.")
]
_DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="PATH=URL", help="Copy data from a store to this path on each node. Repeatable."),
]
_RestartsOption = Annotated[
    int,
    typer.Option("--max-restarts", metavar="N", help="Maximum number of restarts after a failure or the time limit."),
]
_PriceOption = Annotated[
    float | None, typer.Option("--max-usd-per-hour", metavar="USD", help="skypilot: maximum price of a machine.")
]
_SecretOption = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="NAME", help="skypilot, ray: pass this variable as a secret. Repeatable."),
]
_ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME", help="With --on sky: run on this cluster, not as a managed job."),
]


def launch(
    system: Annotated[
        str, typer.Argument(metavar="SYSTEM", help="slurm, skypilot or ray (KubeRay); left out with --on sky.")
    ],
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe, as YAML or JSON.", show_default=False)
    ] = None,
    num_nodes: _NodesOption = 1,
    devices_per_node: _DevicesOption = 1,
    hours: _HoursOption = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on CPU cores instead of GPUs.")] = False,
    cpus_per_device: _CpusOption = 4,
    accelerator: _AcceleratorOption = "A100-80GB",
    image: _ImageOption = None,
    setup: _SetupOption = None,
    run_home: _RunHomeOption = None,
    checkpoints: CheckpointsOption = None,
    data: _DataOption = None,
    budget_hours: BudgetHoursOption = None,
    budget_usd: BudgetUsdOption = None,
    max_restarts: _RestartsOption = 3,
    spot: Annotated[
        bool, typer.Option("--spot", help="skypilot: use spot machines, which may be withdrawn at any time.")
    ] = False,
    max_usd_per_hour: _PriceOption = None,
    secrets: _SecretOption = None,
    on: Annotated[str | None, typer.Option("--on", metavar="sky", help="Start the job through SkyPilot.")] = None,
    cluster: _ClusterOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the job file here instead of to stdout.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> Answer:
    """Write the job file that trains a recipe on Slurm, through SkyPilot, or on Ray in Kubernetes; --on sky starts it.

    The recipe is read and checked first. Submitting the same file again resumes its run. With --checkpoints it is
    resumed on another machine, too. `luthier launch RECIPE --on sky` is short for `luthier launch skypilot RECIPE
    --on sky`.
    """
    from luthier.features.training.job_files import Launch

    chosen, path = _arguments(system, recipe, on, cluster)
    budget = _budget(budget_hours, budget_usd)
    asked = Launch(
        recipe=path.absolute(),
        num_nodes=num_nodes,
        devices_per_node=devices_per_node,
        hours=hours,
        on_gpus=not cpu,
        cpus_per_device=cpus_per_device,
        setup=setup,
        home=run_home,
        accelerator=accelerator,
        image=image,
        checkpoints=checkpoints or os.environ.get("LUTHIER_CHECKPOINTS") or None,
        data=_pairs(data or ()),
        is_spot=spot,
        max_restarts=max_restarts,
        budget_options=_budget_options(budget),
        max_usd_per_hour=max_usd_per_hour,
        secrets=tuple(secrets or ()),
    )
    return _answer(chosen, asked, budget, on, cluster, out, force=force, as_json=as_json)


def _answer(
    system: System,
    asked: Launch,
    budget: BudgetRecipe | None,
    on: str | None,
    cluster: str | None,
    out: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> Answer:
    """Check the recipe, write the file, and start it where that was asked for."""
    from luthier.features.recipes.service import load_recipe
    from luthier.features.training.job_files import IDLE_MINUTES, launch_file
    from luthier.features.training.launchers import sky
    from luthier.ml.data.rows.outputs import check_free, write_output
    from luthier.ml.planning import defaults
    from luthier.ml.training.distributed import refuse_unequal_shares

    if out is not None:
        check_free([out], force=force)
    recipe = load_recipe(asked.recipe, ())
    completed, notes = _completed(asked, recipe, budget, system)
    text = launch_file(system, completed)
    size = recipe.training.global_batch_size if recipe.training else None
    # Without a size in the recipe, a plan has the usual one or a smaller one that these processes can share; of a
    # number of tokens it makes a multiple of the processes.
    if recipe.training is None or recipe.training.global_batch_tokens is None:
        refuse_unequal_shares(size or defaults.GLOBAL_BATCH_SIZE[0], completed.num_devices)
    if out is not None:
        write_output(out, text.encode(), force=force)
    job = None
    if on is not None:
        job = sky.start(text, completed.name, cluster=cluster, secrets=completed.secrets, idle_minutes=IDLE_MINUTES)
    document = {
        "system": system,
        "num_devices": completed.num_devices,
        "path": None if out is None else str(out),
        "limit_hours": completed.limit_hours,
        "notes": list(notes),
        "job": None if job is None else job.as_json(),
        "text": text,
    }
    return Answer(as_json, document, lambda console: _show(console, text, out, notes, job))


def _arguments(system: str, recipe: Path | None, on: str | None, cluster: str | None) -> tuple[System, Path]:
    """System and recipe; `luthier launch RECIPE --on sky` names the recipe alone."""
    from luthier.core.errors import RequestError
    from luthier.features.training.job_files import SYSTEMS

    if on not in (None, "sky"):
        raise RequestError(f"--on {on}", expected="sky", do="leave --on out to write a file alone")
    if cluster is not None and on is None:
        raise RequestError(f"--cluster {cluster} without --on sky", expected="both, or none", do="add --on sky")
    if recipe is None and on == "sky" and system not in SYSTEMS:
        return "skypilot", Path(system)
    if system not in SYSTEMS:
        raise RequestError(
            f"system {system!r}", expected=f"one of {', '.join(SYSTEMS)}", do="write: luthier launch slurm RECIPE"
        )
    if on == "sky" and system != "skypilot":
        raise RequestError(f"--on sky for {system}", expected="skypilot", do="write: luthier launch RECIPE --on sky")
    if recipe is None:
        raise RequestError("no recipe", expected="SYSTEM and RECIPE", do=f"write: luthier launch {system} RECIPE")
    return system, recipe


def _pairs(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    from luthier.features.training.staging import parse_staged

    return tuple((text.partition("=")[0], parse_staged(text).url) for text in texts)


def _budget(hours: float | None, usd: float | None) -> BudgetRecipe | None:
    from luthier.features.planning.budgets import asked_budget

    return asked_budget(hours=hours, usd=usd, tokens=None, energy_kwh=None)


def _budget_options(budget: BudgetRecipe | None) -> tuple[str, ...]:
    from luthier.features.planning.budgets import FLAGS

    given = {} if budget is None else budget.model_dump(exclude_none=True)
    return tuple(part for name, value in given.items() for part in (FLAGS[name], f"{value:.12g}"))


def _completed(
    asked: Launch, recipe: Recipe, budget: BudgetRecipe | None, system: System
) -> tuple[Launch, tuple[str, ...]]:
    """The launch with what the recipe and this machine add: budget, files outside its folder, settings of the store."""
    from dataclasses import replace

    from luthier.features.planning.budgets import merged
    from luthier.features.recipes.file import read_recipe_file
    from luthier.features.training.launched_files import local_files
    from luthier.features.training.launchers.environment import (
        ACCESS_SECRETS,
        STORE_SECRETS,
        credentials_left_here,
        left_here,
        passed_settings,
    )

    whole = merged(recipe.budget, budget)
    mounts, notes = tuple[str, ...](), tuple[str, ...]()
    if system == "skypilot":
        mounts, notes = local_files(recipe, read_recipe_file(asked.recipe).keys, asked)
    uploads = (asked.checkpoints or "").startswith("s3://")
    uses_store = uploads or any(url.startswith("s3://") for _, url in asked.data)
    variables = tuple((name, os.environ[name]) for name in _STORE_VARIABLES if uses_store and os.environ.get(name))
    # SkyPilot copies data with its own credentials; jobs of Slurm have the environment of sbatch.
    if (system == "skypilot" and uploads) or (system == "ray" and uses_store):
        notes += credentials_left_here(STORE_SECRETS, asked.secrets)
    if system != "slurm":  # whose jobs have the environment of sbatch
        notes += credentials_left_here(ACCESS_SECRETS, asked.secrets)
        notes += left_here(recipe, uploads=asked.checkpoints is not None, secrets=asked.secrets)
        variables += tuple(passed_settings().items())
    return (
        replace(
            asked,
            budget_hours=None if whole is None else whole.hours,
            budget_usd=None if whole is None else whole.usd,
            mounts=mounts,
            variables=variables,
        ),
        notes,
    )


def _show(console: Console, text: str, out: Path | None, notes: Sequence[str], job: SkyJob | None) -> None:
    from luthier.platform.cli.console import visible

    if job is None or out is not None:
        console.print(text.rstrip("\n") if out is None else f"written: {out}", soft_wrap=True)
    for note in notes:
        # A comment, since the file may be on stdout.
        console.print(f"# note: {visible(note)}", soft_wrap=True)
    if job is not None:
        console.print(visible(job.summary), soft_wrap=True)
