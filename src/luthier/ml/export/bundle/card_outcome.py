"""The second half of a card: verdict, proof of the export, safety, cost, limits, and what follows from the licence."""

from __future__ import annotations

from luthier.core.cost import Estimate
from luthier.core.evaluation import Evaluation, Metric
from luthier.core.records.export import Export, ParityReport
from luthier.ml.charts import figures, markdown
from luthier.ml.charts.markdown import code, table
from luthier.ml.charts.metric_titles import metric_title
from luthier.ml.export.bundle import licences
from luthier.ml.export.bundle.facts import BaseFacts, BundleFacts, RunFacts


def outcome_sections(export: Export, facts: BundleFacts) -> tuple[str, ...]:
    """Each section with its heading."""
    return (
        _verdict(facts.evaluation),
        _parity(export),
        _safety(facts),
        _cost(facts.run),
        _limits(export, facts),
        _licence(facts.base, is_tuned=facts.run is not None),
    )


def _verdict(evaluation: Evaluation | None) -> str:
    title = "## Verdict\n\n"
    if evaluation is None:
        return title + "None: it was not judged on held-out rows."
    parts = []
    if (verdict := evaluation.verdict) is not None:
        parts.append(f"**{markdown.text(verdict.headline, 1_000)}**")
        if verdict.details:
            parts.append("\n".join(f"- {markdown.text(line, 1_000)}" for line in verdict.details))
    names = list(dict.fromkeys(name for system in evaluation.systems for name in system.metrics))
    rows = [
        [markdown.text(system.name), *(_figure(system.metrics.get(name)) for name in names)]
        for system in evaluation.systems
    ]
    parts.append(table(("", *(_heading(name, evaluation) for name in names)), rows))
    # The name alone: a path would show folders of the machine; it may be one of Windows.
    file = markdown.text(evaluation.held_out_file.replace("\\", "/").rsplit("/", 1)[-1])
    parts.append(
        f"95% intervals over {_rows(evaluation.num_rows)} of {file} (SHA-256 {code(evaluation.held_out_sha256)}). "
        "What was judged is the model before it was exported; what the export changed stands in the next section."
    )
    if evaluation.forgetting is not None:
        parts.append(f"On rows of other tasks: {markdown.text(evaluation.forgetting.sentence, 1_000)}")
    return title + "\n\n".join(parts)


def _rows(num: int) -> str:
    return f"{num:,} row{'' if num == 1 else 's'}"


def _heading(name: str, evaluation: Evaluation) -> str:
    metric = next(system.metrics[name] for system in evaluation.systems if name in system.metrics)
    better = "higher is better" if metric.higher_is_better else "lower is better"
    unit = f"{markdown.text(metric.unit)}; " if metric.unit else ""
    return f"{markdown.text(metric_title(name))} ({unit}{better})"


def _figure(metric: Metric | None) -> str:
    if metric is None:
        return "not measured"
    decimals = figures.decimals_for(metric.low, metric.high)
    return f"{figures.number(metric.value, decimals)} {figures.interval(metric.low, metric.high, decimals)}"


def _parity(export: Export) -> str:
    title = "## Is it the same model?\n\n"
    if export.parity is None:
        return title + "Not proved: the export was not compared with its source."
    proofs = [_proof(export.parity, "the export")]
    if export.gguf_parity is not None:
        proofs.append(_proof(export.gguf_parity, "`adapter.gguf` over the base in float16"))
    return title + "\n\n".join(proofs)


def _proof(parity: ParityReport, what: str) -> str:
    more = parity.nll_increase_nats
    rows = [
        ("Prompts with the same tokens", f"{parity.num_prompts_same_tokens} of {parity.num_prompts}"),
        ("Greedy texts that are equal", f"{parity.num_texts_equal} of {parity.num_prompts}"),
        ("Largest difference of a log-probability", _difference(parity)),
        ("Mean difference", f"{parity.mean_difference_nats:.3g} nats"),
        ("Loss of quality", f"{_signed(more.value)} [{_signed(more.low)}, {_signed(more.high)}] nats a token"),
        ("Perplexity, source and export", f"{parity.source_perplexity:.4g} and {parity.export_perplexity:.4g}"),
    ]
    said = (
        f"Source and export answered {parity.num_prompts} prompts, {what} in {parity.runtime} "
        f"{markdown.text(parity.runtime_version)}. **The proof {'holds' if parity.passed else 'failed'}.**"
    )
    if parity.reasons:
        said += "\n\n" + "\n".join(f"- {markdown.text(reason, 1_000)}" for reason in parity.reasons)
    return f"{said}\n\n{table(('', ''), [list(row) for row in rows], num_text_columns=2)}"


