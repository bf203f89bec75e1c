# Needs Python 3.11 with its headers, g++ and make; everything else is installed into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# A stamp is written after its step has succeeded, so an interrupted set-up goes on where it stopped.
STAMPS := $(VENV)/stamps
UV_VERSION := 0.13.9
PYTHON ?=
CXX ?= g++
# Where mypy finds the folders that install inside the package: see pyproject.toml.
MAPPED := $(VENV)/mapped/sglang_ascend_moe
# Packages that a server imports, the largest ones. uv compiles nothing, and where PYTHONDONTWRITEBYTECODE is set, as in
# many containers, Python would compile them anew at every start: 20 seconds of a core.
IMPORTED := sglang torch transformers sympy scipy numpy networkx nvidia_cutlass_dsl timm torchvision torchaudio \
    huggingface_hub pydantic mpmath openai triton aiohttp fastapi IPython
NATIVE := sglang_ascend_moe/_host_kernels.so
KERNELS := $(wildcard kernels/*/*.cpp kernels/*/*.h)
CPP_SOURCES := $(KERNELS) $(wildcard kernels/*/*/*.cpp kernels/*/*/*.h tests/*/*.cpp tests/*/*.h tests/*/*/*.cpp tests/*/*/*.h)
# What the tests use besides: command:Debian package.
SYSTEM_PACKAGES := spin:spin mpirun:openmpi-bin curl:curl clang++:clang prometheus:prometheus

export UV_HTTP_TIMEOUT ?= 300

.PHONY: help venv demo demo-npu test test-nightly check-sglang test-sglang lint format bench bench-docs wheel lock system-packages clean

help:
	@echo "make demo          serve a small MoE model with --ascend-moe and compare it with stock SGLang"
	@echo "make demo-npu      the same on emulated NPUs: test equipment, on the cores of this machine"
	@echo "make test          run the test suite (PYTEST_ARGS=... to choose tests)"
	@echo "make test-nightly  run the tests that take long"
	@echo "make check-sglang  what serving another SGLang would take; VERSION=0.5.22, else the newest"
	@echo "make test-sglang   what is served with an earlier SGLang, in an environment of its own; VERSION=0.5.22"
	@echo "make lint, format  check, or rewrite, the source files"
	@echo "make bench         measure what docs/benchmarks.md shows; bench-docs writes its tables and pictures"
	@echo "make wheel         build a wheel into dist/"
	@echo "make lock          resolve requirements.lock again (LOCK_ARGS=--upgrade for newer versions)"
	@echo "make clean         remove what was built; .venv stays"

venv: $(STAMPS)/project $(NATIVE)

