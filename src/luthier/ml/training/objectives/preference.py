"""Preference objectives: DPO, IPO, ORPO and SimPO on pairs, KTO on single completions.

A unit of the first four is a chosen and a rejected row, and each pair counts once. DPO, IPO and KTO compare with the
reference: the log-probabilities of whole completions under the model before its first step, computed once and stored.
Of training rows that are streamed it is computed in each step, by the same model with its first weights put back.
Every method starts out equal to the base (an adapter that adds nothing, a factor of 1), except prompt tuning, which
starts with a prompt of random tokens; the initial model is the reference. So no second model is ever in memory.

KTO's estimate z0 is the mean log-ratio over prompts with the completion of another example, at least 0, without a
gradient, over the whole global batch. Each prompt keeps the same partner, the completion of a previous row with another
prompt, throughout the run, so that its reference is also computed only once. Of streamed rows it is one of the step.

Sources: Rafailov et al., 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv:2305.18290, equation 7 (its variants: `pair_losses.py`). Azar et al., 2023, "A General Theoretical Paradigm to
Understand Learning from Human Preferences", arXiv:2310.12036, equation 17 (IPO). Hong et al., 2024, "ORPO: Monolithic
Preference Optimization without Reference Model", arXiv:2403.07691, equations 4, 6 and 7. Meng et al., 2024, "SimPO:
Simple Preference Optimization with a Reference-Free Reward", arXiv:2405.14734, equation 6. Ethayarajh et al., 2024,
"KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306, equation 8. Pang et al., 2024, "Iterative
Reasoning Preference Optimization", arXiv:2404.19733, equation 1 (`nll_weight`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from luthier.core.dataset import TokenisedExample, common_beginning
from luthier.core.plan import ObjectivePlan
from luthier.core.ports import Progress
from luthier.core.system.files import replace_bytes
from luthier.ml.training.losses.cross_entropy import summed_by_row
from luthier.ml.training.objective_protocol import NO_TOOLS, Losses, PlainObjective, Tools, Unit, rows_of
from luthier.ml.training.objectives.first_weights import FirstWeights
from luthier.ml.training.objectives.pair_losses import pair_losses, smoothed

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel

FILE_NAME: Final = "reference.safetensors"
_KEY_BYTES: Final = 16


def key_of(row: TokenisedExample) -> bytes:
    """A 16-byte digest of a row's tokens and mask, independent of its id."""
    digest = hashlib.blake2b(memoryview(row.input_ids).cast("B"), digest_size=_KEY_BYTES)
    digest.update(row.loss_mask)
    return digest.digest()


class Reference:
    """The summed log-probabilities of rows, by row content."""

    def __init__(self, sums: Mapping[bytes, float]) -> None:
        self._sums = sums

    def of(self, rows: Sequence[TokenisedExample], like: Tensor) -> Tensor:
        """The summed log-probabilities of rows in nats, [rows], on the device and in the precision of `like`."""
        return torch.tensor([self._sums[key_of(row)] for row in rows], dtype=like.dtype, device=like.device)


class StepReference(Reference):
    """The reference of streamed rows, of which only those of the current micro-batch are known.

    Args:
        stored: of the validation rows.
        first: the weights before the first step.
    """

    def __init__(self, stored: Reference, first: FirstWeights) -> None:
        super().__init__({})
        self._stored, self._first = stored._sums, first

    def compute(self, model: TrainableModel, units: Sequence[Unit]) -> None:
        """Make the rows of these units known; those of validation are.

        Args:
            model: that the first weights are of; in the mode that it had, afterwards.
            units: of one micro-batch.
        """
        keys = [key_of(row) for row in rows_of(units)]
        if all(key in self._stored for key in keys):
            self._sums = self._stored
            return
        with self._first.restored(model):
            self._sums = dict(zip(keys, summed_log_probabilities(model, units).tolist(), strict=True))


