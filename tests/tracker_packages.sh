#!/usr/bin/env bash
# Trackers that do not fit into the test environment, in the versions of constraints.txt:
#
#     bash tests/tracker_packages.sh PYTHON
#
# build/mlflow     MLflow with its server, of which the test environment has the client alone
# build/trackio    Trackio beside the packages of the test environment
set -euo pipefail

pin() { sed -n "s/^$1==//p" constraints.txt; }
install() { "$1/bin/python" -m pip install --disable-pip-version-check --quiet "${@:2}"; }

mkdir -p build
folder=build/mlflow
rm -rf "$folder"
"$1" -m venv "$folder" && install "$folder" "mlflow==$(pin mlflow-skinny)" ||
  { rm -rf "$folder"; echo "mlflow could not be installed: the tests with its server are skipped" >&2; }

folder=build/trackio
rm -rf "$folder"
"$1" -m venv "$folder" &&
  "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/test_environment.pth" &&
  install "$folder" -c constraints.txt trackio ||
  { rm -rf "$folder"; echo "trackio could not be installed: the tests with it are skipped" >&2; }
