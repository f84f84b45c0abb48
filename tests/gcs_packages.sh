#!/usr/bin/env bash
# The driver of Google Cloud Storage, in the version of constraints.txt, beside the packages of the test environment:
#
#     bash tests/gcs_packages.sh PYTHON
#
# build/gcs    gcsfs with gRPC and Google's clients, which the test environment does without
set -euo pipefail

folder=build/gcs
mkdir -p build
rm -rf "$folder"
"$1" -m venv "$folder" &&
  "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/test_environment.pth" &&
  "$folder/bin/python" -m pip install --disable-pip-version-check --quiet -c constraints.txt gcsfs ||
  { rm -rf "$folder"; echo "gcsfs could not be installed: the tests with it are skipped" >&2; }
