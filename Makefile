# Everything runs in .venv, which the first target that needs it makes and later ones find ready.
# Variables:  ARGS    what medpfl, pytest or the benchmark gets:  make run ARGS="attack=dlg n_images=4"
#             PYTHON  the Python to make .venv from, where the first one found is not to be taken

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

SUPPORTED := 3.13 3.12 3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PINS := pyproject.toml constraints.txt
ARGS ?=
PYTHON ?=
# Where other work keeps the cores busy, threads that wait by spinning make torch ten times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: help run test lint bench clean

help:  ## Explain every target
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  More for the command behind run, test or bench: ARGS="...", such as'
	@echo '    make run ARGS="attack=dlg dataset=phantom n_images=4"'

run: $(VENV)/.ready  ## Run medpfl: without ARGS, the CPL attack on the embedded images
	$(BIN)/medpfl $(ARGS)

test: $(VENV)/.ready-dev  ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.ready-dev  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.ready  ## Compare the batched attack with a loop over torch.optim.LBFGS
	$(BIN)/python -m medpfl.bench $(ARGS)

clean:  ## Remove .venv and caches; what runs have left in outputs stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find conf medpfl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Tables and figures of the papers -------------------------------------------------------------

# --- Set-up ---------------------------------------------------------------------------------------

$(VENV)/.ready: $(PINS) $(BIN)/python
	@echo 'Installing medpfl into $(VENV): minutes the first time, mostly the download of PyTorch.'
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-dev: $(PINS) $(BIN)/python
	@echo 'Installing medpfl into $(VENV): minutes the first time, mostly the download of PyTorch.'
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.ready

# A name on the PATH may be a stand-in for a Python that is not there, or one without venv: ask it.
$(BIN)/python:
	@for python in $(or $(PYTHON),$(SUPPORTED:%=python%) python3); do \
	  if "$$python" -c 'import ensurepip, sys, venv; \
	      sys.exit("%d.%d" % sys.version_info[:2] not in "$(SUPPORTED)".split())' 2>/dev/null; \
	  then \
	    echo "Making $(VENV) with $$("$$python" --version)."; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	{ \
	  echo 'medpfl needs Python 3.11, 3.12 or 3.13 with its venv module, and found none here as'; \
	  echo '$(or $(PYTHON),$(SUPPORTED:%=python%) python3).'; \
	  echo 'Install one (on Debian and Ubuntu: apt install python3-venv), or name one that is'; \
	  echo 'elsewhere: make PYTHON=/path/to/python3.12 run'; \
	} >&2; exit 1
