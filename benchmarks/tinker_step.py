"""A training step of the Tinker SDK against a step of the training loop, on the same batches.

    python benchmarks/tinker_step.py [--model NAME] [--rank 16] [--rows 16] [--tokens 256] [--learned 0.5] [--pairs 5]

A server with the home of LUTHIER_HOME is started on a free port, and the SDK trains against it over HTTP. The loop
trains in this process with as many threads. Steps alternate, one of each; the first of both is left out. Reported: the
median of the ratios of pairs, with its range, and the differences of losses and weights after all steps.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.features.tinker_api.records import parse_path
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import running_server

RATE = 1e-4
PATIENCE_SECONDS = 600


def rows_of(num: int, num_tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random rows, a fifth shorter or longer than the mean."""
    draw = random.Random(seed)
    lengths = [draw.randint(int(num_tokens * 0.8), int(num_tokens * 1.2)) for _ in range(num)]
    return [[draw.randrange(10, vocabulary) for _ in range(length)] for length in lengths]


class Loop:
    """The training loop, a step at a time."""

    def __init__(self, plan: Plan, rows: list[list[list[int]]], learned: float) -> None:
        from luthier.ml.inference.batches import length_batches
        from luthier.ml.training.checkpoint import LoopState
        from luthier.ml.training.fit import EarlyStopping
        from luthier.ml.training.model import TrainableModel
        from luthier.ml.training.objectives.rules import load_objective
        from luthier.ml.training.optimizer import MasterOptimizer

        changes = {"learning_rate": RATE, "num_warmup_steps": 0, "clip_gradient_norm": 1e9, "weight_decay": 0.0}
        self.plan = plan.model_copy(update={"training": plan.training.model_copy(update=changes)})
        self.model = TrainableModel.load(self.plan)
        self.objective = load_objective(self.plan.objective)
        self.optimizer = MasterOptimizer(self.model.module, self.plan.training)
        self.state = LoopState(plan_hash=plan.hash, early_stopping=EarlyStopping(patience=0))
        self.units = [
            (TokenisedExample(f"{step} {i}", array("i", ids), bytes(mask(ids, learned))),)
            for step, batch in enumerate(rows)
            for i, ids in enumerate(batch)
        ]
        self.batches = []
        for step, batch in enumerate(rows):
            most = plan.training.micro_batch_tokens
            cut = length_batches([len(ids) for ids in batch], max_tokens=most, max_rows=64)
            self.batches.append(tuple(tuple(step * len(batch) + i for i in part) for part in cut))

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The micro-batches of a step."""
        return self.batches[step]

    def share(self, step: int, _rank: int, _size: int) -> tuple[tuple[int, ...], ...]:
        """All of them."""
        return self.batches[step]

    def shared_tokens(self, _: Any) -> tuple[int, ...]:
        """None."""
        return ()

    def epoch_of(self, _: int) -> float:
        """Unused."""
        return 0.0

    def run(self) -> tuple[float, float]:
        """Seconds and loss of the next step."""
        from luthier.ml.training.step import one_step

        start = time.perf_counter()
        self.state, event = one_step(
            self.plan, self.model, self.objective, self.optimizer, self.units, self, self.state
        )
        return time.perf_counter() - start, event.loss


def mask(ids: list[int], learned: float) -> list[int]:
    """1 for the learned share at the end of a row."""
    return [int(place >= len(ids) * (1 - learned)) for place in range(len(ids))]


def sdk_step(client: Any, batch: list[list[int]], learned: float) -> tuple[float, float]:
    """Seconds and loss of a step of the SDK."""
    num = sum(sum(mask(ids, learned)) for ids in batch)
    data = [
        tinker.types.Datum(
            model_input=tinker.types.ModelInput.from_ints(ids[:-1]),
            loss_fn_inputs={
                "target_tokens": np.array(ids[1:], dtype=np.int64),
                "weights": np.array(mask(ids, learned)[1:], dtype=np.float32) / num,
            },
        )
        for ids in batch
    ]
    start = time.perf_counter()
    passed = client.forward_backward(data, "cross_entropy")
    stepped = client.optim_step(tinker.types.AdamParams(learning_rate=RATE, beta2=0.999, eps=1e-8))
    loss = passed.result(PATIENCE_SECONDS).metrics["loss:sum"]
    stepped.result(PATIENCE_SECONDS)
    return time.perf_counter() - start, loss


def main() -> None:
    """Run both and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--learned", type=float, default=0.5)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--unembed", action="store_true", help="with an adapter on the output head")
    asked = parser.parse_args()
    with Context.open() as context:
        home, key = context.home, create_key(context, "tinker_step", scopes=("train", "infer", "read"))[1]
    with running_server(home, num_workers=0) as server:
        service = tinker.ServiceClient(api_key=f"tml-{key}", base_url=f"{server.url}/tinker")
        client = service.create_lora_training_client(
            asked.model, rank=asked.rank, seed=1, train_unembed=asked.unembed
        ).result()
        with Context.open(home) as context:
            model = context.tinker.model("default", client.model_id)
        torch.set_num_threads(model.plan.training.num_threads)
        vocabulary = 10_000
        batches = [rows_of(asked.rows, asked.tokens, vocabulary, seed) for seed in range(asked.pairs + 1)]
        loop = Loop(model.plan, batches, asked.learned)
        ratios, apart = [], 0.0
        for number, batch in enumerate(batches):
            ours, own_loss = loop.run()
            theirs, loss = sdk_step(client, batch, asked.learned)
            apart = max(apart, abs(loss - own_loss))
            print(f"pair {number}: loop {ours:.3f} s, SDK {theirs:.3f} s, ratio {theirs / ours:.3f}")
            if number:
                ratios.append(theirs / ours)
        path = client.save_weights_for_sampler(f"bench-{time.time_ns()}").result(PATIENCE_SECONDS).path
        with Context.open(home) as context:
            one = context.tinker.checkpoint("default", *parse_path(path))
            file = Path(context.settings.run_folder(model.run_id)) / "tinker" / one.checkpoint_id / "adapter"
        difference = weights_apart(loop, file / "adapter_model.safetensors")
        service.close("success").result(PATIENCE_SECONDS)
    print(
        f"{asked.model}, rank {asked.rank}, {asked.rows} rows of mean {asked.tokens} tokens, {asked.learned:.0%} "
        f"learned, {model.plan.training.precision}, {torch.get_num_threads()} threads: SDK / loop "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs); losses differ "
        f"by at most {apart:.2e} nats, weights by {difference:.2e}"
    )


def weights_apart(loop: Loop, file: Path) -> float:
    """The largest difference of a weight."""
    from safetensors.torch import load_file

    found = load_file(file)
    own = {name.replace(".default.", "."): weight for name, weight in loop.optimizer.weight_state().items()}
    return max(float((found[name].float() - weight).abs().max()) for name, weight in own.items())


if __name__ == "__main__":
    main()
