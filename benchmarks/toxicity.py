#!/usr/bin/env python3
"""Toxicity: fits the word list's weights on Davidson et al. 2017 and shows what it can and cannot see.

    python benchmarks/toxicity.py

Weights: logistic regression on the training part (60% of the tweets, by SHA-256 of the text), both classes weighted the
same. Precision, recall and calibration on the other 40%; then HateCheck (Roettger et al. 2021) by functionality. The
weights in `luthier/ml/data/text/toxicity.py` are those printed here. One JSON document.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from luthier.ml.data.text.toxicity import CLASSES, INTERCEPT, THRESHOLD, WEIGHTS, english, features

ROOT = Path(__file__).resolve().parents[1]
TRAIN_FRACTION = 0.6
RIDGE = 1.0
NUM_BINS = 10
# What a list of words cannot know: what the words do there.
USES_WORDS_WITHOUT_HATE = (
    "slur_homonym_nh",
    "slur_reclaimed_nh",
    "profanity_nh",
    "negate_neg_nh",
    "counter_quote_nh",
    "counter_ref_nh",
    "target_obj_nh",
    "target_indiv_nh",
    "target_group_nh",
)
Array = npt.NDArray[np.float64]


def main() -> None:
    """Fit, measure, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = cli.parse_args()
    inputs, labels, is_train = davidson(args.data / "davidson_hate" / "labeled_data.csv")
    fitted = fit(inputs[is_train], labels[is_train])
    document = {
        "benchmark": "toxicity",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "fitted": {
            "intercept": round(fitted[0], 3),
            "weights": dict(zip(CLASSES, np.round(fitted[1:], 3).tolist(), strict=True)),
        },
        "in_use": {"intercept": INTERCEPT, "weights": dict(WEIGHTS)},
        "num_train": int(is_train.sum()),
        "davidson": measured(np.round(fitted, 3), inputs[~is_train], labels[~is_train]),
        "hatecheck": hatecheck(args.data / "hatecheck" / "test_suite_cases.csv", np.round(fitted, 3)),
    }
    print(json.dumps(document, indent=2))


def davidson(file: Path) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Features, labels (1: hate or offensive) and which tweets are for training."""
    words, inputs, labels, is_train = english(), [], [], []
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            inputs.append(features(words.find(row["tweet"]), CLASSES))
            labels.append(float(row["class"] != "2"))
            share = int(hashlib.sha256(row["tweet"].encode()).hexdigest()[:8], 16) / 2**32
            is_train.append(share < TRAIN_FRACTION)
    return np.array(inputs), np.array(labels), np.array(is_train)


def fit(inputs: Array, labels: Array) -> Array:
    """Intercept and weights (none below 0) of the regression, with both classes weighted the same and a ridge of 1.

    Tweets that threaten are too few to learn from, so a threat alone is set to reach the threshold.
    """
    design = np.column_stack([np.ones(len(inputs)), inputs])
    row_weights = balance(labels)

    def loss(parameters: Array) -> tuple[float, Array]:
        scores = design @ parameters
        log_loss = np.logaddexp(0, scores) - labels * scores
        gradient = design.T @ (row_weights * (1 / (1 + np.exp(-scores)) - labels))
        penalty = np.concatenate([[0.0], parameters[1:]])
        return float(row_weights @ log_loss + RIDGE / 2 * penalty @ penalty), gradient + RIDGE * penalty

    bounds: list[tuple[float | None, float | None]] = [(None, None)] + [(0, None)] * inputs.shape[1]
    found: Array = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    found[1 + CLASSES.index("threat")] = round(0.05 - found[0], 3)
    return found


def balance(labels: Array) -> Array:
    """Weights with which both classes count the same, of mean 1."""
    return np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))


def probabilities(parameters: Array, inputs: Array) -> Array:
    """Of each row, that it is toxic."""
    return 1 / (1 + np.exp(-(parameters[0] + inputs @ parameters[1:])))


def measured(parameters: Array, inputs: Array, labels: Array) -> dict[str, Any]:
    """Precision, recall and false alarms at 0.5 with 95% intervals, and the calibration, classes weighted the same."""
    found = probabilities(parameters, inputs)
    said, row_weights = found >= THRESHOLD, balance(labels)
    recall = wilson(int((said & (labels == 1)).sum()), int((labels == 1).sum()))
    false_alarms = wilson(int((said & (labels == 0)).sum()), int((labels == 0).sum()))
    bins, error = [], 0.0
    for low in np.arange(NUM_BINS) / NUM_BINS:
        inside = (found >= low) & (found < low + 1 / NUM_BINS)
        if weight := row_weights[inside].sum():
            said_mean, is_mean = (float(row_weights[inside] @ v[inside] / weight) for v in (found, labels))
            error += abs(said_mean - is_mean) * weight / row_weights.sum()
            bins.append(
                {
                    "from": round(float(low), 1),
                    "num": int(inside.sum()),
                    "said": round(said_mean, 3),
                    "is": round(is_mean, 3),
                }
            )
    return {
        "num": len(labels),
        "num_toxic": int(labels.sum()),
        "precision": wilson(int((said & (labels == 1)).sum()), int(said.sum())),
        "recall": recall,
        "false_alarms": false_alarms,
        "precision_if_toxic_are": {
            str(prior): round(prior * recall[0] / (prior * recall[0] + (1 - prior) * false_alarms[0]), 3)
            for prior in (0.5, 0.1, 0.01)
        },
        "calibration_error": round(error, 4),
        "calibration": bins,
    }


def hatecheck(file: Path, parameters: Array) -> dict[str, Any]:
    """Accuracy at 0.5 overall, on groups, and by functionality."""
    words, right, no_word = english(), defaultdict(list), []
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            found = words.find(row["test_case"])
            said = probabilities(parameters, np.array([features(found, CLASSES)]))[0] >= THRESHOLD
            is_hateful = row["label_gold"] == "hateful"
            is_right = bool(said) == is_hateful
            name = row["functionality"]
            right[name].append(is_right)
            right["all"].append(is_right)
            right["hateful" if is_hateful else "not hateful"].append(is_right)
            if name in USES_WORDS_WITHOUT_HATE:
                right["not hateful, uses such words, negation or quotation"].append(is_right)
            if is_hateful:
                strong = any(word.kind in ("slur", "insult", "profanity") for word in found)
                right["hateful, with a slur or profanity" if strong else "hateful, without slur or profanity"].append(
                    is_right
                )
                if not found:
                    no_word.append(is_right)
    right["hateful, no word of the list"] = no_word
    return {name: {"num": len(r), "accuracy": wilson(sum(r), len(r))} for name, r in right.items()}


def wilson(num: int, of: int) -> list[float]:
    """A proportion with its 95% interval (Wilson 1927)."""
    if not of:
        return [0.0, 0.0, 1.0]
    z, p = 1.959964, num / of
    centre, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return [round(p, 4), *(abs(round((centre + sign * half) / (1 + z * z / of), 4)) for sign in (-1, 1))]


if __name__ == "__main__":
    main()