def _signed(value: float) -> str:
    """Three significant digits, however small."""
    return f"{value:+.3g}".replace("-", figures.MINUS) if value else "0"


def _difference(parity: ParityReport) -> str:
    bound = "no bound in this format" if parity.bound_nats is None else f"at most {parity.bound_nats:.3g} allowed"
    return f"{parity.max_difference_nats:.3g} nats, {bound}"


def _safety(facts: BundleFacts) -> str:
    title = "## Safety\n\n"
    if facts.safety:
        return title + "\n".join(f"- {markdown.text(line, 1_000)}" for line in facts.safety)
    said = "Not measured: nobody has asked this model for harmful, false or private things"
    if facts.run is None:
        return f"{title}{said}."
    return f"{title}{said}, neither before training nor after. Tuning can weaken what the base model refuses."


def _cost(run: RunFacts | None) -> str:
    title = "## Energy and cost\n\n"
    if run is None:
        return title + "Nothing was trained here. What the base model cost, its makers say."
    bill = run.result.bill
    if bill is None:
        return title + "Not measured."
    budget = run.plan.budget
    energy, money = "Energy: not measured", "Money: not known"
    if bill.energy_kwh is not None:
        source = f" at {markdown.text(budget.watts_source)}" if budget is not None else ""
        energy = f"Energy: {_between(bill.energy_kwh)} kWh, estimated: the time{source}; no meter was read"
    if bill.usd is not None:
        source = f" at {markdown.text(budget.price_source)}" if budget is not None else ""
        money = f"Money: {_between(bill.usd)} USD, estimated: the time{source}"
    lines = [f"Time: {figures.duration(bill.hours * 3600)}, training and judging", energy, money]
    return title + "\n".join(f"- {line}." for line in lines)


def _between(estimate: Estimate) -> str:
    value = figures.rough(estimate.value)
    if estimate.low == estimate.high:
        return value
    return f"{value} [{figures.rough(estimate.low)}, {figures.rough(estimate.high)}]"


def limits_of(facts: BundleFacts, warnings: tuple[str, ...] = ()) -> list[str]:
    """What users of the model must know, a sentence each.

    Args:
        facts: where it comes from.
        warnings: of its export.
    """
    said = [*warnings, *([f"Of the base model: {facts.base.note}"] if facts.base.note else [])]
    if (evaluation := facts.evaluation) is not None and evaluation.verdict is not None:
        said += evaluation.verdict.caveats
    if facts.run is not None:
        said += facts.run.result.warnings
        fit = facts.run.result.fit
        if fit is not None and fit.kind != "settled":
            said.append(f"{fit.title}: {fit.seen}")
    if facts.base.context_length_tokens is not None:
        said.append(f"Prompt and answer together have room for {facts.base.context_length_tokens:,} tokens.")
    if facts.run is not None:
        said.append("It was tuned for rows such as those above; of other tasks only what stands here was measured.")
    said.append("Like every language model it writes things that are not true, in the same voice as things that are.")
    # Export and run may warn of the same thing: each sentence once, in the order of first mention.
    return list(dict.fromkeys(said))


def _limits(export: Export, facts: BundleFacts) -> str:
    lines = limits_of(facts, export.warnings)
    return "## Limits\n\n" + "\n".join(f"- {markdown.text(line, 1_000)}" for line in lines)


def _licence(base: BaseFacts, *, is_tuned: bool) -> str:
    stated = licences.is_stated(base.licence)
    name = markdown.text(base.licence or "")
    link = f", {markdown.text(base.licence_url)}" if base.licence_url else ""
    texts = ", ".join(code(name) for name in sorted(base.licence_texts))
    follows = licences.consequences(base.licence)
    lines = [f"The base model: {name}{link}. {follows}" if stated else follows]
    if texts:
        lines.append(f"The texts that came with it lie beside this file: {texts}.")
    elif stated:
        lines.append("No text of it came with the base model, so none lies beside this file.")
    rows = " The licence of the rows is not stated." if is_tuned else ""
    lines.append(f"Luthier claims no rights of its own in the weights.{rows}")
    return "## Licence\n\n" + "\n\n".join(lines)
