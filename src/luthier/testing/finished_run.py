"""A run that has succeeded, for tests that use its outcome: nothing was trained for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.run import RunStatus
from luthier.testing.records import make_plan, make_record, make_result

if TYPE_CHECKING:
    from luthier.platform.home.context import Context


def add_run(context: Context, letter: str, *, status: RunStatus = "succeeded") -> str:
    """Put a run into a home, with the folder of a whole model in which nothing can be loaded; returns its id.

    Args:
        context: The home.
        letter: A hexadecimal digit that distinguishes it from others.
        status: The status of the run.
    """
    run_id = f"run-20261125-093000-{letter * 6}"
    folder = context.settings.run_folder(run_id) / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    result = make_result().model_copy(update={"status": status, "adapter_path": str(folder)})
    context.runs.create(make_record(run_id, status=status, result=result), make_plan())
    return run_id
