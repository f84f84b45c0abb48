"""Continued pre-training: the mean cross-entropy of every token of plain text but the first of each piece."""

from __future__ import annotations

from luthier.ml.training.objectives.sft import Sft


class Pretraining(Sft):
    """Learn to continue with texts. A unit is a block: pieces of documents that do not see one another."""
