# make run     set up and serve           make test         set up and run the tests
# make check   lint and test              make test-faults  longer runs: faults, soaks, long music, others' clients
# make lint    all linters, mypy          make smoke        a few tests on every other Python found here
# make worker  set up and work on tasks   make bench        measure (QUICK=1: short)
# make lock    resolve requirements*.in   make coverage     which code the tests run
# make fuzz    search for inputs that break the parsers, 10 minutes each (FUZZ_SECONDS=30: shorter)
# make clean   delete everything that make created
# make train-demo  train the demo models anew (demo_models/README.md; QUICK=1: two minutes, only to test)
#
# PYTHON chooses the interpreter, VENV the directory of the virtual environment. TORCH=cpu: PyTorch without CUDA.

PYTHON ?= $(shell scripts/find-python)
VENV ?= .venv
BIN := $(VENV)/bin
SDKS := tests/web/compat/javascript
CXX_SOURCES := $(wildcard audiocraft_api/engine/cpu/native/*.cpp audiocraft_api/engine/cpu/native/*.h)
TIDY_TARGET := $(if $(filter x86_64,$(shell uname -m)),-march=x86-64-v3)
# More processes than two cores, because tests often wait for servers.
PARALLEL_TESTS := -m "not fault and not timing" -n 3 --dist loadfile --durations=40 --durations-min=2
# What a release of Python could break: set-up, every endpoint, the decoders (PyAV has several releases in the lock),
# the codec, the native kernels, the engine.
SMOKE_TESTS := tests/web/test_end_to_end.py tests/audio/test_upload_formats.py tests/engine/codec tests/engine/cpu \
  tests/engine/test_batching.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without bytecode, every process compiles the modules that it imports, which takes longer than the import itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run worker setup setup-tests test-programs test coverage test-faults fuzz smoke smoke-tests check lint bench \
  bench-gpu gpu-bench-bundle train-demo lock clean

run: setup
	exec $(BIN)/gunicorn -c gunicorn.conf.py app:app

worker: setup
	exec $(BIN)/celery -A audiocraft_api.celery_app worker -P threads

setup: $(VENV)/.service build/.native checkpoints/demo

$(VENV)/.python:
	@[ -n "$(PYTHON)" ]  # find-python has reported what is missing
	@scripts/check-machine
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.service: requirements.txt scripts/install-packages | $(VENV)/.python
	scripts/install-packages $(VENV) requirements.txt
	touch $@

$(VENV)/.tests: requirements-dev.txt $(VENV)/.service
	scripts/install-packages $(VENV) requirements-dev.txt
	touch $@

# Native kernels. Without a compiler the service uses PyTorch, and the next make tries again.
build/.native: $(CXX_SOURCES) audiocraft_api/engine/cpu/native/build.py | $(VENV)/.service
	scripts/install-compiler $(VENV)
	$(BIN)/python -m audiocraft_api.engine.cpu.native.build
	@if ls build/native/*.so >/dev/null 2>&1; then touch $@; fi

# Made again when the numbers that ship have changed.
checkpoints/demo: $(wildcard audiocraft_api/model/demo_data/*) | $(VENV)/.service
	rm -rf checkpoints/demo checkpoints/demo-melody checkpoints/demo-stereo
	$(BIN)/python -m audiocraft_api.model.demo checkpoints
	touch $@

setup-tests: test-programs setup $(VENV)/.tests

test-programs:
	scripts/install-test-programs

# Test files run in parallel, one core each: OpenMP threads that wait for each other would delay the other files.
test: export OMP_NUM_THREADS := 1
test: setup-tests
	$(BIN)/pytest $(PARALLEL_TESTS) $(ARGS)
	$(BIN)/pytest -m "timing and not fault" $(ARGS)

# Not part of `make test`: before Python 3.12, tracing makes the tests take half as long again.
coverage: export OMP_NUM_THREADS := 1
coverage: setup-tests
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL_TESTS) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered $(if $(ARGS),,--fail-under=90)

# JavaScript clients of other services, and TypeScript. They have 180 MB, so only the longer tests use them.
$(SDKS)/node_modules/.installed: $(SDKS)/package-lock.json | test-programs
	cd $(SDKS) && npm ci --omit=dev --ignore-scripts --no-audit --no-fund
	touch $@

test-faults: export OMP_NUM_THREADS := 1
test-faults: setup-tests $(SDKS)/node_modules/.installed
	$(BIN)/pytest -m fault -n 2 --dist loadfile --durations=10 $(ARGS)

# Searches for inputs that break the parsers, FUZZ_SECONDS each; `make test-faults` does it for 15 seconds each.
FUZZ_SECONDS ?= 600
fuzz: export FUZZ_SECONDS := $(FUZZ_SECONDS)
fuzz: setup-tests
	$(BIN)/pytest -m fault -n 2 tests/fuzz $(ARGS)

# Each version has its own virtual environment under build/.
smoke: setup-tests
	@for python in $$(scripts/find-python --all); do \
	  version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  [ "$$version" = "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" ] && continue; \
	  echo "Python $$version"; \
	  $(MAKE) --no-print-directory smoke-tests PYTHON=$$python VENV=build/venv-$$version || exit 1; \
	done

smoke-tests: export OMP_NUM_THREADS := 1
smoke-tests: setup-tests
	$(BIN)/pytest $(PARALLEL_TESTS) $(SMOKE_TESTS) -k 'not test_builds_for'

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --severity-level high audiocraft_api app.py gunicorn.conf.py
	$(BIN)/hadolint deploy/docker/Dockerfile
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES) $(wildcard tests/support/*.cpp)
	$(MAKE) --no-print-directory build/.tidy

# Analyzing all sources takes half a minute on two cores, so only after a change. The processor is fixed, so that every
# machine checks the same code.
build/.tidy: $(CXX_SOURCES) .clang-tidy | $(VENV)/.tests
	@mkdir -p build
	ls $(filter %.cpp,$(CXX_SOURCES)) | xargs -P 2 -I{} $(BIN)/clang-tidy --quiet {} -- -std=c++17 -pthread $(TIDY_TARGET)
	touch $@

check: lint test

bench: setup
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(SECTION),--section $(SECTION))

# With QUICK=1, nothing is installed: besides torch and transformers, only the packages of the bundle are needed.
GPU_BUNDLE := build/gpu-bench
# PYTHON, the virtual environment's Python, or the newest one that has torch.
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(if $(wildcard $(VENV)/.service),$(BIN)/python),$(PYTHON))
ifdef QUICK
bench-gpu:
	@python=$(or $(GPU_PYTHON),$$(scripts/find-python --with torch)) && \
	  PYTHONPATH=$(GPU_BUNDLE) $$python -m bench.gpu --quick $(ARGS)
else
bench-gpu: setup
	$(BIN)/python -m bench.gpu $(ARGS)
endif

gpu-bench-bundle: $(VENV)/.service
	$(BIN)/python -m bench.bundle $(GPU_BUNDLE)

# librosa, which measures what the models play, needs packages that the service does not.
train-demo: setup $(VENV)/.tests
	$(BIN)/python -m demo_models $(if $(QUICK),--quick) $(ARGS)

UV_COMPILE = $(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11

lock: $(VENV)/.tests
	$(UV_COMPILE) --excludes requirements-excluded.in requirements.in -o requirements.txt $(LOCK)
	$(UV_COMPILE) requirements-dev.in -o requirements-dev.txt $(LOCK)

clean:
	rm -rf $(VENV) build checkpoints $(SDKS)/node_modules .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
