"""How the rows of a recipe are tokenised: what is learned of them, and the processes that do the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example, Split
from luthier.core.recipe import Recipe
from luthier.core.task_head import SEARCH_KINDS, TaskHead
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.row_workers import RowWorkers
    from luthier.ml.data.tokenise.loss_mask import Learning

_SAMPLED_ROWS: Final = 100
_FEWEST_WORKERS: Final = 4
_MODULES: Final = (
    "luthier.ml.data.tokenise.tokenised_rows",
    "luthier.ml.inference.models.templates.chat_template",
)


@contextmanager
def tokenising_workers(context: Context, examples: Sequence[Example]) -> Iterator[RowWorkers]:
    """The processes that tokenise rows: one a core for many rows, where there are cores enough, else this process.

    This process encodes on all cores and renders on one, so that two workers gain nothing over it.

    Args:
        context: Has the settings.
        examples: The rows, for their size.

    Raises:
        StorageFullError: There is no room for the parts that workers get.
    """
    from luthier.ml.data.files.process_workers import num_process_workers, process_workers
    from luthier.ml.data.files.row_workers import IN_PROCESS
    from luthier.ml.data.tokenise.tokenised_rows import num_characters_of

    # Rows at equal distances: those that are in files are parsed for each pass over all of them.
    sample = [examples[at] for at in range(0, len(examples), max(1, len(examples) // _SAMPLED_ROWS))]
    num_bytes = sum(map(num_characters_of, sample)) * len(examples) // max(1, len(sample))
    asked = context.settings.data_workers
    num = num_process_workers(num_bytes, asked)
    if num == 1 or (not asked and num < _FEWEST_WORKERS):
        yield IN_PROCESS
    else:
        with process_workers(num, context.settings.scratch_folder, _MODULES) as processes:
            yield processes


def learning_of(recipe: Recipe, split: Split, head: TaskHead | None = None) -> Learning:
    """What is learned besides the answers. Methods that sample answers need only the prompts of inference.

    Args:
        recipe: The request.
        split: Which rows.
        head: Of the model, where it does not write.
    """
    from luthier.ml.data.tokenise.loss_mask import Learning
    from luthier.ml.training.objectives.rules import rules_of

    objective = rules_of(recipe.objective.name if recipe.objective else "sft")
    if head is not None and head.kind in SEARCH_KINDS:
        return Learning.of_search(head)  # held-out texts are read as in training
    if objective.task_head is not None and split in ("train", "validation"):
        return Learning(task_head=objective.task_head)
    if split != "held_out" and "num_samples" in objective.settings:
        return Learning(reasoning=True, only_last=True)
    # what judges is scored behind the prompts of inference, however training joins its answers
    joins = recipe.data.reset_template is not None and split not in ("held_out", "replay_held_out")
    return Learning(reasoning=recipe.data.learn_reasoning, joins=joins)
