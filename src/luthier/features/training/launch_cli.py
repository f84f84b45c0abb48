"""`luthier launch`: job files for systems that start processes on many machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.options import ForceOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console


def launch(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help="slurm, skypilot or ray (KubeRay).")],
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML or JSON.")],
    num_nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Machines.")] = 1,
    devices_per_node: Annotated[int, typer.Option("--devices", metavar="N", help="Processes on each, a GPU each.")] = 1,
    hours: Annotated[float, typer.Option("--hours", metavar="H", help="After which the job is ended.")] = 24.0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the machines' cores instead of GPUs.")] = False,
    cpus_per_device: Annotated[int, typer.Option("--cpus-per-device", metavar="N", help="Cores for each process.")] = 4,
    accelerator: Annotated[
        str, typer.Option("--accelerator", metavar="NAME", help="SkyPilot's name of the GPU.")
    ] = "A100-80GB",
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="Container with luthier and Ray, for ray.")
    ] = None,
    setup: Annotated[
        str | None, typer.Option("--setup", metavar="COMMAND", help="What makes `luthier` known on a node.")
    ] = None,
    run_home: Annotated[
        str | None, typer.Option("--home", metavar="DIR", help="Where rank 0 keeps the run; on shared storage.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there, not to stdout.")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> Answer:
    """Write the job file that trains a recipe on Slurm, by SkyPilot, or on Ray in Kubernetes. Nothing is submitted.

    The recipe is read and checked first. Submitting the same file again goes on with the run that it began.
    """
    from luthier.core.errors import RequestError
    from luthier.features.recipes.service import load_recipe
    from luthier.features.training.cluster_files import SYSTEMS, Launch, launch_file
    from luthier.ml.data.rows.outputs import check_free, write_output
    from luthier.ml.planning import defaults
    from luthier.ml.training.distributed import refuse_unequal_shares

    if system not in SYSTEMS:
        raise RequestError(
            f"system {system!r}", expected=f"one of {', '.join(SYSTEMS)}", do="write: luthier launch slurm RECIPE"
        )
    if out is not None:
        check_free([out], force=force)
    training = load_recipe(recipe, ()).training
    asked = Launch(
        recipe=recipe.absolute(),
        num_nodes=num_nodes,
        devices_per_node=devices_per_node,
        hours=hours,
        on_gpus=not cpu,
        cpus_per_device=cpus_per_device,
        setup=setup,
        home=run_home,
        accelerator=accelerator,
        image=image,
    )
    text = launch_file(system, asked)
    size = training.global_batch_size if training else None
    refuse_unequal_shares(size or defaults.GLOBAL_BATCH_SIZE[0], asked.num_devices)
    if out is not None:
        write_output(out, text.encode(), force=force)
    document = {"system": system, "num_devices": asked.num_devices, "path": None if out is None else str(out)}
    return Answer(as_json, document | {"text": text}, lambda console: _show(console, text, out))


def _show(console: Console, text: str, out: Path | None) -> None:
    console.print(text.rstrip("\n") if out is None else f"written: {out}", soft_wrap=True)
