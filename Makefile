# Two commands: `make run` (environment, then the whole line, then a short table) and `make test`.
#   PYTHON=python3.12  the interpreter to build the environment from (3.11 to 3.13)
#   GPU=1              TensorFlow with CUDA (Linux);  EXTRA=jax|tfds|ray|lite  one of the other locked extras
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run env test torture audit lint format lock deps ui cluster-up cluster-down

EXTRA ?= $(if $(GPU),gpu,dev)
VENV := .venv
BIN := $(VENV)/bin
LOCK := locks/$(EXTRA).txt
READY := $(VENV)/ready-$(EXTRA)

# DVC starts its stages with `python`: ours has to be the first on the path.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export DVC_NO_ANALYTICS := 1
unexport PYTHONPATH PYTHONHOME

help:
	@echo "make run     environment, all stages, and a short table of what came out (GPU=1 for TensorFlow with CUDA)"
	@echo "make test    environment, ruff, mypy, all tests"
	@echo "make torture the tests of kills and crowds in their long form"
	@echo "make audit   known holes in the locked libraries, by PyPI's advisories, and their licences"
	@echo "make ui      MLflow's pages on this project's runs, at 127.0.0.1"
	@echo "make cluster-up     PostgreSQL, an S3 store and an MLflow server on this machine, for docs/scale.md; cluster-down stops them"
	@echo "make env     the environment alone, in $(VENV); 'source $(BIN)/activate' enters it"
	@echo "make lint    ruff and mypy;   make format   ruff's formatter"
	@echo "make lock    the locks anew from pyproject.toml;   make deps   what reruns when: dvc.yaml, locks/results.yaml and the table in docs/architecture.md"

run: env
	@frostline check
	@dvc repro
	@frostline summary

test: env lint
	@python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 25 --durations-min 10

# What the suite does once, with more processes, rounds and kills; the last two commands write their numbers into docs/reliability.md.
torture: env
	@FROSTLINE_TORTURE=1 python -m pytest tests/test_tracking.py tests/test_trials.py tests/test_doorkeeper.py tests/test_fuzz.py tests/test_cluster.py tests/test_cli_worker.py tests/test_depot.py \
	    tests/test_crowds.py tests/test_kills.py tests/test_registry.py tests/test_ray.py \
	    -k "share or outlives or at_once or thousand or mutated or chain_of_champions or through_the_services or life_on_the_server or killed_tune or pushed_to_s3 or crowds or full_disk or asked_number or minute or undisturbed"
	@python benchmarks/stops.py --write
	@python benchmarks/kills.py --kills 300 --write

# It asks the network, so the suite does not do it. With --strict a library that nothing is known of is a failure, too.
audit: env
	@uv venv --quiet --clear $(VENV)/audit
	@uv pip sync --quiet --python $(VENV)/audit/bin/python --require-hashes locks/audit.txt
	@python -m pytest tests/test_licences.py
	@for lock in locks/*.txt; do \
	    echo "$$lock"; $(VENV)/audit/bin/pip-audit --requirement $$lock --require-hashes --disable-pip --strict --progress-spinner off \
	        || failed=1; \
	done; exit $${failed:-0}

lint: env
	@ruff check .
	@ruff format --check .
	@mypy

format: env
	@ruff check --fix .
	@ruff format .

ui: env
	@frostline ui

# It prints what to export; what the services hold stays in .cluster.
cluster-up: env
	@python deploy/cluster.py up

# Not `env`, which would make the environment without the extra that runs.
cluster-down:
	@python deploy/cluster.py down

env: $(READY)

# The environment is made once per lock; it is changed, not made anew, when the lock changes.
$(READY): $(LOCK) locks/uv.txt pyproject.toml
	@PYTHON="$(PYTHON)" bash locks/make-environment.sh $(VENV) $(LOCK)
	@rm -f $(VENV)/ready-* && touch $@

# Resolved for Python 3.11 to 3.13 on Linux and macOS. The extras take the versions of dev, so that results are the same.
COMPILE = uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header --no-annotate

lock: env
	@$(COMPILE) $(UPGRADE) locks/uv.in -o locks/uv.txt
	@$(COMPILE) $(UPGRADE) locks/audit.in -o locks/audit.txt
	@$(COMPILE) $(UPGRADE) pyproject.toml --extra dev -o locks/dev.txt
	@for extra in gpu jax tfds ray lite; do \
	    $(COMPILE) $(UPGRADE) pyproject.toml --extra dev --extra $$extra -c locks/dev.txt -o locks/$$extra.txt || exit 1; \
	done
	@$(MAKE) --no-print-directory deps

deps: env
	@python .ci/write-deps.py
