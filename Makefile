# Everything runs in .venv, which the first target that needs it makes and later ones find ready.
# `make help` explains the targets, and the variables whose line starts with two hashes.

## ARGS="..."       what the command behind run, test or bench gets:  make run ARGS="attack=dlg n_images=4"
## PYTHON=PATH      the Python to make .venv from, where the first one found is not to be taken
## TORCH_INDEX=URL  where the first set-up takes PyTorch from, such as the index of its CPU builds

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
TORCH_INDEX ?=

.PHONY: help run test lint bench malicious clean

help:  ## Explain every target
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-10s  %s\n", $$1, $$2 } \
	  /^## / { variables = variables "\n  " substr($$0, 4) } END { print variables }' $(MAKEFILE_LIST)

run: $(VENV)/.ready  ## Run medpfl: without ARGS, the default attack on drawn images
	$(BIN)/medpfl $(ARGS)

test: $(VENV)/.ready-dev  ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.ready-dev  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.ready  ## Measure the engine: beside a plain loop and, where installed, breaching
	$(BIN)/python -m medpfl.bench $(ARGS)

malicious: $(VENV)/.ready  ## An imprint's share of images, beside what is expected and breaching's
	$(BIN)/python -m medpfl.bench malicious $(ARGS)

clean:  ## Remove .venv and caches; what runs have left in outputs stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find conf medpfl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Tables and figures of the papers -------------------------------------------------------------

## budget=quick     of the tables and figures: a preview; without it the papers' numbers, in hours
## n_images=20      of the tables and figures: images a row, where neither budget fits

budget ?= full
n_images ?=
FIGURES := figure3 figure4 figure5 figure6
SWEEP = $(BIN)/medpfl --config-name=paper/$@ budget=$(budget) \
  $(if $(n_images),n_images=$(n_images)) $(ARGS)

.PHONY: table1 table2 table3 frontier mitigation mic figures pairs paper $(FIGURES)

table1: $(VENV)/.ready  ## Table I: CPL on three datasets, and what the class shares predict
	$(SWEEP)

table2: $(VENV)/.ready  ## Table II: every attack on every dataset
	$(SWEEP)

table3: $(VENV)/.ready  ## Table III: noise levels, in both readings
	$(SWEEP)

frontier: $(VENV)/.ready  ## What each defense costs, and what it stops
	$(SWEEP)

mitigation: $(VENV)/.ready  ## The same for the mitigations of arXiv 2409.18907
	$(SWEEP)

mic: $(VENV)/.ready  ## A malicious server on 2D and 3D images: reported, as counted there, and honestly
	$(SWEEP)

figures: $(FIGURES)  ## Figures 3 to 6: how reconstructions come about, and under noise

$(FIGURES): $(VENV)/.ready
	$(SWEEP)

pairs: $(VENV)/.ready  ## What each SSIM protocol gives for unrelated images
	$(BIN)/python -m medpfl.paper.unrelated_pairs --pairs $(if $(filter quick,$(budget)),30,200) $(ARGS)

# A table with a failed row ends in an error, and the others are made all the same.
paper:  ## All of these, one after the other
	@$(MAKE) --no-print-directory --keep-going table1 table2 table3 figures pairs

# --- Set-up ---------------------------------------------------------------------------------------

# PyTorch alone comes from TORCH_INDEX: the constraints hold for it, too, and pip keeps what is there.
define install
@echo 'Installing medpfl into $(VENV): minutes the first time, mostly the download of PyTorch.'
$(if $(TORCH_INDEX),$(PIP) install --constraint constraints.txt --no-deps \
  --index-url '$(TORCH_INDEX)' torch torchvision)
$(PIP) install --constraint constraints.txt --editable
endef

$(VENV)/.ready: $(PINS) $(BIN)/python
	$(install) .
	@touch $@

# The tests of flower and nvflare run a federation each.
$(VENV)/.ready-dev: $(PINS) $(BIN)/python
	$(install) '.[dev,dicom,nrrd,flower,nvflare]'
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
