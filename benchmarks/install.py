#!/usr/bin/env python3
"""Installs: size and seconds of the wheel with sets of extras in empty environments, cold starts, and one small run.

    python benchmarks/install.py [--sets core gguf all] [--python python3.12] [--wheel dist/luthier-0.1.0-....whl]

Builds the wheel unless one is given, downloads what each set needs into `--packages` (not timed; kept for the next
call), and installs from there alone into an environment that is made for it: what is timed is unpacking, not the
network. In the first environment (`core`, without extras) it times `luthier --version` and `luthier up` until the first
answer, with an empty home, and trains a tiny model with an evaluation. Versions are those of `constraints.txt`, torch
is `--torch`.

Prints one JSON document at its end, and on stderr a row of a table after each set. Ends with 1 where an install, a
start or the run fails. Seconds of a busy machine mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "core": (),
    "gguf": ("gguf",),
    "server": ("postgresql", "s3", "oidc", "otel", "sandbox"),
    "trackers": ("tensorboard", "mlflow", "wandb", "trackio"),
    "exports": ("gguf", "onnx"),
    "all": ("all",),
}
_STARTS = 5
_ANSWER_SECONDS = 300.0
_SMOKE = """
import json
from pathlib import Path
from luthier.testing.tiny import make_tiny_model
make_tiny_model(Path("tiny"))
rows = [{"prompt": f"Is {n} even?", "completion": "yes" if n % 2 == 0 else "no"} for n in range(60)]
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
Path("recipe.yaml").write_text(
    "base_model: ./tiny\\ndata: {train: rows.jsonl, held_out: 0.2}\\ntraining: {max_steps: 4, global_batch_size: 8}\\n"
)
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """One install.

    Attributes:
        extras: the set, by its name in `SETS`.
        seconds: of `pip install` from local files.
        num_packages: distributions besides pip.
        installed_bytes: of all that lies in site-packages, byte code included.
        without_torch_bytes: the same without torch and the libraries of CUDA that it brings.
        downloaded_bytes: of the wheels that it was installed from.
    """

    extras: str
    seconds: float
    num_packages: int
    installed_bytes: int
    without_torch_bytes: int
    downloaded_bytes: int


def run(command: list[str], folder: Path) -> str:
    """The output of a command. It runs elsewhere, without this environment's modules; raises with its errors."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel of this working tree."""
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)], folder)
    (wheel,) = folder.glob("luthier-*.whl")
    return wheel


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def wanted(wheel: Path, extras: str, torch: str) -> list[str]:
    """What is handed to pip, with the tested versions."""
    named = ",".join(SETS[extras])
    return [f"luthier[{named}] @ {wheel.as_uri()}" if named else str(wheel), torch, "-c", str(ROOT / "constraints.txt")]


def install(options: argparse.Namespace, wheel: Path, extras: str, folder: Path) -> Installed:
    """Make an environment at `folder` and install one set into it."""
    packages = options.packages / extras
    packages.mkdir(parents=True, exist_ok=True)
    run([options.python, "-m", "venv", str(folder)], folder.parent)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    asked = wanted(wheel, extras, options.torch)
    # Not `pip download`: a package that only has a source distribution is built here, and not where it is timed.
    run([*pip, "wheel", "--wheel-dir", str(packages), "--find-links", str(packages), *asked], folder)
    began = time.perf_counter()
    run([*pip, "install", "--no-index", "--find-links", str(packages), *asked], folder)
    seconds = time.perf_counter() - began
    (site,) = (folder / "lib").glob("python*/site-packages")
    for own in [site / "pip", *site.glob("pip-*.dist-info")]:
        shutil.rmtree(own)
    whole = size_of(site)
    of_torch = sum(size_of(site / name) for name in ("torch", "nvidia", "triton") if (site / name).is_dir())
    return Installed(
        extras=extras,
        seconds=seconds,
        num_packages=len(list(site.glob("*.dist-info"))),
        installed_bytes=whole,
        without_torch_bytes=whole - of_torch,
        downloaded_bytes=size_of(packages),
    )


def command_start(luthier: Path, folder: Path) -> dict[str, float]:
    """Seconds of `luthier --version`: right after the install, and the median of later ones."""
    seconds = []
    for _ in range(1 + _STARTS):
        began = time.perf_counter()
        run([str(luthier), "--version"], folder)
        seconds.append(time.perf_counter() - began)
    return {"first_seconds": seconds[0], "median_seconds": statistics.median(seconds[1:])}


def server_start(luthier: Path, folder: Path) -> dict[str, float]:
    """Seconds of `luthier up` until /healthz and /readyz answer with 200: with an empty home, and once more."""
    found = {}
    for name in ("empty_home", "second_start"):
        command = [str(luthier), "up", "--port", "0", "--json", "--home", str(folder / "home")]
        began = time.perf_counter()
        with (folder / "server.log").open("ab") as log:
            server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            # It prints this line once it answers.
            url = json.loads(server.stdout.readline())["url"]
            for path in ("healthz", "readyz"):
                with urllib.request.urlopen(f"{url}/{path}", timeout=_ANSWER_SECONDS) as answer:
                    found[f"{name}_{path}_seconds"] = time.perf_counter() - began
                    assert answer.status == 200
        finally:
            server.terminate()
            server.wait(120)
    return found


def smoke(python: Path, luthier: Path, folder: Path) -> dict[str, Any]:
    """Train a tiny model on 48 rows and evaluate it on 12."""
    run([str(python), "-c", _SMOKE], folder)
    began = time.perf_counter()
    home = str(folder / "home")
    document = json.loads(run([str(luthier), "train", "recipe.yaml", "--home", home, "--json"], folder))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "status": document["status"]}


HEAD = "| extras | packages | downloads | installed | without torch | pip install |\n|---|---:|---:|---:|---:|---:|"


def row(one: Installed) -> str:
    """An install as a row of the table."""
    sizes = (one.downloaded_bytes, one.installed_bytes, one.without_torch_bytes)
    shown = " | ".join(f"{size / 2**20:,.0f} MiB" for size in sizes)
    return f"| {one.extras} | {one.num_packages} | {shown} | {one.seconds:.0f} s |"


def main() -> None:
    """Install, start, train, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    cli.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    cli.add_argument("--wheel", type=Path)
    cli.add_argument("--torch", default=f"torch=={version('torch')}", help="the requirement of torch")
    cli.add_argument("--packages", type=Path, default=Path(tempfile.gettempdir()) / "luthier-packages")
    options = cli.parse_args()
    found: list[Installed] = []
    document: dict[str, Any] = {"benchmark": "install"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = (options.wheel or build(folder)).resolve()
        document["python"] = run([options.python, "--version"], folder).strip()
        document |= {"torch": options.torch, "wheel_bytes": wheel.stat().st_size}
        print(f"wheel: {wheel.stat().st_size / 2**20:.1f} MiB\n\n{HEAD}", file=sys.stderr, flush=True)
        for extras in options.sets:
            place = folder / extras
            found.append(install(options, wheel, extras, place))
            print(row(found[-1]), file=sys.stderr, flush=True)  # as it comes: a later set may fail, or take minutes
            if extras == options.sets[0]:
                python, luthier = place / "bin" / "python", place / "bin" / "luthier"
                document["luthier_version"] = command_start(luthier, folder)
                document["luthier_up"] = server_start(luthier, folder)
                document["smoke"] = smoke(python, luthier, folder)
            shutil.rmtree(place)
        document["installs"] = [asdict(one) for one in found]
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
