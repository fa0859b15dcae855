# `make demo` and `make test` first set up .venv if it is missing, or older than pyproject.toml or constraints.txt.
# pip's own settings decide where wheels come from. On Linux, PyPI's torch is the CUDA build; without a GPU,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets a CPU build, which saves some gigabytes.

PYTHON ?= python3
ARGS ?=
PIP = DS_BUILD_OPS=0 .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-fast test-whole test-models bench lint clean

help:
	@echo "make demo       train on the built-in preferences; pass options as ARGS='--max_steps 10'"
	@echo "make test       run the tests; pass pytest's options as ARGS='-k config'"
	@echo "make test-whole run the cases that make test leaves out of large matrices"
	@echo "make test-models runs every decoder of transformers, tiny, against its own forward"
	@echo "make test-fast  run the fast tests, without Ray, in less than two minutes"
	@echo "make bench      compare with TRL, an hour on two cores; ARGS='--help' lists its options"
	@echo "make lint       run ruff and mypy --strict"
	@echo "make clean      remove .venv and the caches"
	@echo "make .venv/ready PYTHON=python3.12 sets up .venv with that Python (3.11 or newer)."

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required; set PYTHON=python3.11")'
	@echo "Setting up .venv once; this takes some minutes."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch  # first and alone, so that packages that need torch do not choose another build of it
	@$(PIP) --editable '.[test,parity]'
	@touch $@

demo: .venv/ready
	@.venv/bin/python jobs/dpo.py $(ARGS)

test: .venv/ready
	.venv/bin/python -m pytest -m "not whole and not models" $(ARGS)

test-whole: .venv/ready
	.venv/bin/python -m pytest -m whole $(ARGS)

test-models: .venv/ready
	.venv/bin/python -m pytest tests/models/matrix $(ARGS)

test-fast: .venv/ready
	.venv/bin/python -m pytest -m "not ray and not slow and not models" $(ARGS)

bench: .venv/ready
	@.venv/bin/python -m tests.bench $(ARGS)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/mypy

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build raydpo.egg-info
	find raydpo jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
