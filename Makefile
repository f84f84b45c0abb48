# make quickstart   a virtual environment, Luthier in it, and the main job from rows to verdict (no account, no GPU)
# make test         lint, types, layers and all tests
# make coverage     all tests, or TESTS="tests/core ...", and which lines and branches they leave out; slower than make test
# make drill        the slow ones: kills again and again, whole stories, long simulations
# make types        mypy as on macOS and on Windows (make lint does it for this system)
# make build/vllm   vLLM's build for processors in an environment of its own, for the drills that run against it
# make build/gcs    the driver of Google Cloud Storage in an environment of its own, for the tests with it
# make build/azure  the same of Azure Blob storage
# make build/trackers  MLflow's server and Trackio in environments of their own, for the tests against them
# make zoo          every family of models through the whole way, against plain transformers: the table of docs/models.md
# make lint         the first three of `make test` alone
# make format       let ruff put the files in order
# make docs         the documentation as a site, build/docs/site: strict, without a network
# make story-shop   the shop's tutorial, every command of it: from rows to recommendations held against popularity
# make story-law    the law firm's: from documents to invented citations, before and after, and a file for a laptop
# make story-thinking  arithmetic: rows with thoughts, trained, evaluated and served with and without them
# make notebooks    write the tutorials as notebooks again
# make models       the memory figures and the table of the catalogue of base models, by the planner
# make wheel        dist/luthier-*.whl, with the built assets of the pages
# make screenshots  draw docs/screenshots again: the pages on a desk in light, the main ones on a phone in dark

PYTHON ?= python3
SYSTEM_BIN ?= /usr/bin
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet
GPU_DEVICES ?= /dev/nvidiactl /dev/dxg
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
RESULTS := build/tests.xml
TESTS  ?= tests
# Tests wait for servers and child processes, so three processes end sooner than two on two cores; each needs memory of its own.
TEST_PROCESSES ?= 3

.DELETE_ON_ERROR:
.PHONY: quickstart test coverage drill types zoo lint format messages docs story-shop story-law story-thinking notebooks models wheel screenshots clean

quickstart: $(VENV)/installed $(VENV)/assets
	$(BIN)/luthier quickstart

# The package is compiled first: where PYTHONDONTWRITEBYTECODE is set, each process of a test would compile it again.
test: lint | $(VENV)/system-test $(VENV)/client-test $(VENV)/assets
	@mkdir -p build
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest -m "not drill" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --hypothesis-profile=same-examples --junitxml=$(RESULTS)
	@$(BIN)/python -c "$$SOME_TEST_RAN" $(RESULTS)

coverage: $(VENV)/installed-test | $(VENV)/system-test $(VENV)/client-test $(VENV)/assets
	@mkdir -p build
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m "not drill" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet -d build/coverage
	$(BIN)/python -m coverage report

drill: $(VENV)/installed-test $(VENV)/installed-ray types | $(VENV)/system-test $(VENV)/client-test $(VENV)/assets
	@mkdir -p build
	$(BIN)/python -m pytest -m drill --junitxml=$(RESULTS)
	@$(BIN)/python -c "$$SOME_TEST_RAN" $(RESULTS)

# A cache for each, which would otherwise be made again each time.
types: $(VENV)/installed-test
	$(BIN)/mypy --platform darwin --cache-dir build/mypy-darwin
	$(BIN)/mypy --platform win32 --cache-dir build/mypy-win32

zoo: $(VENV)/installed-test
	$(BIN)/python -m tests.zoo --jobs 2 --kept build/zoo --resume --json build/zoo.json --docs docs/models.md

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models: $(VENV)/installed
	$(BIN)/python benchmarks/model_catalog.py

LOCALE := src/luthier/platform/ui/locale
messages: $(VENV)/installed-test
	@mkdir -p build
	for domain in pages sentences scripts; do \
	  $(BIN)/pybabel -q extract -F $(LOCALE)/$$domain.cfg -k t -k Luthier.t --add-location=file --sort-by-file -w 120 -o build/$$domain.pot src/luthier && \
	  $(BIN)/pybabel -q update -D $$domain -i build/$$domain.pot -d $(LOCALE) --no-fuzzy-matching --ignore-obsolete \
	    --ignore-pot-creation-date -w 120 || exit 1; done

docs: $(VENV)/installed-docs
	$(BIN)/python docsite/build_docs.py

story-shop: $(VENV)/installed
	$(BIN)/python examples/story.py run docs/tutorials/shop.md

story-law: $(VENV)/installed-gguf
	$(BIN)/python examples/story.py run docs/tutorials/law_firm.md

story-thinking: $(VENV)/installed
	$(BIN)/python examples/story.py run docs/tutorials/thinking.md

notebooks: $(VENV)/installed
	$(BIN)/python examples/story.py notebook docs/tutorials/shop.md -o examples/shop/story.ipynb
	$(BIN)/python examples/story.py notebook docs/tutorials/law_firm.md -o examples/law_firm/story.ipynb
	$(BIN)/python examples/story.py notebook docs/tutorials/thinking.md -o examples/thinking/story.ipynb

wheel: $(VENV)/assets | $(BIN)/python
	@command -v npm >/dev/null || { echo "no npm here: a wheel carries the pages' assets, which Node builds (install nodejs and npm)"; exit 1; }
	@rm -f dist/luthier-*.whl
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps -w dist .

