# From nothing to a running system, without a compiler, a display or apt:
#   make demo    a shipped policy pushes the T, plain and accelerated
#   make test    the tests
#   make lint    ruff, mypy and import-linter
#   make demo-vehicle    a node plans along a drive that another process replays (DRIVE=recording)
# PYTHON=python3.12 chooses the interpreter, VENV=folder the environment, TORCH_INDEX=url where torch
# comes from (https://download.pytorch.org/whl/cpu has builds without CUDA), PYTEST_ARGS="-k pusht" the tests.

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PYTEST_ARGS ?= -n auto --dist loadfile

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

# The working folder stays off sys.path: a folder here is called datasets, as a well-known package is.
export PYTHONSAFEPATH := 1
export SDL_VIDEODRIVER := dummy

.PHONY: demo demo-vehicle test lint clean

demo: $(VENV)/.demo
	$(BIN)/fastloop eval

demo-vehicle: $(VENV)/.ros
	$(BIN)/python -m fastloop.vehicle_demo $(if $(DRIVE),'$(DRIVE)')

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS)  # a process a core, a thread each

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict -p fastloop.accel -p fastloop.sims -p fastloop.deploy
	.ci/imports $(BIN)/python

clean:
	rm -rf $(VENV)

# Each stamp is one step of the installation; a step runs again when what it reads has changed.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 13) else \
	    f"$(PYTHON) is Python {v[0]}.{v[1]}; fastloop needs 3.11 or 3.12. Name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: constraints.txt | $(VENV)/.python
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.demo: constraints.txt pyproject.toml requirements/pusht.txt $(VENV)/.torch
	$(PIP) -e ".[report]" -r requirements/pusht.txt
	$(PIP) --no-deps gym-pusht
	@touch $@

$(VENV)/.ros: constraints.txt pyproject.toml $(VENV)/.demo
	$(PIP) -e ".[report,ros]"
	@touch $@

$(VENV)/.test: requirements/sim.txt requirements/nuscenes.txt requirements/driving.txt $(VENV)/.demo
	$(PIP) -e ".[report,ros,serve,data,vla,scale,gpu,dev]" -r requirements/sim.txt -r requirements/nuscenes.txt -r requirements/driving.txt
	$(PIP) --no-deps robosuite nuscenes-devkit "metadrive-simulator; python_version < '3.12'"
	@touch $@
