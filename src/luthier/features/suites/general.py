"""The suite of general ability, which rides along with every suite of a tuned model: what did tuning cost?"""

from __future__ import annotations

from pathlib import Path

from luthier.features.suites.file import files_in, load_suite
from luthier.features.suites.rows import Seen, load_task
from luthier.features.suites.task_runs import RowsOf
from luthier.ml.evaluation import general


def general_tasks(*, seen: Seen, seed: int) -> list[RowsOf]:
    """Its tasks with their rows, which come with the package. seen: as `load_task`; nothing is refused for it here."""
    folder = Path(general.__path__[0])
    suite = load_suite(folder / "suite.yaml")
    return [
        load_task(task, files_in(folder), seen=seen, seed=seed, is_general=True)
        for task in suite.tasks
        if task.kind != "lm_eval"
    ]
