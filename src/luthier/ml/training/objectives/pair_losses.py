"""The losses of a preference pair that DPO can have, as functions of its two log-ratios.

All names and forms are those of TRL, which follow the authors' code. In the formulas h is the log-ratio of a whole
completion to the initial model, x = beta h its reward, s the logistic function, and e the label smoothing.

Sources: Mitchell, 2023, "A note on DPO with noisy preferences", equation 3 (`sigmoid` with e). Zhao et al., 2023,
"SLiC-HF: Sequence Likelihood Calibration with Human Feedback", arXiv:2305.10425 (`hinge`; on log-ratios, as in Liu et
al., 2023, arXiv:2309.06657). Chowdhury et al., 2024, "Provably Robust DPO: Aligning Language Models with Noisy
Feedback", arXiv:2403.00409 (`robust`). Ji et al., 2024, "Towards Efficient Exact Optimization of Language Model
Alignment", arXiv:2402.00856, equation 16 (`exo_pair`). Chen et al., 2024, "Noise Contrastive Alignment of Language
Models with Explicit Rewards", arXiv:2402.05369 (`nca_pair`). Jung et al., 2024, "Binary Classifier Optimization for
Large Language Model Alignment", arXiv:2404.04656 (`bco_pair`, without its shift of the reward). Wu et al., 2024,
"Self-Play Preference Optimization for Language Model Alignment", arXiv:2405.00675, equation 4.7 (`sppo_hard`, whose
winner wins for certain). D'Oosterlinck et al., 2024, "Anchored Preference Optimization and Contrastive Revisions",
arXiv:2408.06266, equations 7 and 8 (`apo_zero`, `apo_down`). Lambert et al., 2024, "Tulu 3: Pushing Frontiers in Open
Language Model Post-Training", arXiv:2411.15124 (`sigmoid_norm`, DPO on means a token).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from luthier.core.recipe import PairLoss


def smoothed(logits: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid(logits), as if a share of the labels were the wrong way round."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def pair_losses(kind: PairLoss, chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The losses of pairs, [P].

    Args:
        kind: Which loss; all others than `robust` and `exo_pair` may have no smoothing, and `sigmoid` may have it.
        chosen: [P], log-ratios of the chosen completions in nats; of `sigmoid_norm` their means a token.
        rejected: [P], of the rejected ones.
        beta: How strongly moving away from the initial model is penalised.
        label_smoothing: The share of pairs whose sides may be swapped by mistake.
    """
    x_w, x_l = beta * chosen, beta * rejected
    margin = x_w - x_l
    if kind == "hinge":
        return torch.relu(1 - margin)
    if kind == "robust":
        # Unbiased: in the mean over swapped labels it is the loss of those that are not swapped. It may be negative.
        clean, flipped = -F.logsigmoid(margin), -F.logsigmoid(-margin)
        return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    if kind == "exo_pair":
        # KL(p || q) of p = (s(margin), s(-margin)), the model's preference, from q = (1 - e, e), that of the labels
        log_w, log_l = F.logsigmoid(margin), F.logsigmoid(-margin)
        towards = log_w.exp() * (log_w - math.log1p(-label_smoothing))
        return towards + log_l.exp() * (log_l - math.log(label_smoothing))
    if kind == "nca_pair":
        return -F.logsigmoid(x_w) - 0.5 * F.logsigmoid(-x_w) - 0.5 * F.logsigmoid(-x_l)
    if kind == "bco_pair":
        return -F.logsigmoid(x_w) - F.logsigmoid(-x_l)
    if kind == "sppo_hard":
        target = 0.5 / beta  # nats: the chosen completion is to gain as much, the rejected one to lose it
        return (chosen - target).square() + (rejected + target).square()
    if kind == "apo_zero":
        return torch.sigmoid(-x_w) + torch.sigmoid(x_l)
    if kind == "apo_down":
        return torch.sigmoid(x_w) + torch.sigmoid(-margin)
    return smoothed(margin, label_smoothing)
