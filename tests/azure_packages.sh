#!/usr/bin/env bash
# The driver of Azure Blob storage, in the version of constraints.txt, beside the packages of the test environment:
#
#     bash tests/azure_packages.sh PYTHON
#
# build/azure    adlfs with Azure's clients, which the test environment does without
set -euo pipefail

folder=build/azure
mkdir -p build
rm -rf "$folder"
"$1" -m venv "$folder" &&
  "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/test_environment.pth" &&
  "$folder/bin/python" -m pip install --disable-pip-version-check --quiet -c constraints.txt adlfs ||
  { rm -rf "$folder"; echo "adlfs could not be installed: the tests with it are skipped" >&2; }
