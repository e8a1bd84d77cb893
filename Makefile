# `make` lists the targets. Each does its own set-up first; a second call starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
LOCKER := .cache/locker
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
.PHONY: help setup lab test lint format fuzz drills numerics soak coverage site notebooks train grid gpu-train parallel bench \
  bench-peers compile gpu doctor lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with the pinned packages (the other targets do it by themselves)

$(READY): requirements.lock torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moe-lab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) lacks the venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# a file with another hash than the lock's is refused; nothing is resolved, and nothing is fetched to build with
	$(INSTALL) --require-hashes --no-deps --requirement requirements.lock
	@# torch alone: its builds differ, and resolved together with the rest, pip may fetch another before it settles
	$(INSTALL) --requirement torch.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@# pip would compile file by file, on one core, all that nobody imports, too; what cannot be compiled is a template
	@$(BIN)/python -W ignore -m compileall -qq -j 0 -x '/tests/|/testing/|/transformers/models/|/torch/onnx/|/pip/' $(VENV)/lib || true
	@# no questions about news in a laboratory that uses no network
	@mkdir -p $(SETTINGS)
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
	  > $(SETTINGS)/overrides.json
	@touch $(READY)

lab: $(READY) ## open JupyterLab on lesson 00, on this machine only (PORT=8888)
	$(BIN)/jupyter lab $(AS_ROOT) --ip=127.0.0.1 --port=$(PORT) --notebook-dir=. \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly \
	  --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: export PYTHONDONTWRITEBYTECODE = # what is compiled once is compiled once
# without a package that takes whoever reads notebooks two seconds of a core to import
test: export PYTHONPATH = $(CURDIR)/.ci/without
test: lint ## ruff, every test, and every notebook compared with its committed outputs
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=25 --nbval \
	  tests moe_lab $(filter-out $(ALONE),$(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb))
	$(BIN)/python -m pytest --nbval $(ALONE)

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(READY) ## some 26,000 odd inputs, in about 6 minutes; counts at the end (FUZZ_SEED=... repeats a run)
	@# atheris has wheels for Linux on x86-64 and Python 3.11 to 3.13; elsewhere hypothesis does it alone
	$(INSTALL) --require-hashes --no-deps --requirement fuzz.lock
	$(BIN)/python -m tests.fuzz

drills: $(READY) ## every fault drill: kills, full disks, closed folders, hostile pages, lost ranks
	MOE_LAB_DRILLS=1 $(BIN)/python -m pytest -q tests/drills

numerics: $(READY) ## every extreme number in every backend, interpreted kernels included (a minute)
	MOE_LAB_THOROUGH=1 $(BIN)/python -m pytest -q tests/numerics

soak: $(READY) ## ten thousand steps and a hundred opens of every widget, to see that nothing grows (about half an hour)
	MOE_LAB_SOAK=1 $(BIN)/python -m pytest -o addopts="--import-mode=importlib --strict-markers" -q tests/soak

# Without the browser's tests: what they run in Python, others run, too. And without loops that only an alarm ends: where
# it interrupts coverage itself, a lock stays locked, and the run hangs.
ALARMED := tests/exercises/test_lesson_07.py::test_a_kernel_that_fails_is_told_how
ALARMED += tests/exercises/test_lesson_07.py::test_a_kernel_that_never_ends_is_waited_for_once
ALARMED += moe_lab/exercises/puzzles.py::moe_lab.exercises.puzzles.time_limit
coverage: export PYTHONPATH = $(CURDIR)/.ci/without
coverage: $(READY) ## which lines of moe_lab and kernels the tests reach; at least 95 % (about forty minutes)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --ignore tests/browser --ignore tests/soak \
	  $(addprefix --deselect ,$(ALARMED)) tests moe_lab
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

site: $(READY) ## write the lessons as a static site into site/, to be opened without a server
	$(BIN)/python -m moe_lab site --out site

notebooks: $(READY) ## run every lesson top to bottom and write its outputs (ONLY=01 for one)
	$(BIN)/python -m moe_lab notebooks $(ONLY)

train: $(READY) ## train the shipped model again, into runs/stdlib-moe (about 9 minutes on 2 cores)
	$(BIN)/python -m moe_lab train --out runs/stdlib-moe --export runs/stdlib-moe/exported

grid: $(READY) ## train dense models against MoEs, lesson 10's grid, into runs/ (hours; goes on where it was cut; QUICK=1: 2 minutes)
	$(BIN)/python -m moe_lab experiment dense_vs_moe $(if $(QUICK),--quick)

