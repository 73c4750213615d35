# Everything runs from .venv, which each target makes when it is missing or older than the lock.
# The distribution's own Python where it is new enough: it is built with profile-guided optimization, and a request costs
# a tenth less with it than with many that were built by hand.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo /usr/bin/python3 || echo python3)
PORT ?= 8000
STATE_DIR ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: serve test lint bench bench-slurm lock clients slurm-install postgres-install runtimes-install slurm-up slurm-down clean

serve: $(READY)
	$(BIN)/slurmgate serve --port $(PORT) $(if $(STATE_DIR),--state-dir $(STATE_DIR))

test: $(READY) slurm-install postgres-install runtimes-install clients
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	bench/install_peers.sh
	$(BIN)/python -m bench --all

# the figures that need a real Slurm on this machine: root, 12 minutes
bench-slurm: $(READY) slurm-install
	$(BIN)/python -m bench.reconcile
	$(BIN)/python -m bench.cold_start
	$(BIN)/python -m bench.rolling

# the lock is made for Python 3.11 to 3.13 at once; needs uv
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --upgrade --quiet --output-file requirements.lock
	for client in openai2 openai3 langchain node; do \
	  uv pip compile tests/clients/$$client.in --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-header --upgrade --quiet --output-file tests/clients/$$client.lock || exit 1; \
	done
	cd tests/clients && PATH=$(CURDIR)/.clients/node/bin:$$PATH npm update --package-lock-only --no-audit --no-fund

# a real Slurm for the tests; where it cannot be had, pytest says why and skips them
slurm-install:
	-@SLURMLAB_DBD=1 tests/acceptance/slurm_cluster.sh install

# a real PostgreSQL for the tests of the stores; as above
postgres-install:
	-@tests/acceptance/postgres.sh install

# container runtimes for the tests with an engine in one; as above
runtimes-install:
	-@tests/acceptance/runtimes.sh install

# the clients that the acceptance tests run; where one cannot be had, pytest says so and skips its tests
clients: $(READY)
	-@tests/clients/install.sh $(BIN)/python

slurm-up:
	tests/acceptance/slurm_cluster.sh up

slurm-down:
	tests/acceptance/slurm_cluster.sh down

clean:
	rm -rf $(VENV) .venv-bench .venv-bench-litellm bench-profile .clients .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "slurmgate needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Debian has venv in a package of its own: installing python3-venv"; \
	  apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --config-settings editable_mode=compat --editable .
	touch $@
