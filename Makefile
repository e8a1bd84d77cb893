# `make` lists the targets. Each does its own set-up first; a second call starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SETTINGS := $(VENV)/share/jupyter/lab/settings
PORT ?= 8888
# JupyterLab refuses to run as root unless told; in a container root is what there is.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# Threads that wait should soon sleep: spinning, two of them starve whatever else runs on two cores, and each other.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 1000

# Notebooks that compare times have the machine for themselves, and lesson 00 a reader's empty progress; the others run
# beside the tests.
ALONE := notebooks/00_start_here.ipynb
ALONE += $(shell grep -lE 'time_interleaved|measure_products' notebooks/*.ipynb notebooks/solutions/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup lab test lint format notebooks train bench compile gpu doctor lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with the pinned packages (the other targets do it by themselves)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moe-lab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) lacks the venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# torch alone and first: resolved together with the rest, pip may fetch another build of it before it settles
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@# no questions about news in a laboratory that uses no network
	@mkdir -p $(SETTINGS)
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
	  > $(SETTINGS)/overrides.json
	@touch $(READY)

lab: $(READY) ## open JupyterLab on lesson 00, on this machine only (PORT=8888)
	$(BIN)/jupyter lab $(AS_ROOT) --ip=127.0.0.1 --port=$(PORT) --notebook-dir=. \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	  --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: lint ## ruff, every test, and every notebook compared with its committed outputs
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --durations=25 --nbval \
	  tests moe_lab $(filter-out $(ALONE),$(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb))
	$(BIN)/python -m pytest --nbval $(ALONE)

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(READY) ## run every lesson top to bottom and write its outputs (ONLY=01 for one)
	$(BIN)/python -m moe_lab notebooks $(ONLY)

train: $(READY) ## train the shipped model again, into runs/stdlib-moe (about 9 minutes on 2 cores)
	$(BIN)/python -m moe_lab train --out runs/stdlib-moe --export runs/stdlib-moe/exported

bench: $(READY) ## measure this machine's ceilings, time the routers, and record both in data/benchmarks (needs a clean tree)
	$(BIN)/python -m moe_lab bench ceilings
	$(BIN)/python -m moe_lab bench routers

compile: $(READY) ## compile every kernel for GPUs that are not here; fails if anything is worse than recorded
	$(BIN)/python -m moe_lab compile --against data/machine_code.json

gpu: $(READY) ## on a machine with a CUDA device: the tests that need one, then the compile check
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make gpu needs a CUDA device, and torch sees none here; all else runs without one: make test")'
	$(BIN)/python -m pytest -m gpu tests
	$(BIN)/python -m moe_lab compile --against data/machine_code.json

doctor: $(READY) ## say what this machine can run
	$(BIN)/python -m moe_lab doctor

lock: ## write requirements.lock from what .venv holds (after changing pyproject.toml)
	$(BIN)/python -m pip freeze --exclude-editable | \
	  sed -E -e 's/\+cpu$$//' -e "s/^(triton==.*)/\1; sys_platform == 'linux'/" > requirements.lock

clean: ## delete .venv and every cache
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
