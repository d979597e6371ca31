# What a user runs. Everything happens in .venv; the first target that needs it creates and fills it.

# Interpreter to create .venv with: Python 3.10 to 3.13.
PYTHON ?= python3
# Processes that run tests side by side.
TEST_WORKERS ?= 2
# More arguments for pytest: make test PYTEST_ARGS="tests/ops -x"
PYTEST_ARGS ?=

VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
# The test processes share the cores; torch's threads on top of them only slow each other down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup demo gpu-check test test-slow lint docs format doctor clean distclean

help:  ## Lists the targets
	@echo "make TARGET [PYTHON=python3.11]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Creates .venv and installs everything into it (about 3 GB to download)

# The stamp is written last, so that an interrupted or failed install is continued by the next call.
SETUP_FILES := setup.py pyproject.toml constraints.txt \
	tools/setup_environment.py \
	$(addprefix regseg_d2/installation/,install_detectron2.py detectron2_wheel.py pip_runner.py)

$(STAMP): $(SETUP_FILES)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there; name a Python 3.10 to 3.13: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) tools/setup_environment.py --venv $(VENV)

# The interpreter that .venv was made from may be gone since; then the set-up has to run whatever the stamp says.
ifneq ($(shell test -x $(BIN)/python && echo works),works)
.PHONY: $(STAMP)
endif

demo: $(STAMP)  ## Trains a baseline and the same network with ContrastSeg, and compares them (minutes on a CPU)
	@$(BIN)/python tools/demo_comparison.py

# Tests start hundreds of processes, which would each compile what they import where Python may not write
# bytecode (PYTHONDONTWRITEBYTECODE).
.PHONY: bytecode
bytecode: $(STAMP)
	@$(BIN)/python -m compileall -q regseg_d2 tests $$(ls -d $(VENV)/lib/*/site-packages/detectron2 2>/dev/null)

test: bytecode  ## Runs the tests that are fast
	$(PYTEST) -m "not slow"

test-slow: bytecode  ## Runs all tests
	$(PYTEST)

gpu-check: $(STAMP)  ## Runs all that needs a GPU, in at most nine minutes: tests, benchmarks, trainings on CamVid
	@$(BIN)/python tools/gpu_check.py

lint: $(STAMP)  ## Checks format, lint, types and that imports go down only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m mypy regseg_d2

docs: $(STAMP)  ## Builds the documentation as a site, in build/site
	@$(BIN)/python tools/make_docs.py

format: $(STAMP)  ## Formats the code and repairs what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doctor: $(STAMP)  ## Shows versions and what works on this machine
	@$(BIN)/python -m regseg_d2.doctor

clean:  ## Removes caches, build outputs and what the demo wrote (output/demo); trained runs stay
	rm -rf build dist output/demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean  ## Removes .venv too
	rm -rf $(VENV) *.egg-info
