"""The same run by another method, or cut into other micro-batches: what a plan compares a run with."""

from __future__ import annotations

from dataclasses import replace

from luthier.ml.planning.adapter import Placement, expert_rank, place_adapters
from luthier.ml.planning.workload import OWN, Workload, WorkMethod
from luthier.ml.training.methods.rules import LORA_DROPOUT, LORA_RANK
from luthier.ml.training.optimizers.rules import rules_of as optimizer_rules


def with_method(workload: Workload, method: WorkMethod, *, rank: int = LORA_RANK[0]) -> Workload:
    """The same run by another method, with adapters on every matrix where there were none.

    Args:
        workload: the run.
        method: the method of its cost model.
        rank: of new adapters; a run with adapters keeps its own.
    """
    if method == "full":
        plain = replace(workload, expert_targets=(), expert_rank=0, modules_to_save=())
        return replace(plain, method="full", rank=0, targets=(), dropout=0.0, base=workload.compute, trainable=None)
    place = Placement(workload.targets, workload.expert_targets)
    if not workload.targets and not workload.expert_targets:
        place = place_adapters(workload.structure, "all-linear", rank=rank, experts=method != "adalora")
    return replace(
        workload,
        method=method,
        rank=workload.rank or rank,
        targets=place.targets,
        dropout=workload.dropout if workload.rank else LORA_DROPOUT[0],
        base="nf4" if method == "qlora" else workload.compute,
        optimizer=f"{OWN}adamw" if _is_for_full(workload.optimizer) else workload.optimizer,
        initial_rank=0,
        trainable=None,
        expert_targets=() if method == "adalora" else place.expert_targets,
        expert_rank=workload.expert_rank or expert_rank(workload.structure, workload.rank or rank),
    )


def _is_for_full(optimizer: str) -> bool:
    return optimizer.startswith(OWN) and bool(optimizer_rules(optimizer.removeprefix(OWN)).only_full)


def with_micro_batch(workload: Workload, rows: int, length: int) -> Workload:
    """The same steps cut into micro-batches of at most that many rows of at most that many tokens.

    Args:
        workload: the run.
        rows: of a micro-batch, at most.
        length: tokens of a row, at most.
    """
    old = workload.batches
    cut = replace(old, peak_rows=rows, peak_length=length, other_peaks=(), length=min(old.length, length))
    # Only a smaller budget cuts a step into more micro-batches; a larger one is not filled by the same rows.
    share = cut.peak_tokens / old.peak_tokens
    num = max(old.num_micro_batches, old.num_micro_batches / share if share < 1 else 1.0)
    return replace(workload, batches=replace(cut, num_micro_batches=num))