$(STAMPS)/uv-$(UV_VERSION):
	@python=; \
	for candidate in $(PYTHON) python3.11 python3; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 found (python3 is: $$(python3 --version 2>&1 || true)). Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 3; \
	fi; \
	command -v $(firstword $(CXX)) >/dev/null || { echo "error: the C++ compiler $(firstword $(CXX)) was not found. Install g++ (Debian: apt-get install g++)." >&2; exit 3; }; \
	if ! { $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
	    echo "Creating $(VENV)"; \
	    "$$python" -m venv --clear $(VENV) || { echo "error: $$python cannot create a virtual environment (Debian: apt-get install python3.11-venv)." >&2; exit 3; }; \
	fi
	@include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	[ -e "$$include/Python.h" ] || { echo "error: the headers of Python were not found in $$include (Debian: apt-get install python3.11-dev)." >&2; exit 3; }
	@echo "Installing uv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@mkdir -p $(STAMPS) && touch $@

# An interrupted installation may leave a package half there that looks installed: then everything is laid anew.
$(STAMPS)/lock: requirements.lock $(STAMPS)/uv-$(UV_VERSION)
	@echo "Installing requirements.lock (the first time: about 10 GB on disk)"
	@reinstall=$$([ ! -e $(STAMPS)/lock-begun ] || echo --reinstall); \
	touch $(STAMPS)/lock-begun; \
	$(BIN)/uv pip sync --python $(BIN)/python $$reinstall requirements.lock
	@echo "Compiling what every start of SGLang imports"
	@cd $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	$(CURDIR)/$(BIN)/python -m compileall -q -j 0 -x torch/testing $(IMPORTED)
	@rm $(STAMPS)/lock-begun && touch $@

$(STAMPS)/project: pyproject.toml setup.py $(wildcard launch/__init__.py graph_capture/__init__.py) $(STAMPS)/lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@mkdir -p $(MAPPED)
	@ln -sfn $(CURDIR)/launch $(CURDIR)/graph_capture $(MAPPED)
	@touch $@

$(NATIVE): $(KERNELS) kernels/flags.txt setup.py $(STAMPS)/project
	@rm -f $@ # a new file: processes that run keep the library that they have loaded
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: venv
	@$(BIN)/ascend-moe demo

demo-npu: venv
	@$(BIN)/python -m tests.npu.emulated_demo

# Three processes for two cores, because tests of several ranks wait for each other as often as they compute.
test: venv system-packages
	$(BIN)/python -m pytest --numprocesses 3 $(PYTEST_ARGS)

DELAYED := drawn_calls.py exchange.py grants.py limits.py quantise.py replaced_words.py segments.py step_times.py waits.py
GRANTING := drawn_calls.py exchange.py quantise.py replaced_words.py segments.py step_times.py waits.py

# The row kernels of an aarch64 machine, in an emulator.
test-nightly: SYSTEM_PACKAGES += aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64:qemu-user
test-nightly: venv system-packages
	$(BIN)/python -m pytest -m nightly $(PYTEST_ARGS)
	$(BIN)/python -m pytest --granting tests/exchange tests/deep_ep tests/soak $(addprefix tests/ascend/test_,$(GRANTING))
	$(BIN)/python -m pytest --delayed $(addprefix tests/ascend/test_,$(DELAYED))

check-sglang: venv
	@$(BIN)/python -m tests.versions.check $(VERSION)

test-sglang: venv system-packages
	@$(BIN)/python -m tests.versions.served $(or $(VERSION),$(error name the release: make test-sglang VERSION=0.5.22))

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

# Measures for about 35 minutes; nothing else should run on the machine.
bench: venv system-packages
	@mkdir -p docs/benchmarks
	$(BIN)/ascend-moe bench exchange --preset paper-decode --json docs/benchmarks/decode-2.json
	$(BIN)/ascend-moe bench exchange --preset paper-decode --ranks 4 --json docs/benchmarks/decode-4.json
	$(BIN)/ascend-moe bench exchange --preset paper-prefill --json docs/benchmarks/prefill-2.json
	$(BIN)/ascend-moe bench serving --json docs/benchmarks/serving.json
	$(BIN)/ascend-moe bench serving --against relay-free,drafts --json docs/benchmarks/drafts.json

bench-docs: venv
	$(BIN)/ascend-moe bench page docs/benchmarks.md

wheel: venv
	rm -rf build
	$(BIN)/python -m build --wheel --no-isolation

lock: $(STAMPS)/uv-$(UV_VERSION)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev \
	    --custom-compile-command "make lock" --output-file requirements.lock $(LOCK_ARGS) pyproject.toml requirements.in

system-packages:
	@missing=; \
	for needed in $(SYSTEM_PACKAGES); do \
	    case $$needed in \
	        *.so.*) $(BIN)/python -c "import ctypes; ctypes.CDLL('$${needed%%:*}')" 2>/dev/null ;; \
	        *) command -v $${needed%%:*} >/dev/null ;; \
	    esac || missing="$$missing $${needed##*:}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing; \
	else \
	    echo "error: the tests need$$missing. Install with: sudo apt-get install$$missing" >&2; exit 3; \
	fi

clean:
	rm -rf build dist *.egg-info $(NATIVE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
