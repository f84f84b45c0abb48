"""How a system thought before its answers, as text."""

from __future__ import annotations

from luthier.core.evaluation import SystemResult


def thinking_sentence(system: SystemResult) -> str | None:
    """How a system thought, in one sentence; None where it did not."""
    thinking = system.thinking
    if thinking is None:
        return None
    found = f"{system.name} thought before {thinking.num_thoughts:,} of {system.num_samples:,} answers"
    if thinking.mean_tokens is not None:
        found += f", {thinking.mean_tokens:,.0f} tokens on average ({thinking.least_tokens:,} to "
        found += f"{thinking.most_tokens:,})"
    if not thinking.num_cut_off:
        return f"{found}; the thoughts are no part of the answers."
    were = "thought was" if thinking.num_cut_off == 1 else "thoughts were"
    return (
        f"{found}; {thinking.num_cut_off:,} {were} cut off before an answer, which counts as an empty one: "
        "raise max_thinking_tokens."
    )
