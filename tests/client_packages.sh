#!/usr/bin/env bash
# Clients that Luthier's API is tested with and that do not fit into the test environment:
#
#     bash tests/client_packages.sh PYTHON
#
# build/openai-oldest          the oldest `openai` package, beside the newest of the test environment. It needs the httpx
#                              of its time; put the folder first on PYTHONPATH. 1.18.0 is the first with the checkpoints of
#                              a fine-tuning job; pause and resume came later.
# build/third-party-clients    a virtual environment with libraries that speak OpenAI's or Anthropic's API. What the test
#                              environment has is not installed again.
set -euo pipefail

folder=build/openai-oldest
rm -rf "$folder"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -vE '^(openai|httpx|httpcore)==' constraints.txt >"$constraints"
"$1" -m pip install --disable-pip-version-check --quiet --target "$folder" --quiet -c "$constraints" \
  'openai==1.18.0' 'httpx<0.28' ||
  { rm -rf "$folder"; echo "openai 1.18.0 could not be installed: the tests with it are skipped" >&2; }

folder=build/third-party-clients
rm -rf "$folder"
# Without those that instructor wants older (jiter, and with it openai, and rich), and litellm (importlib_metadata).
grep -vE '^(jiter|openai|rich|typer|importlib_metadata)==' constraints.txt >"$constraints"
"$1" -m venv "$folder" &&
  "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/test_environment.pth" &&
  "$folder/bin/python" -m pip install --disable-pip-version-check --quiet -c "$constraints" \
    'openai==3.3.0' 'litellm==1.110.2' 'langchain-openai==1.7.4' 'instructor==1.17.0' 'llm==0.36' \
    'openai-agents==0.24.0' ||
  { rm -rf "$folder"; echo "the libraries of others could not be installed: the tests with them are skipped" >&2; }
