"""Rows of tasks, and the figures that a kind makes of answers to them."""

import numpy as np
import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.ports import Score
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow


class Bench:
    """Builds rows, and judges outputs or likelihoods of options by all metrics of a kind."""

    def __init__(self, folder):
        self.folder = folder

    def row(self, line, prompt="What?", answer="an answer", **item):
        messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
        example = Example(id=f"rows.jsonl:{line}", conversation=Conversation(messages=messages))
        return TaskRow(example, {"prompt": prompt, "answer": answer, **item})

    def observed(self, rows, outputs=(), option_nats=()):
        return Observations(
            outputs=tuple(outputs),
            references=tuple(row.example.reference or "" for row in rows),
            items=tuple(row.item for row in rows),
            prompts=tuple(str(row.item["prompt"]) for row in rows),
            option_scores=[[Score(nll_nats=n, num_tokens=1, num_correct=0) for n in nats] for nats in option_nats],
            option_bytes=[[1] * len(nats) for nats in option_nats],
        )

    def metrics(self, kind, task, rows, allows_code=False):
        kind.check(task, rows)
        return {m.name: m for m in kind.metrics(task, rows, Resources(self.folder, allows_code=allows_code))}

    def figures(self, kind, task, rows, outputs=(), option_nats=(), allows_code=False):
        observed = self.observed(rows, outputs, option_nats)
        found = {}
        for name, metric in self.metrics(kind, task, rows, allows_code).items():
            stats = metric.statistics(observed)
            assert stats.shape[0] == len(rows)
            # The bootstrap hands over many sums at once.
            assert metric.aggregate(np.stack([stats.sum(axis=0)] * 3)).shape == (3,)
            found[name] = float(metric.aggregate(stats.sum(axis=0)))
        return found


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)
