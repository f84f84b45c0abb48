"""A plan in a few lines, shown before anything is trained; the whole of it is in `luthier plan` and in the report."""

from __future__ import annotations

from luthier.core.cost import Quote
from luthier.core.dataset import DatasetProfile, reading_notes, sequence_notes
from luthier.core.plan import DataPlan, MethodPlan, Plan
from luthier.features.planning.bill_format import budget_lines
from luthier.features.planning.quote_format import quote_lines
from luthier.platform.cli import figures


def show_plan(run_id: str, plan: Plan, quote: Quote | str) -> None:
    """Print the plan of a run and what it is predicted to take on stderr, where the progress goes."""
    from luthier.platform.cli.console import stderr_console

    console = stderr_console()
    for line in [*plan_lines(run_id, plan), *quote_lines(quote)]:
        console.print(line, soft_wrap=True)


def plan_lines(run_id: str, plan: Plan) -> list[str]:
    """Run, rows, what is trained, how long, how precise and how it is judged: one line each.

    run_id: empty for a plan that is not run.
    """
    from luthier.platform.cli.console import visible

    training, method, data = plan.training, plan.method, plan.data
    # A split that is missing is shown as "none": that nothing is judged must be seen.
    splits = {"train": data.train, "validation": data.validation, "held-out": data.held_out}
    rows = ", ".join(_rows(name, found) for name, found in splits.items())
    # Says at a glance whether an adapter or the whole model is trained.
    share = method.num_trainable_parameters / plan.base_model.num_parameters
    what = _what_is_trained(method)
    judged = f"{', '.join(plan.evaluation.metrics)}" if data.held_out else "nothing: the recipe names no held-out rows"
    return [
        *([f"run {run_id}, plan {plan.hash[:12]}"] if run_id else ()),
        f"  rows       {rows}",
        *(f"  columns    {visible(note)}" for note in data_notes(data)),
        *_replay_line(data),
        *(
            [f"  canaries   {data.canaries.num:,} made-up secrets planted among the training rows"]
            if data.canaries
            else ()
        ),
        f"  method     {method.name}, {what}: {method.num_trainable_parameters:,} parameters, {share:.2%} of the base",
        f"  training   {training.num_steps:,} steps of {training.global_batch_size} examples, peak learning rate "
        f"{training.learning_rate:g} ({training.schedule})",
        f"  precision  {training.precision}: {plan.sources['training.precision'].why}",
        f"  judged by  {judged}",
        *(f"  budget     {line}" for line in (budget_lines(plan.budget) if plan.budget else ())),
    ]


def data_notes(data: DataPlan) -> list[str]:
    """How the files of a plan were read, where that is more than every row with the fields of its shape."""
    # General rows that are mixed in are read by the same rules, so their files are named as well.
    replay = (data.replay.rows, data.replay.held_out) if data.replay else ()
    profiles = (data.train, data.validation, data.held_out, *replay)
    there = [one for one in profiles if one is not None]
    written = [note for one in there for _, note in sequence_notes(one)]
    return [*reading_notes((one.file, one.shape_reason) for one in there), *written]


def _replay_line(data: DataPlan) -> list[str]:
    replay = data.replay
    if replay is None:
        return []
    replayed, judged = replay.rows, replay.held_out
    rows = f"{replay.num_per_step} of each step, from {replayed.num_examples:,} general rows" if replayed else "no rows"
    held_out = f"; forgetting is measured on {judged.num_examples:,} others" if judged else ""
    return [f"  replay     {rows}{held_out}"]


def _rows(name: str, found: DatasetProfile | None) -> str:
    """`train 120 (48k tokens)`; of texts how they fill blocks, and how many had to be cut."""
    if found is None:
        return f"{name} none"
    tokens = f"{figures.count(found.num_tokens)} tokens"
    if (packed := found.packed) is None:
        return f"{name} {found.num_examples:,} ({tokens})"
    cut = f"{packed.num_cut:,} of them cut, " if packed.num_cut else ""
    return (
        f"{name} {packed.num_blocks:,} blocks of up to {packed.block_tokens:,} tokens from {packed.num_documents:,} "
        f"texts ({cut}{tokens}, {packed.filled_fraction:.0%} full)"
    )


def _what_is_trained(method: MethodPlan) -> str:
    if method.num_virtual_tokens:
        return f"{method.num_virtual_tokens} virtual tokens"
    if not method.is_adapter:
        return "every weight"
    rank = f"rank {method.rank} " if method.rank else ""
    if method.target_rank:
        rank = f"rank {method.rank} falling to {method.target_rank} on average "
    held = f" over a base in {method.quantisation}" if method.quantisation else ""
    return f"{rank}on {method.target_summary}{held}"
