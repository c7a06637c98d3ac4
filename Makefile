# SPDX-License-Identifier: Apache-2.0
# `make` alone says what there is. Nothing here needs root except the lab targets.

# The first Python on this machine that is new enough; `make PYTHON=/path/to/python3 ...` overrides it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin
UV := $(BIN)/uv pip
STAMP := .venv/.installed
# A file's tests share what they start, and the long files come first. Most of `make test` waits for processes,
# so there are more of them at a time than processors; real senders and hosts have limits of their own for waiting.
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder --numprocesses
WORKERS := $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Some machines forbid Python to keep what it has compiled: then each start of zamu and Ansible takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run demo test lint types check-all peers lab molecule-all torture bench clean lock

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Build .venv and nothing else

$(STAMP): requirements/dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "zamu needs Python 3.12 or newer with its venv module (Debian: apt install python3-venv); none was found."; exit 1; }
	@echo "[1/4] Creating .venv with $$($(PYTHON) --version)."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "[2/4] Fetching the installer (uv)."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/uv.lock
	@echo "[3/4] Installing $$(grep -c '==' requirements/dev.lock) packages (about 250 MB; one to three minutes on a slow line)."
	@$(UV) sync --python $(BIN)/python --require-hashes requirements/uv.lock requirements/dev.lock
	@echo "[4/4] Installing zamu itself and its collection boma.zamu."
	@$(UV) install --quiet --python $(BIN)/python --no-deps --editable .
	@mkdir -p .venv/collections/ansible_collections/boma && ln -sfn $(CURDIR) .venv/collections/ansible_collections/boma/zamu
	@touch $@

run: setup ## Start zamu here: SQLite, H2, console notifications, demo inventory
	@$(BIN)/zamu run

demo: setup ## Watch the loop repair a broken service, in under a minute
	@$(BIN)/python -m zamu.demo

test: setup ## Run the tests that need neither root nor a network
	@echo "Running the tests; those marked 'engine' start Java. It takes ten to twenty minutes."
	@$(BIN)/pytest $(SIDE_BY_SIDE) $(shell echo $$(($(WORKERS) + 1))) -m "not lab and not peer" $(PYTEST_ARGS)

lint: setup ## Check style and rulebooks: ruff, yamllint, ansible-lint, zamu check
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/yamllint --strict .
	@$(BIN)/ansible-lint --offline
	@$(BIN)/zamu check rulebooks

types: setup ## Check types: mypy, strict
	@$(BIN)/mypy

check-all: lint types test ## Everything that needs no root

peers: setup ## Hear the real programs that send events (root, on Debian; installs them)
	@$(BIN)/pytest $(SIDE_BY_SIDE) $(WORKERS) -m peer $(PYTEST_ARGS)

lab: setup ## Repair real Debian hosts (root, on Debian; installs podman and what else it needs)
	@sh tests/lab/image.sh
	@$(BIN)/pytest $(SIDE_BY_SIDE) $(WORKERS) -m lab $(PYTEST_ARGS)

molecule-all: setup ## Run every Molecule scenario (root, on Debian)
	@sh tests/molecule/run.sh

torture: setup ## Kill parts of zamu 100 times under load and 125 times in the middle of a remedy, intake 50 times under every source; keep the figures (root: mosquitto, journald, podman)
	@sh tests/lab/packages.sh mosquitto systemd
	@sh tests/lab/image.sh
	@$(BIN)/python bench/torture.py --rounds $(or $(ROUNDS),100) --write
	@$(BIN)/python bench/remedy_kills.py --rounds $(or $(ROUNDS),125) --write
	@$(BIN)/python bench/source_kills.py --rounds $(or $(ROUNDS),50) --write

bench: setup ## Measure idle cost, latency, throughput and denials on this machine, and keep the figures in bench/results (root: Debian's wrk and webhook)
	@sh tests/lab/packages.sh wrk webhook
	@$(BIN)/python bench/idle.py --write
	@$(BIN)/python bench/latency.py --write
	@$(BIN)/python bench/intake.py --write
	@$(BIN)/python bench/suricata.py --write
	@$(BIN)/python bench/denials.py --write

clean: ## Remove what setup and the tests made (not .zamu, your state)
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .ansible

lock: ## Bring requirements/*.lock up to date with pyproject.toml
	@sh requirements/lock.sh
