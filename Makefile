# `make repro` runs the whole pipeline, `make test` the tests; all install what is missing first.

PYTHON ?= python3
WITH_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH"

# Two processes; tests/conftest.py gives each one thread. A file's tests stay in one process.
PYTEST = $(WITH_VENV) python -m pytest -n 2 --dist loadfile

.PHONY: repro lint test test-slow check bench
repro: .venv/installed
	$(WITH_VENV) python stages/_rwlock.py
	$(WITH_VENV) dvc repro
	@echo "The report: $(CURDIR)/report/index.html"

# The format, the usual mistakes, the types; .pre-commit-config.yaml has the same.
lint: .venv/installed
	$(WITH_VENV) ruff format --check
	$(WITH_VENV) ruff check
	$(WITH_VENV) mypy

# All but the tests that take more than 15 seconds.
test: .venv/installed
	$(PYTEST) -m "not slow"

# Those: the pipeline itself, swept, killed, in two processes.
test-slow: .venv/installed
	$(PYTEST) -m slow

# Are dvc.lock and metrics/ those of this code and these params? Needs no data.
check: .venv/installed
	plan=$$($(WITH_VENV) dvc repro --dry --allow-missing) && echo "$$plan" && ! echo "$$plan" | grep -q "^Running stage"

# Our speed beside plain baselines: tables, and metrics/bench/*.json. Wants the machine to itself.
bench: .venv/installed
	$(WITH_VENV) python -m bench.input
	$(WITH_VENV) python -m bench.files
	$(WITH_VENV) python -m bench.crd
	$(WITH_VENV) python -m bench.step
	$(WITH_VENV) python -m bench.cache
	$(WITH_VENV) python -m bench.scaling
	$(WITH_VENV) python -m bench.overhead

# editable_mode=compat: else Python, started beside a checkout named richkd, takes that for the package.
.venv/installed: Makefile pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -c requirements.txt -C editable_mode=compat -e '.[test]'
	touch $@
