"""Run by tests in a process of its own, to be killed: trains a recipe or goes on with a run in a given home."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from luthier.core.errors import LuthierError
from luthier.service.context import Context
from luthier.service.recipes import load_recipe
from luthier.service.training import resume, train


def main(home: str, what: str, name: str) -> int:
    """`train RECIPE` or `resume RUN_ID`; prints the outcome, or the error, as JSON."""
    torch.set_num_threads(1)
    with Context.open(Path(home)) as context:
        try:
            if what == "train":
                outcome = train(context, load_recipe(Path(name)), base_dir=Path(name).parent)
            else:
                outcome = resume(context, name)
        except LuthierError as error:
            sys.stdout.write(json.dumps({"error": error.as_json()}))
            return error.exit_code
    sys.stdout.write(json.dumps(outcome.as_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
