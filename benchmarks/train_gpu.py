#!/usr/bin/env python3
"""Speed, share of the card's peak and memory of training models of 7 to 8 billion random weights, against others.

    python benchmarks/train_gpu.py                                       # all of it, on the GPU
    python benchmarks/train_gpu.py --only llama-3-8b/lora --minutes 9    # a part; once more continues from there
    python benchmarks/train_gpu.py --shape tiny --device cpu             # does the script itself work?

Every measurement is one child process: a shape, a method, a length, a system, a round. Systems take turns within a
round. Each is written to its own file under --out when it is done, and not measured again: a run that is cut off goes
on. A system that is not installed, or a run that does not fit, is a line in the table and no error.

Systems: `luthier` as it plans by itself; `luthier-padded`, `luthier-compiled` and `luthier-no-liger` with that one
thing otherwise; `transformers`, a plain loop over transformers and PEFT; `trl`, `unsloth` and `torchtune` where they
are installed (--python names an interpreter that has them). MFU is the operations that a step must do (forward,
backward, adapters; no recomputation, attention by causal pairs), over the card's data sheet rate in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from model_shapes import SHAPES

HERE = Path(__file__).resolve().parent
OURS = ("luthier", "luthier-padded", "luthier-compiled", "luthier-no-liger")
PEERS = ("transformers", "trl", "unsloth", "torchtune")
_CHILD_SECONDS = 540


class Case(NamedTuple):
    """One measurement."""

    shape: str
    method: str
    length: int
    rows: str
    system: str
    round: int

    @property
    def name(self) -> str:
        return f"{self.shape}/{self.method}/{self.rows}-{self.length}/{self.system}/{self.round}"


def main() -> None:
    """Measure what is missing, then write the table and the document."""
    args = _arguments()
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    cases = list(_cases(args))
    for number, case in enumerate(cases):
        file = args.out / f"{case.name.replace('/', '+')}.json"
        if file.exists():
            continue
        if time.monotonic() > end:
            print(f"time is up: {len(cases) - number} measurements may be left; the same command continues", flush=True)
            break
        print(f"{case.name} ...", flush=True)
        found = case._asdict() | _measure(case, args)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"    {_in_short(found)}", flush=True)
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(args.out.glob("*+*.json"))]
    document = {"machine": next((r["machine"] for r in results if "machine" in r), None), "results": results}
    (args.out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = _table(results)
    (args.out / "results.md").write_text(table, encoding="utf-8")
    print(table)


def _arguments() -> argparse.Namespace:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=["llama-3-8b", "qwen-2.5-7b"])
    cli.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    cli.add_argument("--methods", nargs="+", choices=["full", "lora", "qlora"], default=["lora", "qlora", "full"])
    cli.add_argument("--lengths", nargs="+", type=int, default=None, help="tokens; 512 to 32,768 where silent")
    cli.add_argument("--rows", nargs="+", choices=["equal", "mixed"], default=None, help="both where silent")
    cli.add_argument("--systems", nargs="+", choices=[*OURS, *PEERS], default=None)
    cli.add_argument("--rounds", type=int, default=None)
    cli.add_argument(
        "--tokens-a-step", type=int, default=None, help="global batch and micro-batch; 32,768 where silent"
    )
    cli.add_argument("--steps", type=int, default=5, help="timed; three more warm up")
    cli.add_argument("--checkpointing", choices=["auto", "true", "false"], default="auto")
    cli.add_argument(
        "--only", default="", help="measure only where this is part of SHAPE/METHOD/ROWS-LENGTH/SYSTEM/ROUND"
    )
    cli.add_argument("--minutes", type=float, default=1e9, help="begin nothing new after that long")
    cli.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="interpreter for trl, unsloth, torchtune"
    )
    cli.add_argument("--out", type=Path, default=None)
    args = cli.parse_args()
    is_trial = args.device == "cpu"
    args.rows = args.rows or (["mixed"] if is_trial else ["equal", "mixed"])
    args.lengths = args.lengths or ([64] if is_trial else [512, 2048, 8192, 32_768])
    args.systems = args.systems or (["luthier", "transformers"] if is_trial else [*OURS, *PEERS])
    args.rounds = args.rounds or (1 if is_trial else 3)
    args.tokens_a_step = args.tokens_a_step or (512 if is_trial else 32_768)
    args.out = args.out or HERE.parent / ".bench" / ("train_gpu_trial" if is_trial else "train_gpu")
    return args


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    """Round by round, so that what is there after a while has every system in it."""
    for number in range(args.rounds):
        for shape, method, length, rows in product(args.shape, args.methods, args.lengths, args.rows):
            systems = args.systems if number % 2 == 0 else args.systems[::-1]
            for system in systems:
                case = Case(shape, method, length, rows, system, number)
                if args.only in case.name:
                    yield case


def _measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    request = case._asdict() | {
        "device": args.device,
        "tokens_a_step": max(args.tokens_a_step, case.length),
        "num_steps": args.steps,
        "checkpointing": args.checkpointing,
    }
    if case.system in OURS:
        return _child(sys.executable, "train_gpu_ours.py", request)
    known = _prediction(case, args, request)
    if "failed" in known:
        return known
    python = sys.executable if case.system == "transformers" else str(args.python)
    return known | _child(python, "train_gpu_peers.py", request | known)


def _prediction(case: Case, args: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    """What the planner knows of this project's own run: operations, memory, and whether activations must go."""
    file = args.out / f"known-{case.shape}-{case.method}-{case.rows}-{case.length}.json"
    if not file.exists():
        found = _child(sys.executable, "train_gpu_ours.py", request | {"system": "luthier", "is_prediction": True})
        if "failed" in found:
            return found
        file.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _child(python: str, script: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a child prints last, or why it printed nothing."""
    command = [python, str(HERE / script), json.dumps(request)]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if request["device"] == "cpu" else {}
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False, env=os.environ | hidden
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {_CHILD_SECONDS} s"}
    lines = ran.stdout.strip().splitlines()
    if ran.returncode == 0 and lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])  # type: ignore[no-any-return]
    said = [line for line in ran.stderr.strip().splitlines() if line.strip()]
    return {"failed": said[-1][:300] if said else f"exit code {ran.returncode}"}


def _in_short(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"no figure: {found['failed']}"
    return (
        f"{found['tokens_per_second']:,.0f} tokens/s, MFU {found['mfu']:.1%}, "
        f"{found['peak_bytes'] / 2**30:.2f} GiB (predicted {found['predicted_peak_bytes'] / 2**30:.2f})"
    )


def _table(results: list[dict[str, Any]]) -> str:
    """One row for each shape, method, kind of rows and system: medians over the rounds, and the ratio to `luthier`."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for found in results:
        groups.setdefault((found["shape"], found["method"], found["rows"], found["length"]), []).append(found)
    lines = [
        "| model | method | rows | system | tokens/s | MFU | peak GiB (predicted) | luthier / this, by rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (shape, method, rows, length), members in sorted(groups.items(), key=lambda item: str(item[0])):
        ours = {m["round"]: m["tokens_per_second"] for m in members if m["system"] == "luthier" and "failed" not in m}
        for system in [s for s in (*OURS, *PEERS) if any(m["system"] == s for m in members)]:
            of_system = [m for m in members if m["system"] == system]
            good = [m for m in of_system if "failed" not in m]
            head = f"| {shape} | {method} | {rows} of {length:,} | {system} |"
            if not good:
                lines.append(f"{head} no figure: {of_system[0]['failed'].replace('|', '/')} | | | |")
                continue
            speed, mfu, peak, predicted = (
                statistics.median(m[key] for m in good)
                for key in ("tokens_per_second", "mfu", "peak_bytes", "predicted_peak_bytes")
            )
            ratios = [ours[m["round"]] / m["tokens_per_second"] for m in good if m["round"] in ours]
            said = ", ".join(f"{ratio:.2f}" for ratio in ratios) if system != "luthier" else ""
            lines.append(f"{head} {speed:,.0f} | {mfu:.1%} | {peak / 2**30:.2f} ({predicted / 2**30:.2f}) | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