def reference_of(model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> Reference:
    """The reference of all rows of these units: read from `folder` if complete, otherwise computed and stored.

    Args:
        model: before its first step.
        units: preference pairs or single answers.
        folder: the run's, where the log-probabilities are stored.
        progress: shows the forward passes.
    """
    keys = dict.fromkeys(key_of(row) for unit in units for row in unit)
    if not keys:
        return Reference({})
    found = _read(folder / FILE_NAME, list(keys))
    if found is None:
        found = _compute(model, units, progress)
        _write(folder / FILE_NAME, {key: found[key] for key in keys})
        # Read back, so that the first process sees exactly the numbers that a resumed one will.
        found = _read(folder / FILE_NAME, list(keys)) or found
    return Reference(found)


@torch.no_grad()
def summed_log_probabilities(model: TrainableModel, units: Sequence[Unit]) -> Tensor:
    """The summed log-probability of the learned tokens of each row of a few units: [rows], in nats."""
    from luthier.ml.training.model import collate

    batch = collate(rows_of(units), model.pad_id, model.device, prefix_lengths=shared_prefix_tokens(model, units))
    return summed_by_row(model.log_probabilities(batch), batch.learned)


def shared_prefix_tokens(model: TrainableModel, units: Sequence[Unit]) -> tuple[int, ...]:
    """The prefixes shared by the rows of each unit; none unless the plan and the model support it."""
    if not model.shares_prefix or len(units[0]) == 1:
        return ()
    own = tuple(common_beginning(unit) for unit in units)
    return own if any(own) else ()


def cut(model: TrainableModel, units: Sequence[Unit]) -> Iterator[list[int]]:
    """Indices of the units in micro-batches of about the plan's size, the longest first; computed forward only."""
    lengths = [max(row.num_tokens for row in unit) for unit in units]
    current: list[int] = []
    for index in sorted(range(len(units)), key=lambda i: (-lengths[i], i)):
        # The first is the longest: all rows of the micro-batch are padded to it.
        size = lengths[current[0]] if current else lengths[index]
        if current and (len(current) + 1) * len(units[index]) * size > model.micro_batch_tokens:
            yield current
            current = []
        current.append(index)
    if current:
        yield current


def _compute(model: TrainableModel, units: Sequence[Unit], progress: Progress) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    was_training = model.module.training
    model.module.eval()
    with progress.task("Reference log-probabilities", len(units), "examples") as bar:
        for indices in cut(model, units):
            chosen = [units[i] for i in indices]
            sums = summed_log_probabilities(model, chosen).tolist()
            found.update((key_of(row), value) for row, value in zip(rows_of(chosen), sums, strict=True))
            bar.advance(len(indices))
    model.module.train(was_training)
    return found


def _write(path: Path, sums: Mapping[bytes, float]) -> None:
    keys = torch.frombuffer(bytearray(b"".join(sums)), dtype=torch.uint8).view(-1, _KEY_BYTES)
    # float64 represents fp32 and fp64 sums exactly.
    values = torch.tensor(list(sums.values()), dtype=torch.float64)
    digest = _digest(keys, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, save({"keys": keys, "log_probabilities": values}, {"sha256": digest}))


def _read(path: Path, wanted: Sequence[bytes]) -> dict[bytes, float] | None:
    """The sums of exactly these rows; None if the file is missing, damaged, or about other rows."""
    try:
        with safe_open(path, framework="pt") as file:
            keys, values = file.get_tensor("keys"), file.get_tensor("log_probabilities")
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, KeyError):
        return None
    if digest != _digest(keys, values):
        return None
    packed = keys.numpy().tobytes()
    names = [packed[i : i + _KEY_BYTES] for i in range(0, len(packed), _KEY_BYTES)]
    return dict(zip(names, values.tolist(), strict=True)) if names == list(wanted) else None


def _digest(keys: Tensor, values: Tensor) -> str:
    return hashlib.sha256(keys.numpy().tobytes() + values.numpy().tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over the completions of P pairs, each [P]. Log-probabilities in nats; lengths: learned tokens.

    Attributes:
        chosen, rejected: [P], summed log-probabilities of the completion, in nats.
        chosen_lengths, rejected_lengths: [P], learned tokens of the completion.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @classmethod
    def of(cls, sums: Tensor, learned: Sequence[int]) -> PairSums:
        """From row values in the order chosen, rejected, chosen, rejected..."""
        lengths = torch.tensor(learned, dtype=sums.dtype, device=sums.device)
        # Rows alternate: even ones are chosen, odd ones rejected.
        return cls(sums[0::2], sums[1::2], lengths[0::2], lengths[1::2])

    def means(self) -> tuple[Tensor, Tensor]:
        """Log-probability per token of the chosen and of the rejected completions."""
        return self.chosen / self.chosen_lengths, self.rejected / self.rejected_lengths


def reward_measures(chosen: Tensor, rejected: Tensor, sums: PairSums) -> dict[str, Tensor]:
    """Reported measures, summed over pairs: implicit rewards, and log-probabilities of whole completions.

    Args:
        chosen: [pairs], implicit rewards of the chosen completions.
        rejected: [pairs], of the rejected ones.
        sums: log-probabilities of whole completions, in nats.
    """
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "reward_accuracy": (chosen > rejected).sum(),
        "reward_margin": (chosen - rejected).sum(),
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
        "chosen_log_probability": sums.chosen.detach().sum(),
        "rejected_log_probability": sums.rejected.detach().sum(),
    }