screenshots: $(VENV)/installed-test | $(VENV)/system-test $(VENV)/assets
	$(BIN)/python -m tests.browser.screenshots

clean:
	rm -rf $(VENV) build frontend/node_modules src/luthier/platform/ui/vendor

# Stamps: written after an install that went well, so that the next call does not install again. An install with the
# test tools covers the plain one.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python $(VENV)/torch-checked
	$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python $(VENV)/torch-checked
	$(PIP) -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/installed $(VENV)/installed-docs $(VENV)/installed-gguf

# PyPI's torch for Linux brings CUDA's libraries, several GiB. Without an NVIDIA GPU the build for processors is installed before it, where
# PyTorch's index answers; what torch needs comes with Luthier.
$(VENV)/torch-checked: | $(BIN)/python
	@if [ "$$(uname -s)" = Linux ] && [ -z "$(wildcard $(GPU_DEVICES))" ] && \
	  ! $(BIN)/python -c 'import importlib.util as u; raise SystemExit(u.find_spec("torch") is None)'; then \
	  $(PIP) --retries 1 --timeout 15 --no-deps --index-url $(TORCH_INDEX) 'torch>=2.9' || \
	  echo "$(TORCH_INDEX) does not answer: torch of PyPI is installed, with CUDA's libraries" >&2; fi
	@touch $@

# Not for `make test`: on a busy machine Ray's processes do not start in the time that it gives them.
$(VENV)/installed-ray: pyproject.toml constraints.txt | $(BIN)/python $(VENV)/torch-checked
	$(PIP) -c constraints.txt -e '.[ray]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(BIN)/python $(VENV)/torch-checked
	$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-gguf: pyproject.toml constraints.txt | $(BIN)/python $(VENV)/torch-checked
	$(PIP) -c constraints.txt -e '.[gguf]'
	@touch $@ $(VENV)/installed

# What the pages load that others have written: ECharts and HTMX, built by Node. Without Node the pages work as they do
# without JavaScript; a built wheel holds the files, so its users need none.
$(VENV)/assets: frontend/package-lock.json frontend/build.mjs frontend/echarts.mjs | $(BIN)/python
	@if command -v npm >/dev/null; then \
	  cd frontend && npm ci --ignore-scripts --no-audit --no-fund --silent && npm run --silent build && \
	  touch $(abspath $@); \
	else echo "no npm here: pages are built without ECharts and HTMX (install nodejs and npm, then make again)"; fi

# Servers that some tests run against. Without them those tests are skipped, each with its reason.
$(VENV)/system-test: tests/system_packages.sh | $(BIN)/python
	bash tests/system_packages.sh
	@touch $@

# The oldest client package that the API is tested with.
$(VENV)/client-test: tests/client_packages.sh | $(BIN)/python
	bash tests/client_packages.sh $(BIN)/python
	@touch $@

# vLLM pins versions of its own. Where it cannot be installed, tests against it are skipped, each with its reason.
build/vllm: tests/vllm_packages.sh | $(BIN)/python
	bash tests/vllm_packages.sh $(BIN)/python

# Neither fits into the test environment. Without them the tests against them are skipped.
build/trackers: tests/tracker_packages.sh constraints.txt | $(BIN)/python
	bash tests/tracker_packages.sh $(BIN)/python
	@touch $@

# The same of the driver of Google Cloud Storage.
build/gcs: tests/gcs_packages.sh constraints.txt | $(BIN)/python
	bash tests/gcs_packages.sh $(BIN)/python
	@touch $@

# And that of Azure Blob storage.
build/azure: tests/azure_packages.sh constraints.txt | $(BIN)/python
	bash tests/azure_packages.sh $(BIN)/python
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c "$$RIGHT_PYTHON"
	$(if $(filter file,$(origin PYTHON)),"$$($(PYTHON) -c "$$QUICK_PYTHON" $(SYSTEM_BIN))",$(PYTHON)) -m venv $(VENV)

# pytest ends with 0 when every test was skipped; here that counts as a failure.
define SOME_TEST_RAN
import sys, xml.etree.ElementTree as tree
suites = tree.parse(sys.argv[1]).getroot().iter("testsuite")
num_run = sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)
sys.exit(0 if num_run else "no test ran: expected at least one that was not skipped; see the reasons above")
endef
export SOME_TEST_RAN

define RIGHT_PYTHON
import sys
here = ".".join(map(str, sys.version_info[:3]))
fits = (3, 11) <= sys.version_info[:2] < (3, 15)
sys.exit(None if fits else f"{sys.executable} is Python {here}; expected 3.11 to 3.14: make PYTHON=python3.12 ...")
endef
export RIGHT_PYTHON

# A Python without profiles (PGO), as pyenv builds it, takes half as long again for all that is plain Python. Where no PYTHON= is named, the
# system's Python of the same version takes its place, which distributions build with profiles.
define QUICK_PYTHON
import os, subprocess, sys, sysconfig
first, system = sys.executable, os.path.join(sys.argv[1], "python%d.%d" % sys.version_info[:2])
is_quick = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "") or sys.base_prefix == "/usr"
makes_venvs = [system, "-c", "import ensurepip, venv"]
if is_quick or not os.path.exists(system) or subprocess.run(makes_venvs, stderr=subprocess.DEVNULL).returncode:
    print(first)
else:
    print(f"{first} was built without profiles (PGO): {system} is used (PYTHON= chooses another one)", file=sys.stderr)
    print(system)
endef
export QUICK_PYTHON
