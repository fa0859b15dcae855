# `make demo` and `make test` set up .venv first, where it is missing or older than pyproject.toml and constraints.txt.
# The wheels come from where pip is told to look; without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# spares the CUDA libraries, some gigabytes.

PYTHON ?= python3
ARGS ?=
PIP = DS_BUILD_OPS=0 .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-fast bench lint clean

help:
	@echo "make demo    train on the built-in preferences; options go in ARGS='--max_steps 10'"
	@echo "make test    run the tests; pytest's options go in ARGS='-k config'"
	@echo "make test-fast   the tests without Ray, under two minutes"
	@echo "make bench   against TRL, an hour on two cores; ARGS='--help' lists its options"
	@echo "make lint    ruff and mypy --strict"
	@echo "make clean   remove .venv and the caches"
	@echo "PYTHON=python3.12 chooses the Python (3.11 or newer) of a new .venv."

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer; say PYTHON=python3.11")'
	@echo "Setting up .venv: some minutes, once."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch  # by itself, so that what else needs torch does not choose another build of it
	@$(PIP) --editable '.[test,parity]'
	@touch $@

demo: .venv/ready
	@.venv/bin/python jobs/dpo.py $(ARGS)

test: .venv/ready
	.venv/bin/python -m pytest $(ARGS)

test-fast: .venv/ready
	.venv/bin/python -m pytest -m "not ray and not slow" $(ARGS)

bench: .venv/ready
	@.venv/bin/python -m tests.bench $(ARGS)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/mypy

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build raydpo.egg-info
	find raydpo jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