class PairObjective(PlainObjective, ABC):
    """Learns from preference pairs. The loss is a mean over pairs."""

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        assert plan.beta is not None
        self.beta = plan.beta

    def weight(self, units: Sequence[Unit]) -> float:
        """The number of pairs."""
        return float(len(units))

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed loss of the pairs and their rewards; with `nll_weight` also the loss of the chosen answers."""
        sums = PairSums.of(summed_by_row(model.log_probabilities(batch), batch.learned), batch.learned)
        losses, chosen, rejected = self.of_pairs(sums, units)
        measures = reward_measures(chosen, rejected, sums)
        if self.plan.nll_weight:
            nll = -sums.chosen / sums.chosen_lengths  # [P], the mean a token: no pair counts more for its length
            losses = losses + self.plan.nll_weight * nll
            measures["nll_loss"] = nll.detach().sum()
        return Losses(losses.sum(), measures)

    @abstractmethod
    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of the pairs and the rewards of chosen and rejected, each [P]."""


class AgainstReference(PairObjective):
    """A pair objective that uses the log-ratio of completions to the initial model."""

    reference: Reference

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:
        """Compute the reference of all rows or read it from the run's folder."""
        self.reference = reference_of(model, units, folder, progress)
        if self.tools.is_streamed:
            self.reference = StepReference(self.reference, FirstWeights(model))

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """As of all pairs; the reference of streamed rows is computed first."""
        if isinstance(self.reference, StepReference):
            self.reference.compute(model, units)
        return super().losses(model, units, batch)

    def log_ratios(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor]:
        """log(p / p_initial) of chosen and rejected completions, each [P]."""
        reference = self.reference.of(rows_of(units), like=sums.chosen)
        return sums.chosen - reference[0::2], sums.rejected - reference[1::2]


class Dpo(AgainstReference):
    """A loss of the log-ratios h to the initial model; by default -log sigmoid(beta (h_chosen - h_rejected))."""

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:
        """The rewards are beta h, under each loss."""
        chosen, rejected = self.log_ratios(sums, units)
        if self.plan.loss_type == "sigmoid_norm":
            x, y = chosen / sums.chosen_lengths, rejected / sums.rejected_lengths
        else:
            x, y = chosen, rejected
        losses = pair_losses(self.plan.loss_type or "sigmoid", x, y, self.beta, self.plan.label_smoothing or 0.0)
        return losses, self.beta * chosen, self.beta * rejected


class Ipo(AgainstReference):
    """(h_chosen - h_rejected - 1 / (2 beta))^2, h the log-ratio per token.

    The paper uses sums over whole completions; its authors' results, and TRL, use the mean per token, so that long
    completions do not weigh more.
    """

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:
        """The rewards are beta times the log-ratio of whole completions, as for DPO."""
        chosen, rejected = self.log_ratios(sums, units)
        # [P]: means a token, see above
        margin = chosen / sums.chosen_lengths - rejected / sums.rejected_lengths
        return (margin - 1 / (2 * self.beta)).square(), self.beta * chosen, self.beta * rejected


