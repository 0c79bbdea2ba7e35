# Everything sets itself up: `make demo` and `make test` install first, once (see the stamp file below).
#
#   make install               .venv with everything pinned in constraints.txt
#   make install DETECTRON2='git+https://github.com/facebookresearch/detectron2.git'   builds the original Detectron2
#   make demo [METHOD=polarmask|centermask|orienmask|fcosis|mask_rcnn|fcos]   trains on generated scenes on this machine and shows the result
#   make test                  tests within 15 minutes on 2 cores;   make test-all adds the slow ones
#   make lint                  ruff, ruff format, mypy
#   make clean                 removes caches and build products; keeps .venv, datasets and output

VENV ?= .venv
# The first Python between 3.11 and 3.13 on this machine; or say PYTHON=/path/to/python.
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python; do \
	"$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo "$$candidate" && break; done)
# What pip shall install as Detectron2; empty means the registry's pure-Python copy.
DETECTRON2 ?=
METHOD ?= polarmask
# Processes of the tests, each with one thread.
WORKERS ?= 2

VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.segzoo-installed
PIP := $(VENV_PYTHON) -m pip --disable-pip-version-check --quiet
SOURCES := $(wildcard segzoo polarmask centermask orienmask fcosis projects tools demo train_net.py setup.py)

.PHONY: install demo test test-all lint clean

install: $(STAMP)
ifneq ($(DETECTRON2),)
	$(VENV_PYTHON) tools/install_detectron2.py '$(DETECTRON2)'
endif

$(STAMP): setup.py constraints.txt requirements-detectron2.txt tools/install_detectron2.py
	@test -x $(VENV_PYTHON) || test -n "$(PYTHON)" || \
		{ echo "SegZoo needs Python 3.11, 3.12 or 3.13; none is on the PATH. Say: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 2; }
	@test -x $(VENV_PYTHON) || { echo "Creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned packages of constraints.txt (torch is large). sal-detectron2 needs neither black nor numpy<2, whatever pip notes."
	@$(PIP) install -c constraints.txt setuptools wheel
	@$(PIP) install -c constraints.txt --no-build-isolation --config-settings editable_mode=compat -e '.[timm,export,test,lint]'
	@$(VENV_PYTHON) tools/install_detectron2.py $(if $(DETECTRON2),'$(DETECTRON2)')
	@touch $@

demo: $(STAMP)
	$(VENV_PYTHON) tools/demo_run.py --method $(METHOD)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -m "not slow and not gpu" -n $(WORKERS)

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -m "not gpu" -n $(WORKERS)

lint: $(STAMP)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy $(SOURCES)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