gpu-train: $(READY) ## the same race with models of 34 M dense parameters, on a CUDA device, in bfloat16
	$(BIN)/python -m moe_lab experiment dense_vs_moe --preset gpu --part race

# A killed rank starts all of them again, from the last checkpoint.
TORCHRUN = $(BIN)/python -m moe_lab.parallel.torchrun --max-restarts 3
parallel: $(READY) ## train the small language model on 2 ranks, then on 4, experts spread over them, into runs/ (STEPS=100)
	$(TORCHRUN) --nproc-per-node 2 -m moe_lab train --out runs/parallel-2 --steps $(or $(STEPS),100)
	$(TORCHRUN) --nproc-per-node 4 -m moe_lab train --out runs/parallel-4 --steps $(or $(STEPS),100)

# Timed with libgomp's own way of waiting, a short spin before sleep: without one, each short operator waits for a thread
# to wake up; with an endless one, threads that wait take the cores from those that work.
bench gpu: export GOMP_SPINCOUNT = 300000

bench: $(READY) ## time this machine's ceilings, the experts on its CPU and the routers; record all three (needs a clean tree)
	$(BIN)/python -m moe_lab bench ceilings
	$(BIN)/python -m moe_lab bench cpu
	$(BIN)/python -m moe_lab bench routers

RIVALS := liger-kernel==0.8.5 moe-ops==0.1.0 tokenspeed-triton-kernels==1.0.0.post20260510 flag-gems==5.0.2 \
  sqlalchemy==2.0.48
SONIC := sonic-moe==0.1.2.post1 quack-kernels==0.3.11 nvidia-cutlass-dsl==4.4.2 nvidia-cutlass-dsl-libs-base==4.4.2 \
  apache-tvm-ffi==0.1.15.post2 torch-c-dlpack-ext==0.1.5

bench-peers: $(READY) ## install the rivals that PyPI has; torch, triton and numpy stay as they are
	@# without dependencies: some pin another torch or numpy, and what they need besides is here or named above
	@for package in $(RIVALS); do $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $$package \
	  || echo "not installed: $$package"; done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SONIC) \
	  || echo "not installed: SonicMoE, which needs Python 3.12 or newer"

compile: $(READY) ## compile every kernel for GPUs that are not here; fails if anything is worse than recorded
	$(BIN)/python -m moe_lab compile --against data/machine_code.json

gpu: $(READY) ## on a machine with a CUDA device: its tests, the compile check, every suite and profiles, in ten minutes
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make gpu needs a CUDA device, and torch sees none here; all else runs without one: make test")'
	$(BIN)/python -m pytest -m gpu -q tests
	$(BIN)/python -m moe_lab compile --against data/machine_code.json
	$(BIN)/python -m moe_lab bench ceilings --minutes 1
	$(BIN)/python -m moe_lab bench align --minutes 0.5
	$(BIN)/python -m moe_lab bench layer --minutes 3
	$(BIN)/python -m moe_lab bench decode --minutes 1.5
	$(BIN)/python -m moe_lab bench order --minutes 0.5
	$(BIN)/python -m moe_lab profile --backend grouped triton transformers dense --dtype bfloat16 --shape 8192,2048,768,128,8 --out data/traces

doctor: $(READY) ## say what this machine can run
	$(BIN)/python -m moe_lab doctor

lock: ## write requirements.lock anew after changing pyproject.toml (UPGRADE=1: newer versions of everything)
	@test -x $(LOCKER)/bin/uv || { $(PYTHON) -m venv $(LOCKER) && $(LOCKER)/bin/python -m pip install --quiet uv==0.13.9; }
	@# pins that still fit stay, since uv finds them in the file that it is to write
	cat requirements.lock torch.lock > $(LOCKER)/all
	$(LOCKER)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
	  $(LOCKER)/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate $(if $(UPGRADE),--upgrade) \
	  --extra dev --constraint torch.lock --output-file $(LOCKER)/all pyproject.toml - > /dev/null
	@# without torch, and without the CUDA libraries that its build from PyPI asks for
	{ grep '^#' requirements.lock; sed -E '/^(torch|nvidia-|cuda-)/,/[^\\]$$/d' $(LOCKER)/all; } > $(LOCKER)/new
	cp $(LOCKER)/new requirements.lock

clean: ## delete .venv and every cache
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
