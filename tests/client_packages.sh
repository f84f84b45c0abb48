#!/usr/bin/env bash
# The oldest `openai` package that Luthier's API is tested with, beside the newest of the test environment. It needs the
# httpx of its time, so it lies in a folder of its own: build/openai-oldest (put it first on PYTHONPATH).
#
#     bash tests/client_packages.sh PYTHON
#
# 1.18.0 is the first with the checkpoints of a fine-tuning job; pause and resume came later.
set -euo pipefail

folder=build/openai-oldest
rm -rf "$folder"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -v '^openai==' constraints.txt >"$constraints"
"$1" -m pip install --disable-pip-version-check --quiet --target "$folder" -c "$constraints" \
  'openai==1.18.0' 'httpx<0.28' ||
  { rm -rf "$folder"; echo "openai 1.18.0 could not be installed: the tests with it are skipped" >&2; }
