# make run    set up and serve            make test         set up and run the tests
# make check  lint, types and tests       make test-faults  the longer fault and soak runs
# make worker set up and work tasks     (docs: README, "Many machines")
# make bench  measure (QUICK=1: short)    make lock         resolve requirements*.in anew

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run worker setup setup-tests test-programs test test-faults check lint types bench bench-gpu lock clean

run: setup
	exec $(BIN)/gunicorn -c gunicorn.conf.py app:app

worker: setup
	exec $(BIN)/celery -A audiocraft_api.celery_app worker -P threads

setup: $(VENV)/.service build/.native checkpoints/demo

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Python 3.11 is needed; say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# --no-deps: the lock is complete, and audiocraft's own pins of 2023 must not be asked (docs/installing.md).
$(VENV)/.service: requirements.txt | $(VENV)/.python
	$(BIN)/pip install --quiet --no-deps $$(grep -oE '^(setuptools|wheel)==[^ ;]+' requirements.txt)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -r requirements.txt
	touch $@

$(VENV)/.tests: requirements-dev.txt $(VENV)/.service
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -r requirements-dev.txt
	touch $@

# Native kernels, where there is a C++ compiler; without one the service runs on torch's own, and the next make asks again.
build/.native: $(wildcard audiocraft_api/engine/cpu/native/*) | $(VENV)/.service
	$(BIN)/python -m audiocraft_api.engine.cpu.native.build
	@if ls build/native/*.so >/dev/null 2>&1; then touch $@; fi

checkpoints/demo: | $(VENV)/.service
	$(BIN)/python -m audiocraft_api.model.demo checkpoints

setup-tests: test-programs setup $(VENV)/.tests

test-programs:
	scripts/install-test-programs

# Files of tests share the cores; threads that wait for each other would hold up the other files (tests/test_native.py has them).
test: export OMP_NUM_THREADS := 1
test: setup-tests
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not fault and not timing" -n auto --maxprocesses 4 --dist loadfile $(ARGS)
	$(BIN)/coverage run -m pytest -m timing $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered $(if $(ARGS),,--fail-under=90)

test-faults: setup-tests
	$(BIN)/pytest -m fault $(ARGS)

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tests
	$(BIN)/mypy

check: lint types test

bench: setup
	$(BIN)/python -m bench $(if $(QUICK),--quick)

bench-gpu: setup
	$(BIN)/python -m bench.gpu

lock: $(VENV)/.tests
	$(BIN)/uv pip compile --quiet --no-header --universal --python-version 3.11 requirements.in -o requirements.txt $(LOCK)
	$(BIN)/uv pip compile --quiet --no-header --universal --python-version 3.11 requirements-dev.in -o requirements-dev.txt $(LOCK)

clean:
	rm -rf $(VENV) build checkpoints .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
