# Rewright's commands; `make help` lists them. Each first sets up an environment in .venv when that
# is missing or out of date, so a fresh clone needs Python, make and a C++ compiler, nothing else.
#
#   make test ARGS="-k fuse -x"      more arguments for pytest
#   make test WORKERS=8              more processes
#   make fuzz SECONDS=3600           another time than ten minutes
#   make test TORCH=2.11.0           another torch than the one in constraints.txt
#   make demo PYTHON=python3.12      another Python to make the environment from

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test docs browser sweep fuzz mutants bench costmodel lint

VENV ?= .venv
WORKERS ?= 2
ARGS ?=
SECONDS ?= 600
COUNT ?= 1000
PINNED := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= $(PINNED)
# The first Python that works and can make environments (a version manager's shim may be on PATH
# and fail), the one Rewright is developed with before others.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
    $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    && { echo $$python; break; }; done)

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# A stamp's name holds a hash of what it was made from, so a change makes it missing.
hash = $(shell { $(1); } | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/.installed-$(call hash,echo "$(CURDIR) $(TORCH)"; cat pyproject.toml constraints.txt tests/trained.txt)
LINKED := $(VENV)/.linked-$(call hash,find ir costmodel passes codegen compiler -type f ! -name '*.pyc' | LC_ALL=C sort)

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(LINKED) ## optimize GPT-2 for this machine: passes, error, first call, speed
	$(PY) -m examples.demo $(ARGS)

test: $(LINKED) ## all tests; those that need a GPU are skipped where there is none
	$(PY) -m pytest -n $(WORKERS) --durations=10 $(ARGS)

# The variable keeps the theme from telling of other products.
docs: $(LINKED) ## the documentation as a site, which needs no network, in build/site
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --clean
	@echo "open build/site/index.html"

browser: $(LINKED) ## the report page and the documentation in headless Chromium, which `apt-get install chromium` brings
	$(PY) -m pytest tests/browser/report_page.py tests/browser/docs_site.py $(ARGS)

sweep: $(LINKED) ## every operator of PyTorch's own tables through our backend, in at most two hours
	PYTHONPATH=tests $(PY) -m sweep $(ARGS)

fuzz: $(LINKED) ## random graphs, compiled, against float64, for SECONDS (600)
	PYTHONPATH=tests $(PY) -m fuzz --seconds $(SECONDS) --workers $(WORKERS) $(ARGS)

mutants: $(LINKED) ## COUNT (1000) graphs that are nearly attention, before and after the passes
	PYTHONPATH=tests $(PY) tests/attention_mutants.py $(COUNT) $(ARGS)

bench: $(LINKED) ## kernels, models and start-up against eager and Inductor, and the pictures of it
	$(PY) -m benchmarks.kernels
	$(PY) -m benchmarks.inference
	$(PY) -m benchmarks.startup
	$(PY) -m benchmarks.plots

costmodel: $(LINKED) ## draw and time calls, train the CPU's cost model, judge it, write it (an hour and more)
	$(PY) -m benchmarks.costmodel $(ARGS)

# mypy follows the link tree in build/; its messages are turned back to the files they are about.
lint: $(LINKED) ## formatting, ruff, mypy --strict, and the sizes of the source
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	set -o pipefail; $(PY) -m mypy --strict -p rewright | sed -E \
	    -e 's#^build/__editable__[^/]*/rewright/(ir|costmodel|passes|codegen)/#\1/#' \
	    -e 's#^build/__editable__[^/]*/rewright/#compiler/#'
	$(PY) -m mypy --strict tests examples benchmarks docs
	$(PY) tests/test_architecture.py

# torch comes first and by its exact version: a bare `torch` in a list of requirements may pull in
# another build with gigabytes of CUDA libraries.
$(INSTALLED):
	@test -n "$(PYTHON)" || { echo "no Python of 3.11 or later that can make environments; name one by PYTHON=..." >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON) and torch $(TORCH); minutes when packages must be downloaded"
	@$(PY) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@if [ "$(TORCH)" = "$(PINNED)" ]; then cat constraints.txt; \
	    else grep -vE '^(torch|triton|setuptools)==' constraints.txt; fi > $(VENV)/constraints.txt
	$(PIP) install -c $(VENV)/constraints.txt "torch==$(TORCH)" "setuptools>=77"
	$(PIP) install -c $(VENV)/constraints.txt --no-build-isolation --config-settings editable_mode=strict -e '.[dev]'
	$(PIP) install --no-deps -r tests/trained.txt
	@rm -f $(VENV)/.installed-* $(VENV)/.linked-*
	@touch $@

# A strict editable install is a tree of links in build/, one a file, that type checkers follow.
# New and deleted files show in it after a re-install.
$(LINKED): $(INSTALLED)
	@$(PIP) install --no-deps --no-build-isolation --config-settings editable_mode=strict -e .
	@rm -f $(VENV)/.linked-*
	@touch $@