def log_odds(means: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(means), the probability per token; exact for p near 0 and near 1."""
    # log(1 - exp(m)): each form where it is numerically stable (Maechler, 2012, "Accurately Computing log(1 -
    # exp(-|a|))")
    near_one = torch.log(-torch.expm1(torch.clamp(means, min=-1.0, max=-1e-7)))
    near_zero = torch.log1p(-torch.exp(torch.clamp(means, max=-0.5)))
    return means - torch.where(means > -0.693, near_one, near_zero)


class Orpo(PairObjective):
    """Mean cross-entropy of the chosen rows, and beta times -log sigmoid(log-odds of chosen less those of rejected).

    The cross-entropy weights all tokens of a batch equally. `nll_over` selects them: all tokens of the chosen rows, as
    in the authors' code and TRL, or those of the completions, as in the paper.
    """

    num_learned: float

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:  # noqa: ARG002
        """Count the tokens per pair by which the cross-entropy of the whole batch is divided."""
        chosen = [unit[0] for units in micro_batches for unit in units]
        num_tokens = sum(self._with_mask(row).num_trained_tokens for row in chosen)
        self.num_learned = num_tokens / len(chosen)

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed loss of the pairs, its two parts, and the rewards."""
        from luthier.ml.training.model import collate

        rows, marked = rows_of(units), batch
        if self.plan.nll_over == "all":
            with_prompts = [self._with_mask(row) if number % 2 == 0 else row for number, row in enumerate(rows)]
            prefix_lengths = () if batch.layout is None else batch.layout.prefix_tokens
            marked = collate(with_prompts, model.pad_id, model.device, prefix_lengths=prefix_lengths)
        found = model.log_probabilities(marked)  # [N of marked]
        # num_learned is tokens per pair; the loop divides by pairs: together a mean over the tokens of the batch.
        nll = -summed_by_row(found, marked.learned)[0::2].sum() / self.num_learned
        is_answer = torch.tensor(_answers(rows, marked.learned), device=found.device)
        sums = PairSums.of(summed_by_row(found * is_answer, marked.learned), batch.learned)
        losses, chosen, rejected = self.of_pairs(sums, units)
        measures = reward_measures(chosen, rejected, sums)
        parts = {"nll_loss": nll.detach(), "odds_ratio_loss": losses.detach().sum()}
        return Losses(nll + losses.sum(), measures | parts)

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """The odds-ratio part; the rewards are beta times the mean log-probability per token."""
        chosen, rejected = sums.means()
        losses = -self.beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
        return losses, self.beta * chosen, self.beta * rejected

    def _with_mask(self, row: TokenisedExample) -> TokenisedExample:
        """The row for the cross-entropy, with all tokens learned except the first, which has no context."""
        if self.plan.nll_over != "all":
            return row
        return replace(row, loss_mask=b"\0" + b"\1" * (row.num_tokens - 1))


def _answers(rows: Sequence[TokenisedExample], learned: Sequence[int]) -> list[bool]:
    """For each learned token of a micro-batch whether it is one of the row's completion."""
    found: list[bool] = []
    for row, count in zip(rows, learned, strict=True):
        found += [True] * count if count == row.num_trained_tokens else [mark == 1 for mark in row.loss_mask[1:]]
    return found


class Simpo(PairObjective):
    """-log sigmoid(beta (m_chosen - m_rejected) - gamma), m the mean log-probability per token."""

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """The rewards are beta m."""
        chosen, rejected = (self.beta * mean for mean in sums.means())
        margin = chosen - rejected - (self.plan.gamma or 0.0)
        return smoothed(margin, self.plan.label_smoothing or 0.0), chosen, rejected


class Kto(PlainObjective):
    """lambda (1 - sigmoid(beta (h - z0))) if desirable, lambda (1 - sigmoid(beta (z0 - h))) if not."""

    reference: Reference

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        assert plan.beta is not None
        self.beta = plan.beta
        self._partners: dict[bytes, TokenisedExample] = {}
        self._distance = 0.0
        self._shares = (1.0, 1.0)

    def prepare(self, model: TrainableModel, units: Sequence[Unit], folder: Path, progress: Progress) -> None:
        """Assign a partner to each prompt, and compute the reference of all rows and of those with partners."""
        rows = rows_of(units)
        made = _partners(rows, model.context_length_tokens)
        self._partners = {key_of(row): partner for row, partner in zip(rows, made, strict=True)}
        partners: list[Unit] = [(partner,) for partner in self._partners.values()]
        self.reference = reference_of(model, [*units, *partners], folder, progress)
        if self.tools.is_streamed:
            self.reference = StepReference(self.reference, FirstWeights(model))

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:
        """Estimate z0 over all units, and count the desirable ones."""
        rows = [row for units in micro_batches for row in rows_of(units)]
        known = [self._partners.get(key_of(row)) for row in rows]
        # Streamed rows are known step by step: the row before it in the step is the partner.
        made = _partners(rows, model.context_length_tokens) if None in known else known
        partners: list[Unit] = [(partner,) for partner in made if partner is not None]
        was_training, total = model.module.training, 0.0
        model.module.eval()
        for indices in cut(model, partners):
            chosen = [partners[i] for i in indices]
            found = summed_log_probabilities(model, chosen)
            self._compute(model, chosen)
            total += float((found - self.reference.of(rows_of(chosen), like=found)).sum())
        model.module.train(was_training)
        # A plain float: no gradient flows through z0.
        self._distance = max(0.0, total / len(rows))
        num_wanted = sum(row.is_wanted is True for row in rows)
        self._shares = num_wanted / len(rows), (len(rows) - num_wanted) / len(rows)

    def _compute(self, model: TrainableModel, units: Sequence[Unit]) -> None:
        if isinstance(self.reference, StepReference):
            self.reference.compute(model, units)

    def weight(self, units: Sequence[Unit]) -> float:
        """The number of completions."""
        return float(len(units))

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed loss of the completions, z0, and the rewards of desirable and undesirable completions."""
        rows = rows_of(units)
        self._compute(model, units)
        sums = summed_by_row(model.log_probabilities(batch), batch.learned)  # [rows]
        ratios = sums - self.reference.of(rows, like=sums)
        is_wanted = torch.tensor([row.is_wanted is True for row in rows], device=sums.device)
        gains = torch.where(is_wanted, 1.0, -1.0) * (ratios - self._distance)
        values = torch.where(is_wanted, self.plan.desirable_weight or 0.0, self.plan.undesirable_weight or 0.0)
        losses = values * (1 - torch.sigmoid(self.beta * gains))
        return Losses(losses.sum(), self._measures(self.beta * ratios.detach(), gains.detach(), is_wanted))

    def _measures(self, rewards: Tensor, gains: Tensor, is_wanted: Tensor) -> dict[str, Tensor]:
        """Sums that become means over their subset when divided by the number of completions in the whole batch."""
        wanted, other = self._shares
        measures = {
            "reward_accuracy": (gains > 0).sum(),
            "kl": rewards.new_full((), self._distance * len(rewards)),
        }
        if wanted:
            measures["chosen_reward"] = (rewards * is_wanted).sum() / wanted
        if other:
            measures["rejected_reward"] = (rewards * ~is_wanted).sum() / other
        return measures


def _partners(rows: Sequence[TokenisedExample], most_tokens: int) -> list[TokenisedExample]:
    """Each row with a completion of another prompt: that of the row before it, around the end.

    Of rows of one prompt, as the sides of a pair are, the second has that of the row before the first's, and so on.
    """
    num, prompts = len(rows), [row.input_ids[: row.loss_mask.find(1)].tobytes() for row in rows]
    starts = [i for i in range(num) if prompts[i] != prompts[i - 1]]
    start = starts[-1] - num if starts else 0  # of the rows of the first prompt, which may begin before the end
    others = list[int]()
    for i in range(num):
        start = i if prompts[i] != prompts[i - 1] else start
        nearest = (start if starts else i) - 1
        other = (nearest - (i - start)) % num
        # A prompt that occurs again further ahead would otherwise meet its own completion.
        others.append(other if prompts[other] != prompts[i] else nearest)
    return [mismatched(row, rows[other], most_tokens) for row, other in zip(rows, others, strict=True)]


def mismatched(row: TokenisedExample, other: TokenisedExample, most_tokens: int) -> TokenisedExample:
    """The prompt of one row with the completion of another, truncated at the end if longer than the context.

    Args:
        row: gives the prompt: its tokens before the first learned one.
        other: gives the completion.
        most_tokens: the length limit of the result, in tokens.
    """
    cut_at, start = row.loss_mask.find(1), other.loss_mask.find(1)
    ids = (row.input_ids[:cut_at] + other.input_ids[start:])[:most_tokens]
    mask = (bytes(cut_at) + other.loss_mask[start:])[:most_tokens]
    return TokenisedExample(f"{row.id} with the completion of {other.id}", ids, mask)
